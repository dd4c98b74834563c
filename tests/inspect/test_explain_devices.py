"""`pyproxy explain` and what stops packets beside netfilter and routes.

These are traffic control, IPsec policies, ports of bridges and permanent neighbours.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from functools import partial

import msgspec
import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import LabError
from pyproxy_lab.probe import Outcome, probe

from pyproxy.model.destination import parse_destination
from tests.agent.live import endpoint_slice, service
from tests.inspect.node import ENOUGH, SITE, CommandResult, InspectedNode, inspected_node
from tests.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.packets, pytest.mark.modes("nftables")]

ADDRESS, NODE_PORT, CLIENT = "10.96.0.90", "172.30.0.11:30090", "172.30.0.100"
A1, A2, B1, B2 = "10.244.1.11", "10.244.1.12", "10.244.2.11", "10.244.2.12"
BOTH_B = f"{B1}:8080, {B2}:8080"
REMOTE = "10.96.0.91:80"
"""A Service with endpoints on the other node alone, so that no path leads to a pod here."""

ON_HOST, THIS_NODE = "10.96.0.92:80", "172.30.0.11"
"""A Service with an endpoint in this node's own network, and its address."""

OTHER_NODE = "172.30.0.12"
NO_POLICY = ("ip xfrm policy flush",)

CHAIN = (
    "nft add table inet other",
    "nft add chain inet other c '{ type filter hook prerouting priority -150; }'",
)
RESTARTED = ("ip link set v-a2 down", "ip link set v-a2 up")
REFUSED = ("ip rule add pref 50 fwmark 0x77 blackhole",)


class Fault(msgspec.Struct, frozen=True):
    """Commands that plant a fault, those that undo it, and the words of the step.

    Connections of the client to the target fail, unless the fault is `harmless`. Without a client
    they fail only if there are many.
    """

    plant: Sequence[str]
    undo: Sequence[str]
    words: str
    step: str = "firewalls"
    result: str = "undecided"
    harmless: bool = False
    client: str = "a1"
    target: str = f"{ADDRESS}:80"
    source: str = ""


def ports(setting: str) -> list[str]:
    return [f"ip link set v-{pod} type bridge_slave {setting}" for pod in ("a1", "a2")]


def policy(rest: str) -> list[str]:
    return [f"ip xfrm policy add src 0.0.0.0/0 dst 10.244.2.0/24 {rest}"]


def of_client(
    plant: Sequence[str], undo: Sequence[str], words: str, result: str = "failed", source: str = A1
) -> Fault:
    """Return a fault at the client's side of packets to another node."""
    return Fault(plant, undo, words, "routes", result, target=REMOTE, source=source)


