"""Pod networks and node port addresses, from configuration, Node object and interfaces."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import msgspec
import pytest

from pyproxy.agent.config_rules import network_problems
from pyproxy.agent.node import NodeRules
from pyproxy.agent.node_setup import NodeKernel
from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import ListenAddress, LocalMode, LocalTraffic, NodePorts, Settings
from pyproxy.config.values import node_ports
from pyproxy.errors import Problem, TransientKernelError
from pyproxy.model.address import Family, address_text, family_of, parse_address, parse_network
from pyproxy.model.objects import Node
from tests.agent.objects import HOSTNAME, NODE, Stage
from tests.builders import endpoint_slice, service

INTERFACES = tuple(
    map(
        parse_address,
        ["172.30.0.11", "fd30::11", "127.0.0.1", "::1", "10.244.1.1", "192.168.7.1", "fd30::12"],
    )
)
EVERYWHERE = NodePorts(primary=False, everywhere=True)
EXTERNAL = (parse_address("172.30.0.99"), parse_address("fd30::99"))


@pytest.mark.parametrize(
    ("flag", "named", "expected"),
    [
        ("", EXTERNAL, "172.30.0.99 fd30::99"),
        ("primary", EXTERNAL[:1], "172.30.0.99"),
        ("primary", (), "172.30.0.11 fd30::11"),
        ("primary", (*EXTERNAL, *INTERFACES), "172.30.0.99 fd30::99"),
        ("localhost", EXTERNAL, "127.0.0.1"),
        ("all", EXTERNAL, "172.30.0.11 fd30::11 10.244.1.1 192.168.7.1 fd30::12"),
        ("192.168.0.0/16,fd30::12/128", EXTERNAL, "192.168.7.1 fd30::12"),
        ("127.0.0.0/8,::1/128", EXTERNAL, "127.0.0.1"),
        ("::/0", EXTERNAL, "fd30::11 fd30::12"),
        ("primary,localhost", EXTERNAL, "172.30.0.99 fd30::99 127.0.0.1"),
        ("primary,all", INTERFACES[:1], "172.30.0.11 fd30::11 10.244.1.1 192.168.7.1 fd30::12"),
        ("203.0.113.0/24", EXTERNAL, ""),
    ],
)
def test_node_port_addresses(flag: str, named: tuple[bytes, ...], expected: str) -> None:
    settings = Settings(HOSTNAME, node_ports=node_ports(flag))
    node = msgspec.structs.replace(NODE, addresses=named)
    found = NodeRules(settings, lambda: INTERFACES).routing(node).node_port_addresses
    assert " ".join(map(address_text, found)) == expected


def test_an_address_of_the_configuration_is_primary() -> None:
    settings = Settings(HOSTNAME, node_address=parse_address("172.30.0.77"))
    found = NodeRules(settings, lambda: INTERFACES).routing(NODE).node_port_addresses
    assert list(map(address_text, found)) == ["172.30.0.77", "fd30::11"]


@pytest.mark.parametrize(
    ("mode", "node", "expected"),
    [
        (LocalMode.CLUSTER_CIDR, None, "10.244.0.0/16"),
        (LocalMode.CLUSTER_CIDR, NODE, "10.244.0.0/16"),
        (LocalMode.NODE_CIDR, None, ""),
        (LocalMode.NODE_CIDR, NODE, "10.244.1.0/24"),
        (LocalMode.BRIDGE_INTERFACE, NODE, ""),
        (LocalMode.INTERFACE_NAME_PREFIX, NODE, ""),
    ],
)
def test_who_is_a_pod(mode: LocalMode, node: Node | None, expected: str) -> None:
    traffic = LocalTraffic(mode, (parse_network("10.244.0.0/16"),))
    rules = NodeRules(Settings(HOSTNAME, local_traffic=traffic), lambda: ())
    assert " ".join(map(str, rules.routing(node).pod_networks)) == expected


def test_new_addresses_of_interfaces_move_node_ports() -> None:
    stage = Stage(node_ports=EVERYWHERE)
    stage.local_addresses = INTERFACES[:1]
    stage.begin(service("web", 1, node_port=30080), endpoint_slice("web", ["10.244.1.5"]))
    stage.local_addresses = (parse_address("172.30.0.55"),)
    stage.agent.addresses_changed()
    stage.settle()
    kernel = stage.dataplane.kernel
    assert kernel["node-port-addresses4"].keys() == {parse_address("172.30.0.55")}
    assert len(kernel["node-ports4"]) == 1


def test_an_address_more_is_one_row_and_no_routing() -> None:
    stage = Stage(node_ports=EVERYWHERE)
    stage.local_addresses = INTERFACES
    services = [service(f"web-{n}", n, node_port=30080 + n) for n in range(1, 20)]
    stage.begin(*services, *(endpoint_slice(each.name.name, ["10.244.1.5"]) for each in services))
    stage.address_reads = 0
    stage.local_addresses = (*INTERFACES, new := parse_address("203.0.113.7"))
    stage.agent.addresses_changed()
    assert stage.is_due()
    stage.settle()
    assert stage.address_reads == 1
    delta = stage.dataplane.commits[-1]
    assert (delta.add, delta.remove) == ({"node-port-addresses4": {new: b""}}, {})
    assert not stage.recorder.commits[-1].routings
    assert new in stage.recorder.commits[-1].node_port_addresses


def test_an_address_more_routes_its_users_and_divided_node_ports_alone() -> None:
    stage = Stage(node_ports=EVERYWHERE, ui=ListenAddress(INTERFACES[0], 30082))
    stage.local_addresses = INTERFACES
    services = [service(f"web-{n}", n, node_port=30080 + n) for n in range(1, 20)]
    new = parse_address("203.0.113.7")
    # The agent listens at one address of web-2's node port, and web-5 has the new one.
    services[4] = msgspec.structs.replace(services[4], external_ips=(new,))
    stage.begin(*services, *(endpoint_slice(each.name.name, ["10.244.1.5"]) for each in services))
    stage.local_addresses = (*INTERFACES, new)
    stage.agent.addresses_changed()
    written = len(stage.recorder.commits)
    stage.settle()
    routed = [{*each.routings} for each in stage.recorder.commits[written:]]
    assert set().union(*routed) == {services[1].name, services[4].name}


def test_addresses_are_read_again_after_a_sync_that_failed() -> None:
    stage = Stage(node_ports=EVERYWHERE)
    stage.local_addresses = INTERFACES[:1]
    stage.begin(service("web", 1, node_port=30080), endpoint_slice("web", ["10.244.1.5"]))
    stage.local_addresses = (parse_address("203.0.113.7"),)
    stage.agent.addresses_changed()
    # Its notification comes while the sync fails.
    stage.local_addresses = (parse_address("203.0.113.8"),)
    stage.dataplane.trouble = [TransientKernelError("EBUSY", errno.EBUSY)]
    stage.agent.addresses_changed()
    stage.settle()
    kernel = stage.dataplane.kernel
    assert kernel["node-port-addresses4"].keys() == {parse_address("203.0.113.8")}


LARGE = tuple(map(parse_network, ["10.9.0.0/16", "fd09::/64"]))


@pytest.mark.parametrize(
    ("mode", "flag", "left_out"),
    [
        (ProxyMode.NFTABLES, "primary", ""),
        (ProxyMode.NFTABLES, "all", "10.9.0.0/16 fd09::/64"),
        (ProxyMode.NFTABLES, "10.9.8.0/24", "10.9.0.0/16"),
        (ProxyMode.NFTABLES, "10.0.0.0/8", "10.9.0.0/16"),
        (ProxyMode.NFTABLES, "10.8.0.0/16", ""),
        (ProxyMode.IPVS, "0.0.0.0/0", "10.9.0.0/16"),
        # One rule serves all local addresses.
        (ProxyMode.IPTABLES, "all", ""),
        (ProxyMode.IPTABLES, "0.0.0.0/0,fd00::/8", "fd09::/64"),
    ],
)
def test_local_networks_that_are_left_out_are_named(
    mode: ProxyMode, flag: str, left_out: str
) -> None:
    settings = Settings(HOSTNAME, mode=mode, node_ports=node_ports(flag))
    rules = NodeRules(settings, lambda: INTERFACES, large_networks=lambda: LARGE)
    routing = rules.routing(NODE)
    assert " ".join(map(str, routing.left_out)) == left_out
    # Those that one rule serves have node ports all the same.
    for network in LARGE:
        is_served = mode is ProxyMode.IPTABLES and str(network) not in left_out
        assert routing.has_node_ports(network.last) is is_served
    for problem in network_problems(routing.left_out):
        assert f"local routes to {left_out.replace(' ', ', ')}, which are more" in str(problem)


@pytest.mark.parametrize("family", Family)
def test_a_family_without_any_address_is_not_served_until_the_node_has_one(
    family: Family, caplog: pytest.LogCaptureFixture
) -> None:
    both = (parse_address("127.0.0.1"), parse_address("::1"))
    stage = Stage()
    stage.local_addresses = tuple(each for each in both if family_of(each) is not family)
    # Two cluster IPs, and the Node has addresses of both families.
    dual = msgspec.structs.replace(
        service("web", 1, node_port=30080),
        cluster_ips=(parse_address("10.96.0.1"), parse_address("fd00:10:96::1")),
        families=tuple(Family),
    )
    six = endpoint_slice("web", ["fd10:1::5"], number=1)
    six = msgspec.structs.replace(six, family=Family.IPV6)
    stage.begin(dual, endpoint_slice("web", ["10.244.1.5"]), six)
    own, other = (f"services{each.value}" for each in (family, *({*Family} - {family})))
    assert not stage.dataplane.kernel.get(own)
    assert stage.dataplane.kernel[other]
    assert not stage.agent.problems()
    for _ in range(2):
        stage.agent.addresses_changed()
    assert stage.agent.due() is None
    (line,) = (each for each in caplog.messages if "not served" in each)
    assert line.startswith(f"{family.label} is not served: this node has no {family.label}")
    stage.local_addresses = both
    stage.agent.addresses_changed()
    stage.settle()
    assert stage.dataplane.kernel[own]


def test_addresses_that_do_not_matter_touch_nothing() -> None:
    stage = Stage()
    stage.begin(service("web", 1, node_port=30080), endpoint_slice("web", ["10.244.1.5"]))
    stage.local_addresses = INTERFACES
    stage.agent.addresses_changed()
    assert stage.agent.due() is None


def test_what_is_wrong_with_the_node_is_told() -> None:
    stage = Stage()
    stage.begin()
    problem = Problem("Node", HOSTNAME, "spec.podCIDRs[0]", "'x' is not a CIDR; ignored")
    stage.handle_event(msgspec.structs.replace(NODE, problems=(problem,)))
    assert stage.reported == [problem]
    assert stage.metrics_by_kind()["Node"] == 1
    stage.settle()
    assert stage.metrics_by_kind()["Node"] == 1


@pytest.mark.parametrize(
    ("flag", "asked"),
    [
        ("localhost", True),
        ("127.0.0.0/8", True),
        ("127.0.0.1/32", True),
        ("0.0.0.0/0", True),
        ("primary", False),
        ("all", False),
        ("::1/128", False),
        ("10.0.0.0/8,::/0", False),
    ],
)
def test_who_asks_for_loopback_addresses(flag: str, asked: bool) -> None:
    assert node_ports(flag).serves_loopback is asked


def test_a_sysctl_that_cannot_be_set_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = NodeKernel(None, tmp_path)
    caplog.set_level(logging.INFO)
    kernel.prepare_loopback(node_ports("primary"))
    assert caplog.messages == []
    kernel.prepare_loopback(node_ports("localhost"))
    warning, about_ipv6 = caplog.messages
    assert "cannot set net.ipv4.conf.all.route_localnet to 1: ENOENT" in warning
    assert "::1" in about_ipv6
