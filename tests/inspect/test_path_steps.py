"""Steps of the path whose faults cannot be planted on a machine that others use."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import Settings
from pyproxy.hostnet.devices import Devices
from pyproxy.hostnet.firewall.facts import FirewallFacts
from pyproxy.hostnet.not_read import NotRead
from pyproxy.hostnet.packet import FirstPacket, Origin, PacketPath, ServicePaths
from pyproxy.hostnet.path_facts import PathFacts
from pyproxy.hostnet.routes import FurtherRoute, PathRoutes, RouteFacts
from pyproxy.hostnet.switches import SwitchFacts
from pyproxy.inspect.explain.path_firewalls import firewalls
from pyproxy.inspect.explain.path_routes import routes
from pyproxy.inspect.explain.path_switches import switches
from pyproxy.inspect.explain.step import Result, Step
from pyproxy.inspect.facts import Facts
from pyproxy.inspect.service_paths import service_paths
from pyproxy.model.address import Family, Port, Protocol, backend, parse_network
from pyproxy.netlink.conntrack_statistics import ConntrackCounters
from pyproxy.netlink.links import Link
from pyproxy.netlink.routing import NUD_FAILED, NUD_INCOMPLETE, Neighbour, RouteReply
from tests.builders import HOST, ip, pod, slice_of, web
from tests.inspect.facts import agent_facts, facts

TABLE = {"netfilter.nf_conntrack_count": 10, "netfilter.nf_conntrack_max": 1000}
LINKS = {2: Link(2, "eth0", mtu=1500), 3: Link(3, "cbr0", mtu=1500, kind="bridge")}
DEVICES = Devices(LINKS, {ip("172.30.0.11"): 2})


def packet(target: str, **fields: Any) -> FirstPacket:
    fields.setdefault("in_device", "cbr0")
    fields.setdefault("out_device", "eth0")
    return FirstPacket(
        Protocol.TCP, None, ip(target), Port(8080), sample=ip("10.244.1.9"), **fields
    )


def path(frontend: str = "10.96.0.1", origin: Origin = Origin.POD, **fields: Any) -> PacketPath:
    leaving = packet("10.244.2.1", **fields)
    return PacketPath(origin, packet(frontend), leaving, "node-b")


def facts_of(*paths: PacketPath, mode: ProxyMode = ProxyMode.NFTABLES, **parts: Any) -> Facts:
    agent = agent_facts(web(), [slice_of(pod("a1"))], settings=Settings(HOST, mode=mode))
    found = msgspec.structs.replace(service_paths(agent, None), paths=paths)
    return facts(agent, PathFacts(found, **parts))


def switches_of(*paths: PacketPath, **fields: Any) -> Step:
    values = TABLE | fields.pop("values", {})
    part = SwitchFacts(values, ("cbr0", "eth0"), fields.pop("conntrack", None))
    return switches(facts_of(*paths, switches=part, **fields))


def routes_of(*found: PathRoutes, **fields: Any) -> Step:
    paths = ServicePaths(tuple(each.path for each in found), cluster_networks=NETWORKS)
    part = RouteFacts(paths, DEVICES, found, **fields)
    return routes(facts_of(*paths.paths, routes=part, switches=NotRead("not read")))


NETWORKS = (parse_network("10.244.0.0/16"),)
ROUTE = RouteReply(device=2, gateway=ip("172.30.0.12"), table=254)


def route(**fields: Any) -> PathRoutes:
    fields.setdefault("network", parse_network("10.244.2.0/24"))
    return PathRoutes(path(), fields.pop("forward", ROUTE), ROUTE, **fields)


def test_a_full_conntrack_table_is_a_fault() -> None:
    found = switches_of(path(), values={"netfilter.nf_conntrack_count": 1000})
    assert (found.result, found.message) == (
        Result.FAILED,
        "the conntrack table is full: 1,000 of 1,000 entries; new connections are dropped",
    )


def test_an_almost_full_conntrack_table_is_a_note() -> None:
    dropped = ConntrackCounters(dropped=7)
    found = switches_of(path(), values={"netfilter.nf_conntrack_count": 950}, conntrack=dropped)
    assert found.result is Result.NOTE
    assert found.message.endswith(
        "the conntrack table is almost full; 7 packets were dropped so far"
    )


def test_what_conntrack_dropped_is_a_detail() -> None:
    found = switches_of(
        path(),
        values={"netfilter.nf_conntrack_tcp_be_liberal": 0},
        conntrack=ConntrackCounters(dropped=1, insert_failed=2, invalid=3456),
    )
    assert (found.result, found.details) == (
        Result.OK,
        (
            "conntrack so far: 1 packets dropped, 2 lost to another entry, 3,456 invalid "
            "(nf_conntrack_tcp_be_liberal is 0)",
        ),
    )


def test_a_node_port_on_a_loopback_address_needs_route_localnet() -> None:
    mine = path("127.0.0.1", Origin.NODE, in_device=None)
    found = switches_of(mine, values={"ipv4.conf.all.route_localnet": 0})
    assert found.result is Result.FAILED
    assert found.message == (
        "net.ipv4.conf.all.route_localnet is 0: packets to 127.0.0.1 cannot leave this node to "
        "10.244.2.1:8080"
    )
    # The kernel takes any integer, and each but 0 is on.
    for value in (1, 2, -1):
        for entry in ("all", "eth0"):
            values = {f"ipv4.conf.{entry}.route_localnet": value}
            assert switches_of(mine, values=values).result is Result.OK


@pytest.mark.parametrize("values", [{}, {"bridge.bridge-nf-call-iptables": 0}])
def test_pods_on_one_bridge_without_bridge_netfilter_are_undecided(values: dict[str, int]) -> None:
    same = msgspec.structs.replace(path(out_device="cbr0"), local=True)
    found = switches_of(same, values=values)
    assert found.result is Result.UNDECIDED
    assert found.message == (
        "net.bridge.bridge-nf-call-iptables is not 1: a reply from 10.244.2.1:8080 to a pod on the "
        "same bridge (cbr0) keeps the endpoint's address, unless pods reach each other through "
        "this node"
    )
    on = {"bridge.bridge-nf-call-iptables": 1}
    assert switches_of(same, values=on).result is Result.OK


def test_a_sysctl_of_the_mode_that_was_reset_is_a_fault() -> None:
    values = {"ipv4.vs.conntrack": 0, "ipv4.vs.conn_reuse_mode": 1}
    found = switches_of(path(), values=values, mode=ProxyMode.IPVS)
    assert (found.result, found.message) == (
        Result.FAILED,
        "net.ipv4.vs.conntrack is 0, but ipvs mode needs 1",
    )
    assert switches_of(path(), values=values).result is Result.OK


def test_ipv6_forwarding_that_is_forced_on_a_device_is_no_fault() -> None:
    six = packet("fd10:2::1")
    mine = PacketPath(Origin.POD, six, six, "node-b")
    off = {"ipv6.conf.all.forwarding": 0}
    assert switches_of(mine, values=off).result is Result.FAILED
    # An interface's own value is about router advertisements, and not about forwarding.
    own = {"ipv6.conf.all.forwarding": 1, "ipv6.conf.cbr0.forwarding": 0}
    assert switches_of(mine, values=own).result is Result.OK
    forced = off | {"ipv6.conf.cbr0.force_forwarding": 1}
    assert switches_of(mine, values=forced).result is Result.OK


def test_packets_that_are_not_forwarded_need_no_forwarding() -> None:
    off = {"ipv4.ip_forward": 0, "ipv4.conf.cbr0.forwarding": 0}
    assert switches_of(path(), values=off).result is Result.FAILED
    assert switches_of(path(origin=Origin.NODE, in_device=None), values=off).result is Result.OK
    assert switches_of(path(out_device=None), values=off).result is Result.OK


def test_a_full_neighbour_table_is_a_fault() -> None:
    part = RouteFacts(ServicePaths(), DEVICES, (), neighbours={Family.IPV4: 1024})
    limit = {"ipv4.neigh.default.gc_thresh3": 1024}
    found = switches_of(path(), values=limit, routes=part)
    assert (found.result, found.message) == (
        Result.FAILED,
        "the IPv4 neighbour table is full: 1,024 of 1,024 entries; this node does not reach "
        "further pods and nodes",
    )


def test_a_dummy_is_no_way_to_an_endpoint() -> None:
    links = LINKS | {2: Link(2, "dummy0", kind="dummy")}
    each = route()
    paths = ServicePaths((each.path,))
    part = RouteFacts(paths, Devices(links), (each,))
    step = routes(facts_of(*paths.paths, routes=part, switches=NotRead("not read")))
    assert step.result is Result.FAILED
    assert step.message == (
        "dummy0, the way to 10.244.2.1:8080, is a dummy, which drops all packets"
    )


def test_a_neighbour_that_did_not_answer_long_ago_is_undecided() -> None:
    assert routes_of(route(neighbour=Neighbour(NUD_FAILED, 3.0))).result is Result.FAILED
    found = routes_of(route(neighbour=Neighbour(NUD_FAILED, 7200.0)))
    assert (found.result, found.message) == (
        Result.UNDECIDED,
        "172.30.0.12 did not answer ARP on eth0 2 h ago, and no packet has asked since",
    )
    found = routes_of(route(neighbour=Neighbour(NUD_INCOMPLETE)))
    assert (found.result, found.message) == (
        Result.UNDECIDED,
        "172.30.0.12 has not answered ARP on eth0 yet",
    )


def test_pods_behind_the_default_route_alone_are_undecided() -> None:
    found = routes_of(route(network=parse_network("0.0.0.0/0")))
    assert (found.result, found.message) == (
        Result.UNDECIDED,
        "only the default route leads to 10.244.2.1:8080: 172.30.0.12 on eth0 must know the "
        "networks of all pods",
    )


def test_parts_of_a_step_that_were_not_read_are_undecided() -> None:
    refused = NotRead("rtnetlink: EPERM")
    part = RouteFacts(ServicePaths(), DEVICES, (route(),))
    found = routes(facts_of(path(), routes=part, switches=refused, marked=refused))
    assert (found.result, found.message) == (
        Result.UNDECIDED,
        "not read: the routes of packets with a mark: rtnetlink: EPERM",
    )
    found = firewalls(facts_of(path(), firewalls=FirewallFacts(), transforms=refused))
    assert (found.result, found.message) == (
        Result.UNDECIDED,
        "not read: traffic control and IPsec: rtnetlink: EPERM",
    )


def test_endpoints_that_are_not_examined_further_have_a_route() -> None:
    far = [backend(ip(f"10.244.{n}.1"), Port(8080)) for n in range(30, 34)]
    further = tuple(FurtherRoute(each, RouteReply(error=101)) for each in far)
    found = routes_of(route(), further=further)
    assert (found.result, found.message) == (
        Result.FAILED,
        "no route to 10.244.30.1:8080, 10.244.31.1:8080, 10.244.32.1:8080 and 1 more from this "
        "node (ENETUNREACH)",
    )
    further = tuple(FurtherRoute(each, ROUTE, by_default=True) for each in far)
    others = (parse_network("10.244.2.0/24"),)
    found = routes_of(route(), further=further, pod_routes=others)
    assert found.message.endswith(
        "and 1 more but the default, while there is one to other pods (10.244.2.0/24)"
    )
    assert routes_of(route(), further=further).result is Result.OK
