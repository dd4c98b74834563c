"""`pyproxy explain` beyond pyproxy's rules: sysctls, routes and neighbours of a node.

Each planted fault fails its step alone; a healthy node has no failed step.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import LabError
from pyproxy_lab.probe import probe

from pyproxy.model.destination import parse_destination
from tests.agent.live import endpoint_slice, service
from tests.inspect.node import ENOUGH, NAMESPACE, SITE, CommandResult, InspectedNode, inspected_node
from tests.waiting import PATIENCE

pytestmark = [pytest.mark.kernel, pytest.mark.modes("nftables", "iptables-nft")]

BRIDGE_NETFILTER = Path("/proc/sys/net/bridge")
TARGET = f"{NAMESPACE}/web"
ADDRESS, ADDRESS6 = "10.96.0.60", "fd00:10:96::60"
NODE_PORT = "172.30.0.11:30060"
A1, A2, B1, B2 = "10.244.1.11", "10.244.1.12", "10.244.2.11", "10.244.2.12"
B1_6 = "fd10:2::11"
CLIENT = "172.30.0.100"
TO_B = "ip route replace 10.244.2.0/24 via 172.30.0.12"
DEFAULT = "ip route replace default via 172.30.0.1"
POD, NODE = "packets from a pod on this node", "packets from this node"

# The kernel removes a device's routes with its state, and IPv6 addresses too.
ETH0_UP = (
    "ip link set eth0 up",
    DEFAULT,
    TO_B,
    "ip addr replace fd30::11/64 dev eth0 nodad",
    "ip route replace default via fd30::1",
    "ip route replace fd10:2::/64 via fd30::12",
)
CBR0_UP = ("ip link set cbr0 up", "ip addr replace fd10:1::1/64 dev cbr0 nodad")


class Fault(msgspec.Struct, frozen=True):
    """Commands that plant a fault, and those that undo it.

    `step` fails with a message that has each of `words`. `client` is a pod or the outside client
    whose connections to `target` fail then; empty if they would only fail with large packets.
    """

    plant: Sequence[str]
    undo: Sequence[str]
    step: str
    words: Sequence[str]
    target: str = TARGET
    source: str = ""
    client: str = ""


def sysctl(name: str, value: int = 0, otherwise: int = 1, **fields: Any) -> Fault:
    return Fault(
        [f"sysctl -w net.{name}={value}"],
        [f"sysctl -w net.{name}={otherwise}"],
        "switches",
        [f"net.{name} is {value}: "],
        **fields,
    )


def refusing(kind: str) -> Fault:
    return Fault(
        [f"ip route replace {kind} 10.244.2.0/24"],
        [TO_B],
        "routes",
        [f"the route {kind} 10.244.2.0/24 (table main) refuses {B1}:8080, {B2}:8080: {POD}"],
        client="a1",
    )


def refusing_rule(rule: str, text: str = "", endpoint: str = B1) -> Fault:
    return Fault(
        [f"ip rule add {rule} pref 100"],
        ["ip rule del pref 100"],
        "routes",
        [f"the policy rule 100: {text or rule} refuses {endpoint}:8080"],
    )


def refusing_behind(*rules: str) -> Fault:
    """Return a route that refuses packets behind policy rules that do not match them."""
    return Fault(
        [*(f"ip rule add {rule}" for rule in rules), "ip route replace prohibit 10.244.2.0/24"],
        [TO_B, *(f"ip rule del {rule}" for rule in rules)],
        "routes",
        [f"the route prohibit 10.244.2.0/24 (table main) refuses {B1}:8080, {B2}:8080: {POD}"],
    )


FAULTS: dict[str, Fault] = {
    "forwarding": sysctl("ipv4.ip_forward", client="a1"),
    "forwarding from pods": sysctl("ipv4.conf.cbr0.forwarding", client="a1"),
    "forwarding of replies": sysctl("ipv4.conf.eth0.forwarding", client="a1"),
    "IPv6 forwarding": sysctl("ipv6.conf.all.forwarding"),
    "TTL of this node's packets": sysctl("ipv4.ip_default_ttl", 1, 64, client=SITE),
    "conntrack that forgets": sysctl(
        "netfilter.nf_conntrack_tcp_timeout_syn_sent", 0, 120, client="a1"
    ),
    "conntrack that forgets responses": sysctl(
        "netfilter.nf_conntrack_tcp_timeout_established", 0, 432000
    ),
    "no IPv6 for pods": Fault(
        ["sysctl -w net.ipv6.conf.cbr0.disable_ipv6=1"],
        ["sysctl -w net.ipv6.conf.cbr0.disable_ipv6=0", CBR0_UP[1]],
        "switches",
        ["net.ipv6.conf.cbr0.disable_ipv6 is 1: the Service's IPv6 packets do not pass"],
    ),
    "no IPv6": Fault(
        ["sysctl -w net.ipv6.conf.all.disable_ipv6=1"],
        ["sysctl -w net.ipv6.conf.all.disable_ipv6=0", CBR0_UP[1], *ETH0_UP[3:]],
        "switches",
        ["net.ipv6.conf.all.disable_ipv6 is 1: the Service's IPv6 packets do not pass"],
    ),
    "strict rp_filter, asymmetric client": Fault(
        [
            "sysctl -w net.ipv4.conf.all.rp_filter=1",
            f"ip route add {CLIENT} dev mgmt",
        ],
        [
            "sysctl -w net.ipv4.conf.all.rp_filter=0",
            f"ip route del {CLIENT} dev mgmt",
        ],
        "switches",
        [
            f"rp_filter of eth0 is strict: packets from {CLIENT} that arrive there are dropped, "
            "because the route back is through mgmt"
        ],
        target=NODE_PORT,
        source=CLIENT,
        client="ext",
    ),
    "loose rp_filter, no route back": Fault(
        ["sysctl -w net.ipv4.conf.eth0.rp_filter=2", "ip route del default"],
        ["sysctl -w net.ipv4.conf.eth0.rp_filter=0", DEFAULT],
        "switches",
        ["rp_filter of eth0 is loose: packets from 203.0.113.9", "there is no route back"],
        target=NODE_PORT,
        source="203.0.113.9",
    ),
    "no route to another node's pods": Fault(
        ["ip route del 10.244.2.0/24"],
        [TO_B],
        "routes",
        [
            f"no route to {B1}:8080, {B2}:8080: only the default route leads there, through "
            "172.30.0.1 on eth0, while there is a route to other pods (fd10:2::/64)"
        ],
        client="a1",
    ),
    "no route at all": Fault(
        ["ip route del 10.244.2.0/24", "ip route del default"],
        [DEFAULT, TO_B],
        "routes",
        [f"no route to {B1}:8080, {B2}:8080 for {POD} (ENETUNREACH)"],
        client="a1",
    ),
    "no route to the frontend": Fault(
        ["ip route del default"],
        [DEFAULT],
        "routes",
        [
            f"for this node's own packets to {ADDRESS}:80/tcp, which it routes before translation "
            "(ENETUNREACH)"
        ],
        target=f"{ADDRESS}:80",
        client=SITE,
    ),
    "route that refuses cluster IPs": Fault(
        ["ip route add unreachable 10.96.0.0/12"],
        ["ip route del unreachable 10.96.0.0/12"],
        "routes",
        [
            "the route unreachable 10.96.0.0/12 (table main) refuses this node's own packets to "
            f"{ADDRESS}:80/tcp, which it routes before translation: they do not reach {A1}:8080"
        ],
        target=f"{ADDRESS}:80",
        client=SITE,
    ),
    "no route to pods here": Fault(
        ["ip route del 10.244.1.0/24"],
        ["ip route add 10.244.1.0/24 dev cbr0 src 10.244.1.1"],
        "routes",
        [f"{A1}:8080, {A2}:8080 is on this node, but only the default route leads to it"],
    ),
    "blackhole": refusing("blackhole"),
    "unreachable": refusing("unreachable"),
    "prohibit": refusing("prohibit"),
    "throw": Fault(
        ["ip route replace throw 10.244.2.0/24"],
        ["ip route del throw 10.244.2.0/24", TO_B],
        "routes",
        [f"no route to {B1}:8080, {B2}:8080 for {POD} (ENETUNREACH)"],
        client="a1",
    ),
    "rule that prohibits pods": refusing_rule(
        "from 10.244.1.0/24 prohibit", endpoint=f"{A1}:8080, {A2}:8080, {B1}"
    ),
    "rule that is a black hole for marks": refusing_rule(
        "fwmark 0x4000/0x4000 blackhole", "from all fwmark 0x4000/0x4000 blackhole", f"{A1}"
    ),
    "rule that prohibits a device's packets": refusing_rule(
        "to 10.244.2.0/24 iif cbr0 unreachable",
        "from all to 10.244.2.0/24 iif cbr0 unreachable",
    ),
    "rule that prohibits a port": refusing_rule(
        "to 10.244.2.0/24 ipproto tcp dport 8000-8080 prohibit",
        "from all to 10.244.2.0/24 ipproto tcp dport 8000-8080 prohibit",
    ),
    "rule that prohibits a user's packets": refusing_rule(
        "to 10.244.2.0/24 uidrange 0-9 prohibit", "from all to 10.244.2.0/24 uidrange 0-9 prohibit"
    ),
    # The network that is left out is that of the API server.
    "rule that prohibits all but one network": refusing_rule(
        "not to 10.248.0.0/13 prohibit",
        "not from all to 10.248.0.0/13 prohibit",
        f"{A1}:8080, {A2}:8080, {B1}",
    ),
    "route behind a rule for another protocol": refusing_behind(
        "to 10.244.2.0/24 ipproto udp prohibit pref 40"
    ),
    "route behind a rule for another port": refusing_behind(
        "to 10.244.2.0/24 ipproto tcp dport 1 prohibit pref 40"
    ),
    "route behind a rule for a client's port": refusing_behind(
        "to 10.244.2.0/24 ipproto tcp sport 1 prohibit pref 40"
    ),
    "route behind a rule for another user": refusing_behind(
        "to 10.244.2.0/24 uidrange 1000-2000 prohibit pref 40"
    ),
    "route behind an inverted rule": refusing_behind(
        "not to 10.0.0.0/8 iif cbr0 lookup 100 pref 30",
        "not from 0.0.0.0/1 prohibit pref 40",
    ),
    "route behind a rule that is passed over": refusing_behind(
        "goto 32766 pref 40", "to 10.244.2.0/24 prohibit pref 50"
    ),
    "black hole as a nexthop object": Fault(
        ["ip nexthop add id 7 blackhole", "ip route replace 10.244.2.0/24 nhid 7"],
        [TO_B, "ip nexthop del id 7"],
        "routes",
        [
            "the route 10.244.2.0/24 nhid 7 (table main), a blackhole nexthop, refuses "
            f"{B1}:8080, {B2}:8080: {POD}"
        ],
        client="a1",
    ),
    "black hole in a group of nexthop objects": Fault(
        [
            "ip nexthop add id 7 blackhole",
            "ip nexthop add id 8 group 7",
            "ip route replace 10.244.2.0/24 nhid 8",
        ],
        [TO_B, "ip nexthop del id 8", "ip nexthop del id 7"],
        "routes",
        ["the route 10.244.2.0/24 nhid 8 (table main), a blackhole nexthop, refuses "],
    ),
    "black hole of IPv6 as a nexthop object": Fault(
        [
            "ip -6 nexthop add id 7 blackhole",
            "ip route del fd10:2::/64",
            "ip route add fd10:2::/64 nhid 7",
        ],
        ["ip nexthop del id 7", "ip route replace fd10:2::/64 via fd30::12"],
        "routes",
        [
            "the route fd10:2::/64 nhid 7 (table main), a blackhole nexthop, refuses "
            f"[{B1_6}]:8080: {POD}"
        ],
    ),
    "table that refuses": Fault(
        [
            "ip route add prohibit default table 100",
            "ip rule add from 10.244.1.0/24 lookup 100 pref 100",
        ],
        ["ip rule del pref 100", "ip route flush table 100"],
        "routes",
        ["the route prohibit default (table 100) refuses"],
    ),
    "rule that diverts marks": Fault(
        [
            "ip route add default via 172.30.0.1 table 100",
            "ip rule add fwmark 0x4000/0x4000 lookup 100 pref 100",
        ],
        ["ip rule del pref 100", "ip route flush table 100"],
        "routes",
        [
            "a policy rule diverts packets with the mark 0x4000 to table 100: they go to ",
            "through 172.30.0.1 on eth0 instead of 172.30.0.12 on eth0",
        ],
        client=SITE,
    ),
    "replies that are refused": Fault(
        [f"ip route add prohibit {CLIENT}"],
        [f"ip route del prohibit {CLIENT}"],
        "routes",
        [f" to {CLIENT} do not pass: the route prohibit {CLIENT}/32 (table main) refuses them"],
        target=NODE_PORT,
        source=CLIENT,
        client="ext",
    ),
    "next hop that does not answer": Fault(
        ["ip neigh replace 172.30.0.12 dev eth0 nud failed"],
        ["ip neigh del 172.30.0.12 dev eth0"],
        "routes",
        [
            f"the next hop to {B1}:8080, {B2}:8080 does not answer ARP: 172.30.0.12 on eth0",
        ],
    ),
    "next hop of IPv6 that does not answer": Fault(
        ["ip neigh replace fd30::12 dev eth0 nud failed"],
        ["ip neigh del fd30::12 dev eth0"],
        "routes",
        [f"the next hop to [{B1_6}]:8080 does not answer neighbour discovery: fd30::12 on eth0"],
    ),
    "one of two next hops that does not answer": Fault(
        [
            "ip neigh replace 172.30.0.77 dev eth0 nud failed",
            "sysctl -w net.ipv4.fib_multipath_hash_policy=1",
            f"{TO_B.replace('via', 'nexthop via')} nexthop via 172.30.0.77",
        ],
        [
            TO_B,
            "sysctl -w net.ipv4.fib_multipath_hash_policy=0",
            "ip neigh del 172.30.0.77 dev eth0",
        ],
        "routes",
        [
            f"one of the next hops to {B1}:8080",
            " does not answer ARP: 172.30.0.77 on eth0",
        ],
        client="a1",
    ),
    "one of two next hops of IPv6 that does not answer": Fault(
        [
            "ip neigh replace fd30::77 dev eth0 nud failed",
            "ip route replace fd10:2::/64 nexthop via fd30::12 nexthop via fd30::77",
        ],
        [
            "ip route replace fd10:2::/64 via fd30::12",
            "ip neigh del fd30::77 dev eth0",
        ],
        "routes",
        [
            f"one of the next hops to [{B1_6}]:8080 does not answer neighbour discovery: fd30::77 "
            "on eth0"
        ],
    ),
    "one of two next hops as objects that does not answer": Fault(
        [
            "ip neigh replace 172.30.0.77 dev eth0 nud failed",
            "ip nexthop add id 1 via 172.30.0.12 dev eth0",
            "ip nexthop add id 2 via 172.30.0.77 dev eth0",
            "ip nexthop add id 3 group 1/2",
            "ip route replace 10.244.2.0/24 nhid 3",
        ],
        [TO_B, "ip nexthop flush", "ip neigh del 172.30.0.77 dev eth0"],
        "routes",
        [" does not answer ARP: 172.30.0.77 on eth0"],
    ),
    "one of two ways without carrier": Fault(
        [
            "ip link add v7 type veth peer name v8",
            "ip link set v7 up",
            "ip addr add 172.31.0.1/24 dev v7",
            "sysctl -w net.ipv4.fib_multipath_hash_policy=1",
            f"{TO_B.replace('via', 'nexthop via')} nexthop via 172.31.0.2",
        ],
        [TO_B, "sysctl -w net.ipv4.fib_multipath_hash_policy=0", "ip link del v7"],
        "routes",
        ["v7, ", f"to {B1}:8080, {B2}:8080", "has no carrier"],
        client="a1",
    ),
    "pod that does not answer": Fault(
        [f"ip neigh replace {A2} dev cbr0 nud failed"],
        [f"ip neigh del {A2} dev cbr0"],
        "routes",
        [f"{A2}:8080 does not answer ARP: {A2} on cbr0"],
    ),
    "interface that is down": Fault(
        ["ip link set eth0 down"],
        ETH0_UP,
        "routes",
        [f"no route to {A1}:8080", "(ENETUNREACH): eth0 is down"],
        client="a1",
    ),
    "bridge that is down": Fault(
        ["ip link set cbr0 down"],
        CBR0_UP,
        "routes",
        [f"{A1}:8080, {A2}:8080 is on this node, but only the default route leads to it"],
        client="a1",
    ),
    "interface without carrier": Fault(
        ["ip -n SWITCH link set v-na down"],
        ["ip -n SWITCH link set v-na up"],
        "routes",
        [f"eth0, the way to {B1}:8080, {B2}:8080, [{B1_6}]:8080, has no carrier"],
    ),
    "MTU less than the pods'": Fault(
        ["ip link set eth0 mtu 1400"],
        ["ip link set eth0 mtu 1500"],
        "routes",
        [
            f"eth0, the way to {B1}:8080, {B2}:8080, [{B1_6}]:8080, has MTU 1400, less than the "
            "pods' cbr0 (1500)"
        ],
    ),
    "tunnel whose packets do not fit": Fault(
        [
            "ip link add vx0 mtu 1500 type vxlan id 7 dstport 8472 remote 172.30.0.12",
            "ip link set vx0 up",
            "ip route replace 10.244.2.0/24 dev vx0",
        ],
        ["ip link del vx0", TO_B],
        "routes",
        [
            f"vx0, the way to {B1}:8080, {B2}:8080, has MTU 1500, but eth0 below it leaves only "
            "1450 (1500 less 50 for vxlan)"
        ],
    ),
    "rule that diverts pods": Fault(
        [
            "ip route add default via 172.30.0.1 table 100",
            "ip rule add from 10.244.1.0/24 lookup 100 pref 100",
        ],
        ["ip rule del pref 100", "ip route flush table 100"],
        "routes",
        [
            f"no route to {B1}:8080, {B2}:8080: only the default route of table 100 leads there, "
            "through 172.30.0.1 on eth0"
        ],
        client="a1",
    ),
    "Docker's network overlaps": Fault(
        [
            "ip link add docker0 type bridge",
            "ip link set docker0 up",
            "ip route del 10.244.2.0/24",
            "ip addr add 10.244.2.1/24 dev docker0",
        ],
        ["ip link del docker0", TO_B],
        "routes",
        [
            f"{B1}:8080, {B2}:8080 is on node-b, but docker0 has its network 10.244.2.0/24 too: "
            "packets do not leave this node"
        ],
        client="a1",
    ),
    "no answer to ARP": Fault(
        ["sysctl -w net.ipv4.conf.cbr0.arp_ignore=8"],
        ["sysctl -w net.ipv4.conf.cbr0.arp_ignore=0"],
        "switches",
        ["arp_ignore of cbr0 is 8: this node answers no ARP request there"],
    ),
    "endpoint's address on this node": Fault(
        [f"ip addr add {B1}/32 dev lo"],
        [f"ip addr del {B1}/32 dev lo"],
        "routes",
        [f"{B1}:8080 is an address of this node (lo), but its endpoint is on node-b"],
    ),
}


@pytest.fixture(scope="module")
def web(mode: LabMode) -> Iterator[InspectedNode]:
    """A node with a dual-stack Service, which has two endpoints here and three elsewhere."""
    with inspected_node(*mode.flags) as made:
        families = {"clusterIPs": [ADDRESS, ADDRESS6], "ipFamilies": ["IPv4", "IPv6"]}
        six = endpoint_slice("web", ["fd10:1::11"]) | {"addressType": "IPv6"}
        six["metadata"] |= {"name": "web-6"}
        six["endpoints"] = [
            {"addresses": ["fd10:1::11"], "nodeName": "node-a"},
            {"addresses": [B1_6], "nodeName": "node-b"},
        ]
        made.create(
            service("web", ADDRESS, 30060, **families),
            endpoint_slice("web", [A1, A2, B1, B2]),
            six,
        )
        yield made


def on_node(node: InspectedNode, commands: Sequence[str]) -> None:
    network = node.cluster.network
    for command in commands:
        words = command.replace("SWITCH", network.namespace("sw").name)
        network.namespace(SITE).run(shlex.split(words))


@contextlib.contextmanager
def planted(node: InspectedNode, fault: Fault) -> Iterator[None]:
    try:
        on_node(node, fault.plant)
        yield
    finally:
        # A neighbour that did not answer meanwhile would stay one that failed.
        for command in (*fault.undo, "ip neigh flush nud failed"):
            with contextlib.suppress(LabError):
                on_node(node, [command])


def explained(node: InspectedNode, target: str, source: str = "") -> CommandResult:
    return node.command("explain", target, "-o", "json", *(["--from", source] if source else []))


def explained_with(node: InspectedNode, fault: Fault) -> CommandResult:
    """Explain while a fault is planted."""
    with planted(node, fault):
        return explained(node, fault.target, fault.source)


def failed(result: CommandResult) -> list[str]:
    return [step["name"] for step in result.json["steps"] if step["result"] == "failed"]


def message(result: CommandResult, step: str) -> str:
    (found,) = (each for each in result.json["steps"] if each["name"] == step)
    return "\n".join([found["message"], *found["details"]])


def is_healthy(node: InspectedNode) -> bool:
    """Return whether no step fails, and the endpoints of both families are served."""
    result = explained(node, TARGET)
    return not failed(result) and message(result, "routes").startswith("6 endpoints: ")


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_fails_its_step(web: InspectedNode, fault: Fault) -> None:
    result = explained_with(web, fault)
    deadline = time.monotonic() + PATIENCE
    # The kernel may remove a failed neighbour entry before the command reads it.
    while fault.plant[0].endswith(" nud failed") and not failed(result):
        assert time.monotonic() < deadline, result.out
        result = explained_with(web, fault)
    assert failed(result) == [fault.step], result.out
    said = message(result, fault.step)
    for words in fault.words:
        assert words in said
    assert result.json["fix"]
    assert (result.status, result.json["ok"]) == (1, False)
    # The kernel and the agent notice some changes a little later.
    web.until(lambda: is_healthy(web), "the undone fault is gone")


@pytest.mark.packets
@pytest.mark.modes("nftables")
@pytest.mark.parametrize("name", [name for name, each in FAULTS.items() if each.client])
def test_a_planted_fault_breaks_connections(web: InspectedNode, name: str) -> None:
    fault = FAULTS[name]
    target = parse_destination(fault.target if ":" in fault.target else f"{ADDRESS}:80")
    client = web.cluster.network.namespace(fault.client)
    connect = partial(probe, target, tries=ENOUGH, timeout=0.1, at_once=ENOUGH)
    with planted(web, fault):
        outcome = client.call(connect)
        assert outcome.dropped or outcome.refused


def test_all_next_hops_of_a_route_are_listed(web: InspectedNode) -> None:
    several = Fault(
        [f"{TO_B.replace('via', 'nexthop via')} nexthop via 172.30.0.100"], [TO_B], "", []
    )
    with planted(web, several):
        said = message(explained(web, TARGET), "routes")
    assert "10.244.2.0/24 via 172.30.0.100 on eth0 or via 172.30.0.12 on eth0" in said


def test_a_healthy_node_has_no_failed_and_no_undecided_step(web: InspectedNode) -> None:
    targets = (
        (TARGET, ""),
        (f"{ADDRESS}:80", A2),
        (NODE_PORT, CLIENT),
        (f"{ADDRESS}:80", "127.0.0.1"),
        (f"{ADDRESS}:80", "10.244.1.1"),
        (f"[{ADDRESS6}]:80", "::1"),
    )
    for target, source in targets:
        result = explained(web, target, source)
        found = {step["name"]: step["result"] for step in result.json["steps"]}
        # Without br_netfilter a reply between pods may pass this node's conntrack by.
        switches = ("ok",) if BRIDGE_NETFILTER.exists() else ("ok", "undecided")
        assert found["switches"] in switches, result.out
        assert found["routes"] == "ok", result.out
        assert result.status == 0
    assert is_healthy(web)
