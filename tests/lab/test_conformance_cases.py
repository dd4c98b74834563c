"""Case files decoded, slices built and outcomes judged: what the runner decides without packets."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from pyproxy_lab.conformance import cases
from pyproxy_lab.conformance.cases import Applied, EndpointEntry, Probe
from pyproxy_lab.conformance.kube_proxy import FEATURES, Release, lacking
from pyproxy_lab.conformance.slices import slices_of
from pyproxy_lab.conformance.verdict import describe, holds
from pyproxy_lab.probe import Outcome
from pyproxy_lab.topology import TWO_NODES

from pyproxy.errors import UsageError
from tests.conformance import FOLDER

OWN = {"10.244.1.12", "fd10:1::12"}


def applied(*endpoints: str | EndpointEntry, **fields: object) -> Applied:
    spec = {"ports": [{"port": 80, "targetPort": 8080}]}
    return msgspec.structs.replace(
        Applied(metadata={"name": "web"}, spec=spec, endpoints=endpoints), **fields
    )


def conditions(entry: EndpointEntry) -> object:
    (made,) = slices_of(applied(entry), TWO_NODES, "x")
    return made["endpoints"][0]["conditions"]


@pytest.mark.parametrize(
    ("entry", "address", "node"),
    [
        (EndpointEntry("a1"), "10.244.1.11", "node-a"),
        (EndpointEntry("b2", family="IPv6"), "fd10:2::12", "node-b"),
        (EndpointEntry("hb"), "172.30.0.12", "node-b"),
        (EndpointEntry("ha", family="IPv6"), "fd30::11", "node-a"),
        (EndpointEntry("203.0.113.9"), "203.0.113.9", None),
    ],
)
def test_an_endpoint_is_a_pod_a_host_or_an_address(
    entry: EndpointEntry, address: str, node: str | None
) -> None:
    (made,) = slices_of(applied(entry), TWO_NODES, "x")
    assert made["addressType"] == entry.family
    assert made["endpoints"][0]["addresses"] == [address]
    assert made["endpoints"][0].get("nodeName") == node


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        (EndpointEntry("a1"), (True, True, False)),
        (EndpointEntry("a1", ready=False), (False, False, False)),
        (EndpointEntry("a1", ready=False, serving=True, terminating=True), (False, True, True)),
    ],
)
def test_conditions(entry: EndpointEntry, wanted: tuple[bool, bool, bool]) -> None:
    assert conditions(entry) == dict(zip(("ready", "serving", "terminating"), wanted, strict=True))


def test_conditions_can_be_left_out() -> None:
    assert conditions(EndpointEntry("a1", ready="unset")) == {}


def test_slices_are_split_by_number_and_family() -> None:
    entries = ("a1", EndpointEntry("b1", slice=1), EndpointEntry("a1", family="IPv6"), "b2")
    made = list(slices_of(applied(*entries), TWO_NODES, "x"))
    names = {m["metadata"]["name"]: len(m["endpoints"]) for m in made}
    assert names == {"web-ipv4-0": 2, "web-ipv4-1": 1, "web-ipv6-0": 1}
    assert {m["metadata"]["labels"]["kubernetes.io/service-name"] for m in made} == {"web"}


def test_hints_and_zones() -> None:
    entry = EndpointEntry("a1", zone="zone-1", for_zones=("zone-1",), for_nodes=())
    (made,) = slices_of(applied(entry), TWO_NODES, "x")
    endpoint = made["endpoints"][0]
    assert endpoint["zone"] == "zone-1"
    assert endpoint["hints"] == {"forZones": [{"name": "zone-1"}], "forNodes": []}


def test_ports_take_the_target_or_the_port_and_resolve_names() -> None:
    spec = {
        "ports": [
            {"name": "a", "port": 80},
            {"name": "b", "port": 53, "targetPort": "dns", "protocol": "UDP"},
        ]
    }
    (made,) = slices_of(applied("a1", spec=spec, ports={"dns": 8080}), TWO_NODES, "x")
    assert made["ports"] == [
        {"name": "a", "protocol": "TCP", "port": 80},
        {"name": "b", "protocol": "UDP", "port": 8080},
    ]
    with pytest.raises(UsageError, match="target port 'dns' is missing"):
        list(slices_of(applied("a1", spec=spec), TWO_NODES, "x"))


REACH = Probe(source_name="a2", to="10.96.0.1:80", reach=("a1", "b1"))
KEPT = frozenset(["10.244.1.12"])
REWRITTEN = frozenset(["10.244.1.1"])


@pytest.mark.parametrize(
    ("wanted", "seen", "verdict"),
    [
        (REACH, Outcome({"a1": 9, "b1": 23}, KEPT), True),
        (REACH, Outcome({"a1": 32}, KEPT), False),
        (REACH, Outcome({"a1": 9, "b1": 9, "b2": 1}, KEPT), False),
        (REACH, Outcome({"a1": 9, "b1": 23}, KEPT, dropped=1), False),
        (REACH, Outcome({"a1": 9, "b1": 23}, KEPT, refused=1), False),
        (Probe("a2", "10.96.0.1:80", reach="one"), Outcome({"b2": 20}), True),
        (Probe("a2", "10.96.0.1:80", reach="one"), Outcome({"b2": 19, "a1": 1}), False),
        (Probe("a2", "10.96.0.1:80", reach="one"), Outcome(), False),
        (Probe("a2", "10.96.0.1:80", reach=("a1",), source="kept"), Outcome({"a1": 1}, KEPT), True),
        (
            Probe("a2", "10.96.0.1:80", reach=("a1",), source="kept"),
            Outcome({"a1": 1}, REWRITTEN),
            False,
        ),
        (
            Probe("a2", "10.96.0.1:80", reach=("a1",), source="rewritten"),
            Outcome({"a1": 1}, KEPT),
            False,
        ),
        (
            Probe("a2", "10.96.0.1:80", reach=("a1",), source="rewritten"),
            Outcome({"a1": 1}, REWRITTEN),
            True,
        ),
        (
            Probe("a2", "10.96.0.1:80", reach=("a1", "b1"), fair=0.5),
            Outcome({"a1": 8, "b1": 24}),
            True,
        ),
        (
            Probe("a2", "10.96.0.1:80", reach=("a1", "b1"), fair=0.5),
            Outcome({"a1": 7, "b1": 25}),
            False,
        ),
        (Probe("a2", "10.96.0.1:80", expect="refused"), Outcome(refused=3), True),
        (Probe("a2", "10.96.0.1:80", expect="refused"), Outcome(refused=2, dropped=1), False),
        (Probe("a2", "10.96.0.1:80", expect="refused"), Outcome(), False),
        (Probe("a2", "10.96.0.1:80", expect="dropped"), Outcome(dropped=2), True),
        (Probe("a2", "10.96.0.1:80", expect="dropped"), Outcome({"a1": 1}, dropped=2), False),
        (Probe("a2", "10.96.0.1:80", expect="blocked"), Outcome(refused=1, dropped=2), True),
        (Probe("a2", "10.96.0.1:80", expect="blocked"), Outcome({"a1": 1}, refused=1), False),
    ],
)
def test_verdict(wanted: Probe, seen: Outcome, verdict: bool) -> None:
    assert holds(wanted, seen, OWN) is verdict


def test_what_a_probe_wants_can_be_read() -> None:
    wanted = Probe("a2", "10.96.0.1:80", reach=("a1", "b1"), source="kept", fair=0.9)
    assert describe(wanted) == "a1, b1; source kept; shares within 90%"
    assert describe(Probe("a2", "10.96.0.1:80", reach="one")) == "one backend alone"
    assert describe(Probe("a2", "10.96.0.1:80", expect="blocked")) == "blocked"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x", "a case file is a list of cases"),
        ("[", "while parsing"),
        ("- {name: x, steps: [{prob: []}]}", "case x: .*unknown field `prob` - at `\\$.steps"),
        ("- {name: x, steps: [], mode: [ipvs]}", "case x: .*unknown field `mode`"),
        ("- {steps: []}", "case 1: .*missing required field `name`"),
        (
            "- {name: x, steps: [{probe: [{from: a1, to: '10.0.0.1:80'}]}]}",
            "case x: a probe needs either `reach` or `expect`.*probe",
        ),
        (
            "- {name: x, steps: [{probe: [{from: a1, to: 'h:1', expect: lost}]}]}",
            "case x: .*'lost'",
        ),
        (
            "- {name: x, steps: [{apply: [{metadata: {}, spec: {}}]}]}",
            "case x: metadata needs a name",
        ),
        (
            "- {name: x, steps: [{probe: [{from: a1, to: here, expect: refused}]}]}",
            "case x: 'here' is not a destination",
        ),
        ("- {name: x, steps: [], requires: [Wings]}", "case x: requires: Wings is no feature"),
    ],
)
def test_a_mistake_in_a_case_names_file_and_case(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=f"bad.yaml: {message}"):
        cases.read(file)


def test_a_folder_is_read_in_order_and_an_empty_one_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \*.yaml"):
        cases.read(tmp_path)
    for name in ("02", "01"):
        (tmp_path / f"{name}.yaml").write_text(f"- {{name: '{name}', steps: [], not: [ipvs]}}")
    assert [case.name for case in cases.read(tmp_path)] == ["01", "02"]
    assert cases.read(tmp_path)[0].without == ("ipvs",)


@pytest.mark.parametrize(
    ("feature", "mode", "first"),
    [
        ("ServiceInternalTrafficPolicy", "iptables", 22),
        ("ProxyTerminatingEndpoints", "iptables", 26),
        ("external-ip-policy", "iptables", 29),
        ("LoadBalancerIPMode", "ipvs", 30),
        ("ServiceTrafficDistribution", "nftables", 31),
        ("PreferSameTrafficDistribution", "nftables", 34),
        # No tested release has the first, and the newest one has the second in other modes alone.
        ("removed-port-flows", "nftables", 31),
        ("external-rejection-on-node", "iptables", 31),
        ("external-rejection-on-node", "nftables", 20),
    ],
)
def test_kube_proxy_has_a_feature_since_a_release(feature: str, mode: str, first: int) -> None:
    having = [minor for minor in range(20, 37) if not lacking([feature], Release(minor), mode)]
    assert having == list(range(first, 37))


def test_every_feature_is_required_by_a_case() -> None:
    assert {name for case in cases.read(FOLDER) for name in case.requires} == FEATURES.keys()


@pytest.mark.parametrize("text", ["1.30", "v1.30", "1.30.5", "v1.30.5"])
def test_a_release(text: str) -> None:
    assert Release.parse(text) == Release(30)
