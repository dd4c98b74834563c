"""Objects that are invalid, huge or in conflict: each costs its own fault, and delays no other.

The absence of a delay is counted, not timed: another Service's change is in the same commit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network

from pyproxy.errors import Problem
from pyproxy.model.events import InvalidObject, Synced, Upsert
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.source.decode import NotProxied, decode_object
from tests.agent.objects import Stage

from .proxied import NAMESPACE, Object, Proxied, balanced, endpoint_slice, proxied, service

ADDRESS = "10.96.1.1"
OTHER = "10.96.1.2"


def named(name: str) -> ObjectName:
    return ObjectName(NAMESPACE, name)


def odd(*pods: str | Object) -> Object:
    return endpoint_slice("odd", *(pods or ("a1",)))


def many_endpoints(count: int) -> list[Object]:
    """Slices of 1,000, as large as the API takes them."""
    found = [
        {"addresses": [f"10.245.{n // 250}.{n % 250 + 1}"], "conditions": {"ready": True}}
        for n in range(count)
    ]
    return [
        endpoint_slice("odd", *found[n : n + 1000], name=f"odd-{n}") for n in range(0, count, 1000)
    ]


INVALID = (
    service(
        "odd",
        ADDRESS,
        externalIPs=["192.0.2.300", "127.0.0.1", "2001:db8::7", "192.0.2.7"],
        type="LoadBalancer",
        status=balanced("nonsense", "198.51.100.7"),
    ),
    odd(),
)
PORTS = 1000
THOUSAND_PORTS = (
    service("odd", ADDRESS, ports=[{"name": f"p{n}", "port": 1000 + n} for n in range(PORTS)]),
    endpoint_slice("odd", "a1", ports=[{"name": f"p{n}", "port": 8080} for n in range(PORTS)]),
)
ENDPOINTS = 5000
THOUSANDS_OF_ENDPOINTS = (service("odd", ADDRESS), *many_endpoints(ENDPOINTS))
CLAIMED: Object = {"externalIPs": ["192.0.2.8"]}
SAME_ADDRESS = (
    service("odd", ADDRESS, **CLAIMED),
    odd("a1"),
    service("rival", OTHER, **CLAIMED),
    endpoint_slice("rival", "b1"),
)
UNKNOWN = (
    service("odd", ADDRESS, tomorrow={"field": 1}),
    odd() | {"tomorrow": [1, 2], "endpoints": [
        {
            "addresses": ["10.244.1.11"],
            "conditions": {"ready": True, "asleep": True, "mood": "good"},
            "tomorrow": {"x": None},
        },
        {"addresses": ["10.244.2.11"], "conditions": {"asleep": True}},
        {"addresses": ["10.244.1.12"]},
    ]},
)  # fmt: skip
NONSENSE = (
    {"apiVersion": "v1", "kind": "Service", "metadata": service("odd", ADDRESS)["metadata"]}
    | {"spec": {"clusterIP": ADDRESS, "ports": "eighty"}},
    odd(),
)


class Bystander:
    """A whole Service of its own that changes at the same moment."""

    before = (service("bystander", "10.96.2.1"), endpoint_slice("bystander", "a2"))
    after = endpoint_slice("bystander", "a2", "b2")


def handle_event(stage: Stage, objects: Sequence[Object]) -> None:
    for obj in objects:
        value = decode_object(Kind(obj["kind"]), json.dumps(obj).encode()).value
        assert not isinstance(value, NotProxied)
        stage.agent.handle_event(
            InvalidObject(value) if isinstance(value, Problem) else Upsert(value, 0.0)
        )


@pytest.fixture
def stage() -> Stage:
    made = Stage()
    handle_event(made, Bystander.before)
    made.handle_event(made.node)
    for kind in Kind:
        names = {"bystander", "bystander-ipv4"}
        made.agent.handle_event(Synced(kind, frozenset(map(named, names))))
    made.settle()
    assert made.serving() == ["shop/bystander"]
    return made


def endpoints(stage: Stage) -> int:
    return len(stage.dataplane.kernel["endpoints4"])


def problems(stage: Stage) -> list[tuple[str, str]]:
    return [(problem.name, problem.field) for problem in stage.agent.problems()]


def invalid(stage: Stage) -> None:
    assert problems(stage) == [
        ("shop/odd", "spec.externalIPs[0]"),
        ("shop/odd", "spec.externalIPs[1]"),
        ("shop/odd", "spec.externalIPs[2]"),
        ("shop/odd", "status.loadBalancer.ingress[0].ip"),
    ]
    assert stage.serving().count("shop/odd") == 3  # the cluster IP and one of each other kind


def thousand_ports(stage: Stage) -> None:
    assert len(stage.serving()) == 1 + PORTS
    assert endpoints(stage) == 2 + PORTS


def thousands_of_endpoints(stage: Stage) -> None:
    assert endpoints(stage) == 2 + ENDPOINTS


def same_address(stage: Stage) -> None:
    assert problems(stage) == [("shop/rival", "spec.externalIPs")]
    assert stage.serving().count("shop/odd") == 2
    assert stage.serving().count("shop/rival") == 1


def unknown(stage: Stage) -> None:
    assert problems(stage) == []
    assert endpoints(stage) == 2 + 3


def nonsense(stage: Stage) -> None:
    assert problems(stage) == [("shop/odd", "spec.ports")]
    assert "shop/odd" not in stage.serving()


ODD: dict[str, tuple[Sequence[Object], Callable[[Stage], None]]] = {
    "some of its addresses are invalid": (INVALID, invalid),
    "a thousand ports": (THOUSAND_PORTS, thousand_ports),
    "five thousand endpoints": (THOUSANDS_OF_ENDPOINTS, thousands_of_endpoints),
    "two that claim one external IP": (SAME_ADDRESS, same_address),
    "conditions and fields that nobody knows": (UNKNOWN, unknown),
    "nothing that can be read": (NONSENSE, nonsense),
}


@pytest.mark.parametrize("case", ODD)
def test_an_invalid_object_delays_no_other_service(stage: Stage, case: str) -> None:
    objects, check = ODD[case]
    before = len(stage.dataplane.commits)
    handle_event(stage, objects)
    handle_event(stage, [Bystander.after])
    stage.settle()
    assert len(stage.dataplane.commits) == before + 1
    (commit,) = stage.recorder.commits[1:]
    assert named("bystander") in commit.routings
    check(stage)


def test_a_slice_without_its_service_delays_no_other_service(stage: Stage) -> None:
    handle_event(stage, [odd(), Bystander.after])
    stage.settle()
    assert commits(stage) == [{"odd", "bystander"}]
    handle_event(stage, [service("odd", ADDRESS)])
    stage.settle()
    assert commits(stage) == [{"odd", "bystander"}, {"odd"}]
    assert stage.serving() == ["shop/bystander", "shop/odd"]


def test_a_slice_that_moves_changes_both_services_at_once(stage: Stage) -> None:
    handle_event(stage, [service("odd", ADDRESS), odd(), service("other", OTHER)])
    stage.settle()
    handle_event(stage, [endpoint_slice("other", "a1", name="odd-ipv4"), Bystander.after])
    stage.settle()
    assert commits(stage)[-1] == {"odd", "other", "bystander"}
    assert stage.serving() == ["shop/bystander", "shop/other"]
    assert len(stage.dataplane.kernel["no-endpoint-services4"]) == 1


def commits(stage: Stage) -> list[set[str]]:
    """The Services in each commit but the first."""
    return [{name.name for name in commit.routings} for commit in stage.recorder.commits[1:]]


@pytest.fixture(scope="module")
def node(
    mode: LabMode, network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxied]:
    folder: Path = tmp_path_factory.mktemp("odd") / "x"
    with proxied(mode, network, folder, objects=Bystander.before) as made:
        yield made


@pytest.mark.packets
class TestPackets:
    """The same through a whole agent."""

    @pytest.fixture(autouse=True)
    def _clear(self, node: Proxied) -> None:
        node.forget("service", "rival")
        node.forget("endpointslice", "rival-ipv4")
        node.apply(service("odd", ADDRESS), odd("b2"))
        node.reaches("a2", f"{ADDRESS}:80", "b2")

    def test_valid_addresses_are_served_beside_invalid_ones(self, node: Proxied) -> None:
        node.apply(*INVALID)
        for address in (ADDRESS, "192.0.2.7", "198.51.100.7"):
            node.reaches("a2", f"{address}:80", "a1")
        node.logs("'192.0.2.300' is not an IP address; ignored")
        node.logs("127.0.0.1 is a loopback address, which no Service can have; ignored")
        node.logs("2001:db8::7 has incorrect IP version: this Service is IPv4; ignored")

    def test_a_thousand_ports(self, node: Proxied) -> None:
        node.apply(*THOUSAND_PORTS)
        for port in (1000, 1500, 1999):
            node.reaches("a2", f"{ADDRESS}:{port}", "a1")
        node.is_refused("a2", f"{ADDRESS}:2000")

    def test_five_thousand_endpoints_and_their_removal(self, node: Proxied) -> None:
        node.apply(*THOUSANDS_OF_ENDPOINTS)
        node.holds("10.245.19.250")
        node.reaches("a2", "10.96.2.1:80", "a2", source="10.244.1.1")
        node.delete(
            "endpointslice", *(part["metadata"]["name"] for part in many_endpoints(ENDPOINTS))
        )
        node.apply(odd("a1"))
        node.reaches("a2", f"{ADDRESS}:80", "a1")

    def test_unknown_conditions_and_fields(self, node: Proxied) -> None:
        node.apply(*UNKNOWN)
        node.reaches("a2", f"{ADDRESS}:80", "a1", "a2", "b1", tries=24)

    def test_a_slice_before_its_service(self, node: Proxied) -> None:
        node.delete("service", "odd")
        node.apply(odd("a1"))
        node.is_dropped("a2", f"{ADDRESS}:80")
        node.apply(service("odd", ADDRESS))
        node.reaches("a2", f"{ADDRESS}:80", "a1")

    def test_a_slice_moves_from_one_service_to_another(self, node: Proxied) -> None:
        node.apply(service("rival", OTHER), endpoint_slice("rival", "b2", name="odd-ipv4"))
        node.reaches("a2", f"{OTHER}:80", "b2")
        node.is_refused("a2", f"{ADDRESS}:80")