FAULTS: dict[str, Fault] = {
    "queue that drops": Fault(
        ["tc qdisc add dev eth0 root blackhole"],
        ["tc qdisc del dev eth0 root"],
        "the queueing discipline blackhole of eth0 drops all packets",
        result="failed",
    ),
    "queue that limits": Fault(
        ["tc qdisc add dev eth0 root tbf rate 8bit burst 10 limit 10"],
        ["tc qdisc del dev eth0 root"],
        "the queueing discipline tbf of eth0 may delay and drop packets",
    ),
    "BPF filter": Fault(
        [
            "tc qdisc add dev eth0 clsact",
            "tc filter add dev eth0 egress bpf bytecode '1,6 0 0 2' da",
        ],
        ["tc qdisc del dev eth0 clsact"],
        "a tc filter (bpf) at egress of eth0 drops or redirects packets",
    ),
    "IPsec policy that blocks": Fault(
        policy("dir out action block"),
        NO_POLICY,
        "the IPsec policy 0.0.0.0/0 -> 10.244.2.0/24 dir out (block) stops packets from a pod on "
        f"this node to {BOTH_B}",
    ),
    "IPsec policy without a state": Fault(
        policy(f"dir out tmpl src 172.30.0.11 dst {OTHER_NODE} proto esp mode tunnel"),
        NO_POLICY,
        "the IPsec policy 0.0.0.0/0 -> 10.244.2.0/24 dir out (transform) stops packets",
    ),
    "IPsec default": Fault(
        ["ip xfrm policy setdefault fwd block"],
        ["ip xfrm policy setdefault fwd accept"],
        "the default IPsec policy blocks packets of direction fwd",
        result="failed",
    ),
    "isolated ports": Fault(
        ports("isolated on"),
        ports("isolated off"),
        "ports of cbr0 are isolated from each other (v-a1, v-a2)",
        "routes",
    ),
    "port without hairpin mode": Fault(
        ports("hairpin off"),
        ports("hairpin on"),
        "ports of cbr0 are without hairpin mode (v-a1, v-a2)",
        "routes",
    ),
    "locked port": Fault(
        ["bridge link set dev v-a2 locked on learning off", *RESTARTED],
        ["bridge link set dev v-a2 locked off learning on", *RESTARTED],
        "v-a2, a port of cbr0, is locked: packets of its pod, which may be ",
        "routes",
    ),
    "port that is down": Fault(
        ["ip link set v-a2 down"],
        ["ip link set v-a2 up"],
        "v-a2, a port of cbr0, is down: its pod, which may be ",
        "routes",
    ),
    "port that waits for the spanning tree": Fault(
        ["ip link set cbr0 type bridge stp_state 1", *RESTARTED],
        ["ip link set cbr0 type bridge stp_state 0", *RESTARTED],
        "v-a2, a port of cbr0, does not forward (state listening): its pod is not reached",
        "routes",
        "failed",
    ),
    "port taken out of its bridge": Fault(
        ["ip link set v-a2 nomaster"],
        ["ip link set v-a2 master cbr0", "ip link set v-a2 type bridge_slave hairpin on"],
        "v-a2 belongs to no bridge and has no address: its pod, which may be ",
        "routes",
    ),
    "permanent neighbour": Fault(
        [f"ip neigh replace {OTHER_NODE} lladdr 02:00:00:00:00:01 dev eth0 nud permanent"],
        [f"ip neigh del {OTHER_NODE} dev eth0"],
        f"the neighbour entry of {OTHER_NODE} on eth0 is permanent",
        "routes",
    ),
    "ARP switched off": Fault(
        ["ip link set eth0 arp off", "ip neigh flush dev eth0"],
        ["ip link set eth0 arp on", "ip neigh flush dev eth0"],
        f"eth0, the way to {BOTH_B}, does not use ARP or neighbour discovery (NOARP)",
        "routes",
        "failed",
    ),
    "route by lo": Fault(
        [f"ip route add {B1} dev lo"],
        [f"ip route del {B1} dev lo"],
        f"the route to {B1}:8080 is by lo",
        "routes",
        "failed",
    ),
    "bridge of clients that is down": of_client(
        ["ip link set cbr0 down"],
        ["ip link set cbr0 up", "ip addr replace fd10:1::1/64 dev cbr0 nodad"],
        "cbr0, the way back to pods on this node, is down",
        source="",
    ),
    "ARP switched off for clients": of_client(
        ["ip link set cbr0 arp off", "ip neigh flush dev cbr0"],
        ["ip link set cbr0 arp on", "ip neigh flush dev cbr0"],
        f"cbr0, the way back to {A1}, does not use ARP or neighbour discovery (NOARP)",
    ),
    "client's port that is down": of_client(
        ["ip link set v-a1 down"],
        ["ip link set v-a1 up"],
        f"v-a1, a port of cbr0, is down: its pod, which may be {A1}, is not reached",
        "undecided",
    ),
    "client's port taken out of its bridge": of_client(
        ["ip link set v-a1 nomaster"],
        ["ip link set v-a1 master cbr0", "ip link set v-a1 type bridge_slave hairpin on"],
        "v-a1 belongs to no bridge and has no address: its pod, which may be ",
        "undecided",
    ),
    "client's port that is disabled": of_client(
        ["bridge link set dev v-a1 state 0"],
        ["bridge link set dev v-a1 state 3"],
        "v-a1, a port of cbr0, does not forward (state disabled): packets of its pod, which may "
        f"be {A1}, do not pass",
        "undecided",
    ),
    "client's neighbour entry is permanent": of_client(
        [f"ip neigh replace {A1} lladdr 02:00:00:00:00:99 dev cbr0 nud permanent"],
        [f"ip neigh del {A1} dev cbr0"],
        f"the neighbour entry of {A1} on cbr0 is permanent",
        "undecided",
    ),
    "client's route by another device": of_client(
        [f"ip route add {A1} dev mgmt"],
        [f"ip route del {A1} dev mgmt"],
        f"replies of {BOTH_B} to {A1} leave by mgmt, while the pods of this node are on cbr0",
    ),
    "clients' route by another device": of_client(
        ["ip route add 10.244.1.0/25 dev mgmt", "ip route add 10.244.1.128/25 dev mgmt"],
        ["ip route del 10.244.1.0/25", "ip route del 10.244.1.128/25"],
        "to pods on this node leave by mgmt, while the pods of this node are on cbr0",
        source="",
    ),
    "client's route by another device, and strict rp_filter": msgspec.structs.replace(
        of_client(
            ["sysctl -w net.ipv4.conf.cbr0.rp_filter=1", f"ip route add {A1} dev mgmt"],
            ["sysctl -w net.ipv4.conf.cbr0.rp_filter=0", f"ip route del {A1} dev mgmt"],
            f"rp_filter of cbr0 is strict: packets from {A1} that arrive there are dropped, "
            "because the route back is through mgmt",
        ),
        step="switches",
    ),
    "client's address on this node": of_client(
        [f"ip addr add {A1}/32 dev lo"],
        [f"ip addr del {A1}/32 dev lo"],
        f"{A1} is an address of this node too (lo): the kernel drops packets that arrive with it",
    ),
    "loopback device that is down": Fault(
        ["ip link set lo down"],
        ["ip link set lo up"],
        f"lo is down: this node does not reach its own addresses, so not {THIS_NODE}:8080",
        "routes",
        "failed",
        client=SITE,
        target=ON_HOST,
    ),
    "policy rule for replies' port": Fault(
        ["ip rule add pref 50 ipproto tcp sport 8080 blackhole"],
        ["ip rule del pref 50"],
        "do not pass: the policy rule 50: from all ipproto tcp sport 8080 blackhole refuses them",
        "routes",
        "failed",
    ),
    "mark that a policy rule refuses": Fault(
        [*CHAIN, "nft add rule inet other c tcp dport 80 meta mark set 0x77", *REFUSED],
        ["nft delete table inet other", "ip rule del pref 50"],
        "a rule of another program sets the mark 0x77 on packets from a pod on this node to "
        f"{A1}:8080",
        "routes",
        "failed",
    ),
    "mark that a policy rule refuses on a part of the packets": Fault(
        [
            *CHAIN,
            "nft add rule inet other c tcp dport 80 meta mark set numgen random mod 2",
            "ip rule add pref 50 fwmark 1 blackhole",
        ],
        ["nft delete table inet other", "ip rule del pref 50"],
        f"a rule of another program may set the mark 0x1 on packets from a pod on this node to {A1}"
        ":8080",
        "routes",
    ),
    "mark by chance": Fault(
        [
            "iptables-nft -t mangle -I PREROUTING -p tcp --dport 80 -m statistic --mode random "
            "--probability 0.5 -j MARK --set-xmark 0x1/0x1",
            "ip rule add pref 50 fwmark 1/1 blackhole",
        ],
        ["iptables-nft -t mangle -F PREROUTING", "ip rule del pref 50"],
        "a rule of another program may set the mark 0x1 on packets from a pod on this node to ",
        "routes",
    ),
    "mark by a hash": Fault(
        [
            "iptables-legacy -t mangle -I PREROUTING -p tcp --dport 80 -j HMARK --hmark-tuple "
            "src,sport --hmark-mod 2 --hmark-rnd 1 --hmark-offset 0",
            "ip rule add pref 50 fwmark 1 blackhole",
        ],
        ["iptables-legacy -t mangle -F PREROUTING", "ip rule del pref 50"],
        "a rule of another program may set the mark 0x1 on packets from a pod on this node to ",
        "routes",
    ),
    "mark of some clients": Fault(
        [
            *CHAIN,
            "nft add rule inet other c ip saddr 172.30.0.0/24 tcp dport 30090 meta mark set 0x77",
            "ip rule add pref 50 fwmark 0x77/0x77 blackhole",
        ],
        ["nft delete table inet other", "ip rule del pref 50"],
        "a rule of another program may set the mark 0x4077 on packets from another host to ",
        "routes",
        client="ext",
        target=NODE_PORT,
    ),
    "mark by chance that no policy rule tests": Fault(
        [
            *CHAIN,
            "nft add rule inet other c tcp dport 80 meta mark set numgen random mod 2",
            "ip rule add pref 50 fwmark 0x10/0x10 blackhole",
        ],
        ["nft delete table inet other", "ip rule del pref 50"],
        "",
        "",
        harmless=True,
    ),
    "mark that no policy rule tests": Fault(
        [*CHAIN, "nft add rule inet other c tcp dport 80 meta mark set 0x77"],
        ["nft delete table inet other"],
        "",
        "",
        harmless=True,
    ),
    "replies by another device": Fault(
        [f"ip route add {CLIENT} dev mgmt"],
        [f"ip route del {CLIENT} dev mgmt"],
        f"to {CLIENT} leave by mgmt, while its packets arrive on eth0",
        "routes",
        client="ext",
        target=NODE_PORT,
        source=CLIENT,
    ),
    "few ports to connect from": Fault(
        ["sysctl -w net.ipv4.ip_local_port_range='40000 40007'"],
        ["sysctl -w net.ipv4.ip_local_port_range='32768 60999'"],
        "net.ipv4.ip_local_port_range has 8 ports",
        "switches",
        client="",
    ),
    "interface group": Fault(
        [
            "ip link set cbr0 group 9",
            "nft add table inet other",
            "nft add chain inet other c '{ type filter hook forward priority 0; }'",
            "nft add rule inet other c iifgroup 9 drop",
        ],
        ["nft delete table inet other", "ip link set cbr0 group 0"],
        "of chain c in table inet other drops packets from a pod on this node",
        result="failed",
    ),
    "clsact without filters": Fault(
        ["tc qdisc add dev eth0 clsact"], ["tc qdisc del dev eth0 clsact"], "", "", harmless=True
    ),
    "IPsec policy of other networks": Fault(
        ["ip xfrm policy add src 192.168.7.0/24 dst 192.168.8.0/24 dir fwd action block"],
        NO_POLICY,
        "",
        "",
        harmless=True,
    ),
}


