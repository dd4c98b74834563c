"""Routes and sysctls of nodes as network plugins and clouds make them: none of them is a fault."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.config.modes import ProxyMode
from pyproxy.hostnet.devices import read_devices
from pyproxy.hostnet.path_facts import PathFacts
from pyproxy.hostnet.read import read_path
from pyproxy.inspect.agent_facts import AgentFacts
from pyproxy.inspect.explain.path_routes import routes
from pyproxy.inspect.explain.path_switches import switches
from pyproxy.inspect.explain.step import Result, Step
from pyproxy.inspect.service_paths import service_paths
from pyproxy.model.address import Family
from pyproxy.model.objects import Endpoint, Node
from tests.builders import HOST, ip, slice_of, web, with_node_port
from tests.inspect.facts import NETWORKS, agent_facts, facts
from tests.namespaces import empty_namespace
from tests.waiting import until

pytestmark = pytest.mark.kernel

UPLINK = (
    "link set lo up",
    "link add eth0 type veth peer name eth0-peer",
    "addr add 172.30.0.11/24 dev eth0",
    "link set eth0 up",
    "link set eth0-peer up",
)
DEFAULT = "route add default via 172.30.0.1"
NODE = Node(HOST, (ip("172.30.0.11"),), (NETWORKS[0],))
HERE, ALSO_HERE, THERE = "10.244.1.11", "10.244.1.12", "10.244.2.11"
BRIDGE_NETFILTER = Path("/proc/sys/net/bridge")
STRICT = {"ipv4/conf/all/rp_filter": 1}


class Plugin(msgspec.Struct, frozen=True):
    """The `ip` commands and sysctls of a node; `results` are those of both steps."""

    commands: Sequence[str]
    sysctls: dict[str, int] = {}
    node: Node = NODE
    local: str = HERE
    there: str = THERE
    results: tuple[Result, Result] = (Result.OK, Result.OK)


def cable(name: str, address: str) -> Iterator[str]:
    """Make a pod's interface and its route, as plugins without a bridge do."""
    yield f"link add {name} type veth peer name {name}-peer"
    yield f"link set {name} up"
    yield f"link set {name}-peer up"
    yield f"route add {address} dev {name} scope link"


PODS = (*cable("cali1", HERE), *cable("cali2", ALSO_HERE))
BRIDGE = (
    "link add cni0 type bridge",
    "addr add 10.244.1.1/24 dev cni0",
    "link add veth1 type veth peer name veth1-peer",
    "link set veth1 master cni0 up",
    "link set veth1 type bridge_slave hairpin on",
    "link set veth1-peer up",
    "link set cni0 up",
)

HEALTHY: dict[str, Plugin] = {
    "Calico with BGP": Plugin(
        (
            *UPLINK,
            DEFAULT,
            *PODS,
            "route add blackhole 10.244.1.0/24",
            "route add 10.244.2.0/24 via 172.30.0.12",
        ),
        STRICT,
    ),
    "Calico without a pod of the Service here": Plugin(
        (
            *UPLINK,
            DEFAULT,
            *cable("cali1", "10.244.1.99"),
            "route add blackhole 10.244.1.0/24",
            "route add 10.244.2.0/24 via 172.30.0.12",
        ),
        STRICT,
        local="",
    ),
    "flannel with VXLAN": Plugin(
        (
            *UPLINK,
            DEFAULT,
            "link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 nolearning",
            "addr add 10.244.1.0/32 dev flannel.1",
            "link set flannel.1 mtu 1450 up",
            *BRIDGE,
            "link set veth1 mtu 1450",
            "link set cni0 mtu 1450",
            "route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
            "neigh add 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
        ),
    ),
    "a bridge, and no default route": Plugin(
        (*UPLINK, *BRIDGE, "route add 10.244.2.0/24 via 172.30.0.12"),
        # This node itself does not reach cluster IPs, which is so.
        results=(Result.OK, Result.FAILED),
    ),
    "a cloud that routes pods at its gateway": Plugin(
        (*UPLINK, DEFAULT, *BRIDGE), results=(Result.OK, Result.UNDECIDED)
    ),
    "pods with addresses of the cloud's network": Plugin(
        (
            *UPLINK,
            DEFAULT,
            *cable("eni1", "172.30.0.51"),
            "link add eth1 type veth peer name eth1-peer",
            "link set eth1 up",
            "link set eth1-peer up",
            "route add 172.30.0.1 dev eth1 table 2",
            "route add default via 172.30.0.1 dev eth1 table 2",
            "rule add from 172.30.0.51 lookup 2 pref 1536",
            "rule add to 172.30.0.51 lookup main pref 512",
            "rule add fwmark 0x80/0x80 lookup main pref 1024",
        ),
        {"ipv4/conf/eth0/rp_filter": 2},
        node=Node(HOST, (ip("172.30.0.11"),)),
        local="172.30.0.51",
        there="172.30.0.77",
    ),
    "two uplinks": Plugin(
        (
            *UPLINK,
            "link add eth1 type veth peer name eth1-peer",
            "addr add 198.51.100.11/24 dev eth1",
            "link set eth1 up",
            "link set eth1-peer up",
            "route add default via 198.51.100.1",
            *PODS,
            "route add 10.244.2.0/24 via 172.30.0.12",
        ),
        STRICT,
    ),
}


