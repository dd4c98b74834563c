"""Mistakes in the configuration: which ones are found, and where they show."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec
import pytest

from pyproxy.agent.config_checks import ConfigChecks
from pyproxy.agent.config_rules import cidr_problems, nearest, node_problems
from pyproxy.agent.node_wait import NODE_WAIT, FirstCommit, NodeWait
from pyproxy.config.settings import LocalMode, LocalTraffic, Masquerade, Settings
from pyproxy.model.address import Family, parse_address, parse_network
from pyproxy.model.config_problems import ConfigTopic
from pyproxy.model.events import Synced
from pyproxy.model.objects import Kind, Node
from tests.agent.objects import HOSTNAME, NODE, Stage
from tests.builders import endpoint_slice, service
from tests.exposition import series

NODES = ("node-a", "node-b", "node-c.example.com", "gpu-7")
V4, V6 = Family.IPV4, Family.IPV6


class FakeSource:
    """A source that has read some names of Nodes."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names

    def start(self) -> None:
        """Start nothing."""

    def stop(self) -> None:
        """Stop nothing."""

    def age(self) -> float:
        return 0.0

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
    (found,) = node_problems(Settings(name), None, names)
    assert found.topic is ConfigTopic.NODE_NOT_FOUND
    assert found.message == f"the cluster has no Node {name}"
    assert fix in found.fix
    assert not list(node_problems(Settings(HOSTNAME), NODE, ()))


@pytest.mark.parametrize("mode", LocalMode)
def test_a_node_without_pod_networks(mode: LocalMode) -> None:
    bare = msgspec.structs.replace(NODE, pod_networks=())
    settings = Settings(HOSTNAME, local_traffic=LocalTraffic(mode))
    found = [each.topic for each in node_problems(settings, bare, ())]
    wanted = [ConfigTopic.NODE_WITHOUT_POD_NETWORKS] if mode is LocalMode.NODE_CIDR else []
    assert found == wanted
    assert not list(node_problems(settings, NODE, ()))


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
    checks = ConfigChecks(Settings(HOSTNAME), source)
    stage.metrics.register(checks)
    state = stage.agent.cluster_state
    checks.check(state)
    assert not caplog.messages
    for kind in Kind:
        stage.agent.handle_event(Synced(kind, frozenset()))
    checks.check(state)
    checks.check(state)
    assert [line.partition(": ")[0] for line in caplog.messages] == [
        "configuration problem node_not_found",
        "configuration problem cluster_cidr_missing",
    ]
    metric = "pyproxy_configuration_problems"
    found = series(stage.metrics.exposition().decode())
    assert found[f'{metric}{{problem="node_not_found"}}'] == 1
    assert found[f'{metric}{{problem="cluster_cidr_family"}}'] == 0
    stage.handle_event(NODE)
    checks.check(state)
    assert caplog.messages[2:] == ["configuration problem node_not_found is solved"]
    assert [each.topic for each in checks.problems()] == [ConfigTopic.CLUSTER_CIDR_MISSING]


def test_a_folder_of_manifests_needs_no_node() -> None:
    traffic = LocalTraffic(cluster_networks=(parse_network("10.244.0.0/16"),))
    settings = Settings(HOSTNAME, manifests="/manifests", local_traffic=traffic)
    stage = Stage(manifests="/manifests")
    for kind in Kind:
        stage.agent.handle_event(Synced(kind, frozenset()))
    assert not ConfigChecks(settings, FakeSource()).find(stage.agent.cluster_state)
    assert stage.is_due()


def test_families_are_those_of_the_services() -> None:
    traffic = LocalTraffic(cluster_networks=(parse_network("10.244.0.0/16"),))
    checks = ConfigChecks(Settings(HOSTNAME, local_traffic=traffic), FakeSource())
    stage = Stage()
    stage.begin(service("web", 1), endpoint_slice("web", ["10.244.1.5"]))
    state = stage.agent.cluster_state
    checks.committed(stage.recorder.commits[-1], state)
    assert not checks.find(state)
    stage.handle_event(
        msgspec.structs.replace(service("six", 2), cluster_ips=(parse_address("fd96::1"),))
    )
    stage.settle()
    checks.committed(stage.recorder.commits[-1], state)
    assert [each.topic for each in checks.find(state)] == [ConfigTopic.CLUSTER_CIDR_FAMILY]


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