@pytest.fixture(scope="module")
def web(mode: LabMode) -> Iterator[InspectedNode]:
    """A node with a Service that has two endpoints here and two on another node."""
    with inspected_node(*mode.flags) as made:
        made.create(
            service("web", ADDRESS, 30090),
            endpoint_slice("web", [A1, A2, B1, B2]),
            service("remote", REMOTE.removesuffix(":80"), 30091),
            endpoint_slice("remote", [B1, B2]),
            service("host", ON_HOST.removesuffix(":80"), 30092),
            endpoint_slice("host", [THIS_NODE]),
        )
        yield made


def run(node: InspectedNode, command: str) -> None:
    node.cluster.network.namespace(SITE).run(shlex.split(command))


@contextlib.contextmanager
def planted(node: InspectedNode, fault: Fault) -> Iterator[None]:
    try:
        for command in fault.plant:
            run(node, command)
        yield
    finally:
        for command in fault.undo:
            with contextlib.suppress(LabError):
                run(node, command)
        # A next hop that did not answer meanwhile would stay one that failed.
        for device in ("eth0", "cbr0"):
            run(node, f"ip neigh flush dev {device}")


def explained(node: InspectedNode, fault: Fault) -> CommandResult:
    client = ["--from", fault.source] if fault.source else []
    return node.command("explain", fault.target, "-o", "json", *client)


