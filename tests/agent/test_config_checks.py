"""Mistakes in the configuration: which ones are found, and where they show."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from email.utils import formatdate

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.agent.config_checks import ConfigChecks, ConfigProblemCollector
from pyproxy.agent.config_rules import (
    api_server_problem,
    cidr_problems,
    clock_problem,
    nearest,
    node_problems,
)
from pyproxy.agent.node_wait import NODE_WAIT, FirstCommit, NodeWait
from pyproxy.config.settings import LocalMode, LocalTraffic, Masquerade, Settings
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.model.address import Family, Port, Protocol, parse_address, parse_network
from pyproxy.model.config_problems import ConfigProblem, ConfigTopic
from pyproxy.model.events import Synced
from pyproxy.model.objects import Kind, Node, ObjectName, ServicePort
from tests.agent.objects import HOSTNAME, NODE, Stage
from tests.builders import endpoint_slice, service
from tests.exposition import series
from tests.source.scripted import NODES as NODES_PATH
from tests.source.scripted import Exchange, client_of, quiet, serving
from tests.waiting import PATIENCE

NODES = ("node-a", "node-b", "node-c.example.com", "gpu-7")
SERVED = Settings(
    HOSTNAME, local_traffic=LocalTraffic(cluster_networks=(parse_network("10.244.0.0/16"),))
)
HERE = NodeRouting()
V4, V6 = Family.IPV4, Family.IPV6


class FakeSource:
    """A source that has read some names of Nodes."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names
        self.failing: tuple[ConfigProblem, ...] = ()

    def start(self) -> None:
        """Start nothing."""

    def stop(self) -> None:
        """Stop nothing."""

    def age(self) -> float:
        return 0.0

    def problems(self) -> tuple[ConfigProblem, ...]:
        return self.failing

    def node_names(self) -> tuple[str, ...]:
        return self.names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("node-zzz", ["node-b", "node-a"]),
        ("node-c", ["node-c.example.com", "node-b", "node-a"]),
        ("node-a.example.com", ["node-a", "node-c.example.com"]),
        ("master", []),
    ],
)
def test_nearest_names(name: str, expected: list[str]) -> None:
    assert list(nearest(name, NODES)) == expected


@pytest.mark.parametrize(
    ("name", "names", "fix"),
    [
        ("node-aa", NODES, "--hostname-override to the Node's name; similar names: node-a, "),
        ("$(node_name)", NODES, "the variable NODE_NAME is not set in the container"),
        ("${node_name}", (), "the variable NODE_NAME is not set in the container"),
        ("master", NODES, "it has gpu-7, node-a, node-b"),
        ("master", (), "check that the kubelet has registered"),
    ],
)
def test_a_missing_node(name: str, names: tuple[str, ...], fix: str) -> None:
    (found,) = node_problems(Settings(name), None, names, (), ())
    assert found.topic is ConfigTopic.NODE_NOT_FOUND
    assert found.message == f"the cluster has no Node {name}"
    assert fix in found.fix
    assert not list(node_problems(Settings(HOSTNAME), NODE, (), (), ()))


class CountedNames(tuple[str, ...]):
    """Names that count how often they are looked through."""

    __slots__ = ()
    passes = 0

    def __iter__(self) -> Iterator[str]:
        CountedNames.passes += 1
        return super().__iter__()


def test_names_of_nodes_are_compared_once_and_not_at_each_check() -> None:
    names = CountedNames(f"ip-10-0-{number}.internal" for number in range(100))
    source = FakeSource(names)
    checks = ConfigChecks(
        msgspec.structs.replace(SERVED, node_name="ip-10-0-x.internal"), source, None
    )
    state = Stage().agent.cluster_state
    for kind in Kind:
        state.handle_event(Synced(kind, frozenset()), 0.0)
    checks.check(state, HERE)
    (found,), passes = checks.problems(), CountedNames.passes
    assert "similar names: ip-10-0-" in found.fix
    assert passes
    for _ in range(10):
        checks.check(state, HERE)
    assert checks.problems() == (found,)
    assert CountedNames.passes == passes
    source.names = ("ip-10-0-y.internal",)
    checks.check(state, HERE)
    assert "similar names: ip-10-0-y.internal" in checks.problems()[0].fix