@pytest.fixture
def here() -> Iterator[Namespace]:
    with empty_namespace("hostnet") as made:
        made.sysctl({"ipv4/ip_forward": 1, "ipv4/conf/all/rp_filter": 0})
        yield made


def agent_of(plugin: Plugin) -> AgentFacts:
    endpoints = [Endpoint(ip(plugin.there), node="node-b")]
    if plugin.local:
        endpoints.append(Endpoint(ip(plugin.local), node=HOST))
    service = web(ports=with_node_port(), families=(Family.IPV4,))
    return agent_facts(service, [slice_of(*endpoints)], node=plugin.node)


def _have_carrier() -> bool:
    return all(link.carrier for link in read_devices().links.values() if link.up)


def steps(here: Namespace, agent: AgentFacts) -> tuple[Step, Step, PathFacts]:
    # The kernel notices the carrier of a new device a little later.
    until(lambda: here.call(_have_carrier), "all devices have a carrier")
    path = here.call(lambda: read_path(service_paths(agent, None)))
    known = facts(agent, path)
    return switches(known), routes(known), path


@pytest.mark.parametrize("plugin", HEALTHY.values(), ids=HEALTHY)
def test_a_network_plugin_has_no_fault(here: Namespace, plugin: Plugin) -> None:
    here.ip(plugin.commands)
    here.sysctl(plugin.sysctls)
    *found, _ = steps(here, agent_of(plugin))
    results = tuple(step.result for step in found)
    if not BRIDGE_NETFILTER.exists() and results[0] is Result.UNDECIDED:
        assert "bridge-nf-call" in found[0].message
        results = (Result.OK, results[1])
    assert results == plugin.results, found


@pytest.mark.parametrize("mode", ProxyMode)
def test_a_rule_by_mark_or_source_does_not_divert_packets_of_ipvs(
    here: Namespace, mode: ProxyMode
) -> None:
    plugin = HEALTHY["Calico with BGP"]
    here.ip([*plugin.commands, "rule add fwmark 0x4000/0x4000 prohibit pref 10"])
    agent = agent_of(plugin)
    settings = msgspec.structs.replace(agent.settings, mode=mode)
    _, found, _ = steps(here, msgspec.structs.replace(agent, settings=settings))
    assert (found.result is Result.OK) is (mode is ProxyMode.IPVS), found


def test_without_a_default_route_this_node_does_not_reach_cluster_ips(here: Namespace) -> None:
    plugin = HEALTHY["a bridge, and no default route"]
    here.ip(plugin.commands)
    _, found, _ = steps(here, agent_of(plugin))
    assert found.message == (
        "no route to 10.244.1.11:8080, 10.244.2.11:8080 for this node's own packets to "
        "10.96.0.1:80/tcp, which it routes before translation (ENETUNREACH)"
    )
    assert found.details == ()