def results(result: CommandResult, *wanted: str) -> list[str]:
    return [each["name"] for each in result.json["steps"] if each["result"] in wanted]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_stops_packets_at_devices_is_named(web: InspectedNode, fault: Fault) -> None:
    target = parse_destination(fault.target)
    # Silence is what a fault leads to, and a response may be slow.
    timeout = 10.0 if fault.harmless else 0.2
    connect = partial(probe, target, tries=ENOUGH, timeout=timeout, at_once=ENOUGH)
    before = explained(web, fault)
    with planted(web, fault):
        result = explained(web, fault)
        outcome = Outcome(refused=1)
        if fault.client:
            outcome = web.cluster.network.namespace(fault.client).call(connect)
        if fault.harmless:
            assert outcome.dropped + outcome.refused == 0
            known = set(results(before, "failed", "undecided"))
            # A neighbour may have been asked just then, and not have answered yet.
            until(lambda: known.issuperset(results(explained(web, fault), "failed", "undecided")))
            return
    (step,) = (each for each in result.json["steps"] if each["name"] == fault.step)
    assert step["result"] == fault.result, result.out
    assert fault.words in "\n".join([step["message"], *step["details"]])
    assert outcome.dropped or outcome.refused
    assert results(result, "failed") == ([fault.step] if fault.result == "failed" else [])