@pytest.mark.parametrize("mode", LocalMode)
def test_a_node_without_pod_networks(mode: LocalMode) -> None:
    bare = msgspec.structs.replace(NODE, pod_networks=())
    settings = Settings(HOSTNAME, local_traffic=LocalTraffic(mode))
    found = [each.topic for each in node_problems(settings, bare, (), (), {V4, V6})]
    wanted = [ConfigTopic.NODE_WITHOUT_POD_NETWORKS] if mode is LocalMode.NODE_CIDR else []
    assert found == wanted
    assert not list(node_problems(settings, NODE, (), (), {V4}))
    one = [each.message for each in node_problems(settings, NODE, (), (), {V4, V6})]
    assert len(one) == len(wanted)
    assert all("has no IPv6 network in spec.podCIDRs, so that IPv6 conn" in each for each in one)


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        ((), 0),
        (("172.30.0.11", "127.0.0.1"), 0),
        (("fd30::11",), 0),
        (("172.30.0.12", "127.0.0.1"), 1),
    ],
)
def test_a_node_whose_addresses_are_elsewhere(local: tuple[str, ...], expected: int) -> None:
    here = tuple(map(parse_address, local))
    found = list(node_problems(SERVED, NODE, (), here, ()))
    assert [each.topic for each in found] == [ConfigTopic.NODE_ADDRESSES_ELSEWHERE] * expected
    assert not list(node_problems(SERVED, Node(HOSTNAME), (), here, ()))


def with_addresses(*texts: str, pods: Iterable[str] = ()) -> Node:
    return Node(HOSTNAME, tuple(map(parse_address, texts)), tuple(map(parse_network, pods)))


@pytest.mark.parametrize(
    ("cidrs", "node", "services", "texts"),
    [
        ("10.244.0.0/16", with_addresses("172.30.0.11"), {V4}, []),
        ("10.244.0.0/16", with_addresses("172.30.0.11", "fd30::11"), {V4}, []),
        ("10.244.0.0/16,fd00:10::/64", with_addresses("172.30.0.11"), {V4}, []),
        ("", None, set(), ["clusterCIDR is not set, so that connections from outside"]),
        ("", NODE, {V4, V6}, ["clusterCIDR is not set, so that connections from outside"]),
        (
            "fd00:10::/64",
            with_addresses("172.30.0.11"),
            {V4},
            ["uses IPv4, and clusterCIDR fd00:10::/64 has no IPv4 network, so that IPv4 connecti"],
        ),
        ("10.244.0.0/16", NODE, {V4, V6}, ["uses IPv6, and clusterCIDR 10.244.0.0/16 has no IPv6"]),
        ("10.244.0.0/16", with_addresses("fd30::11"), set(), ["has no IPv6 network"]),
        (
            "10.244.0.0/16",
            with_addresses("172.30.0.11", pods=["10.244.1.0/24", "fd10::/64"]),
            {V4},
            ["has no IPv6 network"],
        ),
        ("fd00:10::/64", None, {V4}, ["has no IPv4 network"]),
    ],
)
def test_cluster_cidr(
    cidrs: str, node: Node | None, services: set[Family], texts: list[str]
) -> None:
    networks = tuple(parse_network(each) for each in cidrs.split(",") if each)
    settings = Settings(HOSTNAME, local_traffic=LocalTraffic(cluster_networks=networks))
    found = list(cidr_problems(settings, node, services))
    assert len(found) == len(texts)
    for each, text in zip(found, texts, strict=True):
        assert each.message.startswith("configuration may be incomplete or incorrect: ")
        assert text in each.message
    everything = msgspec.structs.replace(settings, masquerade=Masquerade(everything=True))
    for each in cidr_problems(everything, node, services):
        assert each.message.endswith("connections from pods are not recognized")


def test_cluster_cidr_does_not_matter_to_other_modes() -> None:
    settings = Settings(HOSTNAME, local_traffic=LocalTraffic(LocalMode.BRIDGE_INTERFACE))
    assert not list(cidr_problems(settings, NODE, {V4, V6}))


def test_each_is_logged_once_and_in_the_metric(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stage, source = Stage(), FakeSource(NODES)
    checks = ConfigChecks(Settings(HOSTNAME), source, None)
    stage.metrics.register(ConfigProblemCollector(checks.problems))
    state = stage.agent.cluster_state
    checks.check(state, HERE)
    assert not caplog.messages
    for kind in Kind:
        stage.agent.handle_event(Synced(kind, frozenset()))
    checks.check(state, HERE)
    checks.check(state, HERE)
    assert [line.partition(": ")[0] for line in caplog.messages] == [
        "configuration problem node_not_found",
        "configuration problem cluster_cidr_missing",
    ]
    metric = "pyproxy_configuration_problems"
    found = series(stage.metrics.exposition().decode())
    assert found[f'{metric}{{problem="node_not_found"}}'] == 1
    assert found[f'{metric}{{problem="cluster_cidr_family"}}'] == 0
    stage.handle_event(NODE)
    checks.check(state, HERE)
    assert caplog.messages[2:] == ["configuration problem node_not_found is solved"]
    assert [each.topic for each in checks.problems()] == [ConfigTopic.CLUSTER_CIDR_MISSING]


def test_a_folder_of_manifests_needs_no_node() -> None:
    traffic = LocalTraffic(cluster_networks=(parse_network("10.244.0.0/16"),))
    settings = Settings(HOSTNAME, manifests="/manifests", local_traffic=traffic)
    stage = Stage(manifests="/manifests")
    for kind in Kind:
        stage.agent.handle_event(Synced(kind, frozenset()))
    assert not ConfigChecks(settings, FakeSource(), None).find(
        stage.agent.cluster_state, NodeRouting()
    )
    assert stage.is_due()


CLUSTER_IP = {"KUBERNETES_PORT_443_TCP_ADDR": "10.96.0.1"}


@pytest.mark.parametrize(
    ("hosts", "environ", "owner", "named"),
    [
        (["https://10.96.0.1:443"], CLUSTER_IP, None, "default/kubernetes"),
        (["https://192.0.2.1:6443", "https://10.96.0.1"], CLUSTER_IP, None, "default/kubernetes"),
        (["https://kubernetes.default.svc:443"], {}, None, "default/kubernetes"),
        (["https://kubernetes.default.svc.cluster.local"], {}, None, "default/kubernetes"),
        (["https://10.96.0.1:443"], {}, service("api", 1).name, "shop/api"),
        (["https://192.0.2.1:6443"], CLUSTER_IP, None, ""),
        (["https://kubernetes.example.com:6443"], {}, None, ""),
        (["https://10.96.0.1:443"], {}, None, ""),
    ],
)
def test_an_api_server_address_that_is_a_services(
    hosts: list[str], environ: dict[str, str], owner: ObjectName | None, named: str
) -> None:
    found = api_server_problem(hosts, environ, owner)
    assert (f"is that of the Service {named}, " in found.message) if found else not named


def test_an_api_server_that_is_reached_by_a_service() -> None:
    """The address matters, whether the Service or the connection is known first."""
    stage, source = Stage(), FakeSource()
    with serving(quiet) as server:
        client = client_of(server.url)
        checks = ConfigChecks(SERVED, source, client)
        client.get(NODES_PATH, {}, PATIENCE).close()
        assert not checks.find(stage.agent.cluster_state, HERE)
        address, port = parse_address("127.0.0.1"), Port(server.server_port)
        ports = (ServicePort("https", Protocol.TCP, port, Port(0)),)
        api = msgspec.structs.replace(service("api", 1), ports=ports, cluster_ips=(address,))
        stage.begin(api)
        state = stage.agent.cluster_state
        checks.committed(stage.recorder.commits[-1], state)
        late = ConfigChecks(SERVED, source, client)
        for each in (checks, late):
            (found,) = each.find(state, HERE)
            assert found.topic is ConfigTopic.API_SERVER_IS_SERVICE
        stage.handle_event(msgspec.structs.replace(api, cluster_ips=service("api", 1).cluster_ips))
        stage.settle()
        checks.committed(stage.recorder.commits[-1], state)
        assert not checks.find(state, HERE)


@pytest.mark.parametrize(
    ("offset", "text"),
    [(0.0, ""), (-59.0, ""), (3600.0, "1 h behind"), (-90.0, "1 min 30 s ahead of")],
)
def test_a_clock_that_is_far_off(offset: float, text: str) -> None:
    found = clock_problem(offset)
    assert (f"the clock of this node is {text} the API" in found.message) if found else not text


def test_the_clock_is_that_of_responses(caplog: pytest.LogCaptureFixture) -> None:
    def script(exchange: Exchange) -> None:
        exchange.send_response_only(200)
        date = "odd" if exchange.route == "/odd" else formatdate(time.time() + ahead, usegmt=True)
        exchange.send_header("Date", date)
        exchange.send_header("Content-Length", "0")
        exchange.end_headers()

    ahead = 7200.0
    state = Stage().agent.cluster_state
    with serving(script) as server:
        client = client_of(server.url)
        checks = ConfigChecks(SERVED, FakeSource(), client)
        # A second more or less is no new message.
        for offset in (7200.0, 7201.0, 7199.0):
            ahead = offset
            client.get("/version", {}, PATIENCE).close()
            client.get("/odd", {}, PATIENCE).close()
            checks.check(state, HERE)
        assert [each.topic for each in checks.problems()] == [ConfigTopic.CLOCK_SKEW]
        assert len(caplog.messages) == 1
        ahead = 0.0
        client.get("/version", {}, PATIENCE).close()
        checks.check(state, HERE)
    assert not checks.problems()


def reported(offsets: Sequence[float]) -> list[str]:
    """Return the clock's problem after each of the offsets, shortened; empty for none."""
    client, state = client_of("http://127.0.0.1:1"), Stage().agent.cluster_state
    checks = ConfigChecks(SERVED, FakeSource(), client)
    found = []
    for offset in offsets:
        client.clock_offset = offset
        checks.check(state, HERE)
        texts = [str(each) for each in checks.problems()]
        found.append(texts[0].split("node is ")[1].split(" the API")[0] if texts else "")
    return found


@pytest.mark.parametrize(
    ("offsets", "texts"),
    [
        ((65.0, 40.0), ["1 min 5 s behind", ""]),
        ((45.0, 74.0), ["", "1 min 14 s behind"]),
        ((-45.0, -61.0, -54.0), ["", "1 min 1 s ahead of", ""]),
        # Around the limit the text stays.
        ((61.0, 60.0, 59.0, 61.0, 56.0, 55.0, 56.0), [*["1 min 1 s behind"] * 5, "", ""]),
        ((70.0, 80.0, 99.0, 101.0), [*["1 min 10 s behind"] * 3, "1 min 41 s behind"]),
        ((95.0, 58.0, 61.0), ["1 min 35 s behind", "", "1 min 1 s behind"]),
        ((70.0, -70.0), ["1 min 10 s behind", "1 min 10 s ahead of"]),
    ],
)
def test_the_present_offset_decides(offsets: Sequence[float], texts: list[str]) -> None:
    assert reported(offsets) == texts


@given(st.lists(st.floats(-200, 200), min_size=1, max_size=30))
def test_a_reported_clock_is_off_and_one_that_is_off_is_reported(offsets: list[float]) -> None:
    for offset, text in zip(offsets, reported(offsets), strict=True):
        assert text if abs(offset) > 60.0 else not text or abs(offset) > 55.0


def test_what_the_source_has_logged_is_not_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    source = FakeSource()
    source.failing = (ConfigProblem(ConfigTopic.API_FORBIDDEN, "403", "bind it"),)
    checks = ConfigChecks(SERVED, source, None)
    checks.check(Stage().agent.cluster_state, HERE)
    assert checks.problems() == source.failing
    assert not caplog.messages


def test_families_are_those_of_the_services() -> None:
    traffic = LocalTraffic(cluster_networks=(parse_network("10.244.0.0/16"),))
    checks = ConfigChecks(Settings(HOSTNAME, local_traffic=traffic), FakeSource(), None)
    stage = Stage()
    stage.begin(service("web", 1), endpoint_slice("web", ["10.244.1.5"]))
    state = stage.agent.cluster_state
    checks.committed(stage.recorder.commits[-1], state)
    assert not checks.find(state, HERE)
    stage.handle_event(
        msgspec.structs.replace(service("six", 2), cluster_ips=(parse_address("fd96::1"),))
    )
    stage.settle()
    checks.committed(stage.recorder.commits[-1], state)
    assert [each.topic for each in checks.find(state, HERE)] == [ConfigTopic.CLUSTER_CIDR_FAMILY]


class TestFirstSync:
    """The wait for the Node, and the line after it."""

    def lists(self) -> Stage:
        """Return an agent that has read all lists, without a Node."""
        stage = Stage()
        stage.handle_event(service("web", 1), endpoint_slice("web", ["10.244.1.5"]))
        stage.agent.handle_event(Synced(Kind.SERVICE, frozenset({service("web", 1).name})))
        name = endpoint_slice("web", []).name
        stage.agent.handle_event(Synced(Kind.ENDPOINT_SLICE, frozenset({name})))
        stage.agent.handle_event(Synced(Kind.NODE, frozenset()))
        return stage

    def test_it_waits_for_the_node_for_a_bounded_time(self) -> None:
        stage = self.lists()
        assert stage.agent.due() == stage.clock.now + NODE_WAIT
        stage.clock.now += NODE_WAIT
        assert stage.is_due()
        stage.settle()
        assert stage.serving() == ["shop/web:http"]
        # The Node is taken as soon as it appears, without a restart.
        stage.handle_event(NODE)
        assert stage.is_due()

    def test_it_ends_the_wait_when_the_node_appears(self) -> None:
        stage = self.lists()
        assert not stage.is_due()
        stage.handle_event(NODE)
        assert stage.is_due()

    def test_a_node_that_is_deleted_later_delays_nothing(self) -> None:
        stage = self.lists()
        stage.handle_event(NODE)
        stage.settle()
        stage.agent.handle_event(Synced(Kind.NODE, frozenset()))
        stage.handle_event(service("api", 2))
        assert stage.is_due()

    def test_the_line_has_the_parts_of_the_start(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        wait = NodeWait(HOSTNAME)
        wait.due(102.0, lacks_node=True)
        first = FirstCommit("table", wait, HOSTNAME, 100.0, lambda: 107.0)
        stage = Stage()
        stage.begin(service("web", 1))
        commit = msgspec.structs.replace(stage.recorder.commits[0], took=1.0)
        for _ in range(2):
            first.committed(commit, stage.agent.cluster_state)
        assert caplog.messages == [
            "waiting up to 30 s for Node node-a before the first sync; "
            "the rules in the kernel stay",
            "serving node node-a in table mode: 1 service, 7.00 s after the start: "
            "2.00 s until all lists were read, 4.00 s of waiting, 1.00 s for the first sync",
        ]
