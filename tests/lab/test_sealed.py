"""No packet of a lab leaves it, whatever the sysctls, routes and firewall of the machine.

A namespace plays the machine. It forwards, masquerades, and has a default route to a namespace that
responds on all addresses and counts what comes in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import pytest
from pyproxy_lab import namespace
from pyproxy_lab.cluster import Cluster
from pyproxy_lab.conformance.cases import Applied, Case, Probe, Step
from pyproxy_lab.conformance.runner import Runner
from pyproxy_lab.modes import NFTABLES
from pyproxy_lab.namespace import Namespace, ip
from pyproxy_lab.probe import Outcome, probe
from pyproxy_lab.servers import Server, Servers

from pyproxy.model.destination import parse_destination
from tests.namespaces import empty_namespace
from tests.waiting import RESPONSE_TIMEOUT

pytestmark = pytest.mark.packets

FORWARDING = {
    "ipv4/ip_forward": 1,
    "ipv6/conf/all/forwarding": 1,
    "ipv4/conf/all/route_localnet": 1,
    "ipv4/conf/all/rp_filter": 1,
    "ipv4/conf/default/rp_filter": 1,
    "ipv4/conf/all/proxy_arp": 1,
    "ipv4/conf/default/proxy_arp": 1,
}
"""Sysctls that Docker and an administrator set; new namespaces inherit them."""

MASQUERADE = """
table inet machine_nat {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "uplink" masquerade
    }
}
"""
FORWARD_DROP = """
table inet filter {
    chain forward { type filter hook forward priority filter; policy drop; }
    chain input { type filter hook input priority filter; policy drop; }
    chain output { type filter hook output priority filter; policy drop; }
}
"""
DOCKER = """
table ip nat {
    chain PREROUTING {
        type nat hook prerouting priority dstnat
        fib daddr type local jump DOCKER
    }
    chain OUTPUT {
        type nat hook output priority -100
        ip daddr != 127.0.0.0/8 fib daddr type local jump DOCKER
    }
    chain POSTROUTING {
        type nat hook postrouting priority srcnat
        ip saddr 172.17.0.0/16 oifname != "docker0" masquerade
        ip saddr 172.30.0.0/16 oifname != "br-172.30" masquerade
    }
    chain DOCKER { tcp dport { 80, 8080 } dnat to 203.0.113.1:80
    }
}
table ip filter {
    chain FORWARD {
        type filter hook forward priority filter; policy drop
        jump DOCKER-USER
        jump DOCKER-ISOLATION-STAGE-1
        oifname "docker0" ct state related,established accept
        iifname "docker0" accept
    }
    chain DOCKER-USER { return
    }
    chain DOCKER-ISOLATION-STAGE-1 { return
    }
}
"""
FIREWALLD = """
table inet firewalld {
    chain filter_INPUT {
        type filter hook input priority filter + 10
        ct state established,related accept
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
    chain filter_OUTPUT {
        type filter hook output priority filter + 10
        reject with icmpx admin-prohibited
    }
}
"""
COUNTER = """
table inet outside {
    counter arrived { }
    chain prerouting {
        type filter hook prerouting priority raw
        iifname "lo" return
        ip6 daddr ff00::/8 return
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } return
        counter name arrived
    }
}
"""

SERVED = Case(
    name="a Service is served",
    steps=(
        Step(
            apply=(
                Applied(
                    metadata={"name": "web"},
                    spec={"ports": [{"port": 80, "targetPort": 8080}], "clusterIP": "10.96.1.7"},
                    endpoints=("a1", "b1"),
                ),
            ),
            probe=(
                Probe(source_name="a2", to="10.96.1.7:80", reach=("a1", "b1")),
                Probe(source_name="ext", to="10.96.1.7:80", reach=("a1", "b1")),
            ),
        ),
    ),
)


OUTSIDE_THE_LAB = (
    ("ext", "192.0.2.1:80"),
    ("ext", "[2001:db8::1]:80"),
    ("na", "203.0.113.1:80"),
    ("na", "203.0.113.2:80/udp"),
    ("a1", "203.0.113.1:80"),
    ("a1", "[2001:db8:ffff::1]:80"),
    ("b1", "203.0.113.2:80"),
    ("nb", "8.8.8.8:53/udp"),
)
"""Clients, and addresses that no Service has: the machine's, the outside's, and others."""


class Machine:
    """The namespace that plays the machine, and the one that stands for the world outside it."""

    def __init__(self, here: Namespace, outside: Namespace) -> None:
        self.here = here
        self._outside = outside

    def firewall(self, ruleset: str) -> None:
        """Replace the whole ruleset."""
        self.here.run(["nft", "-f", "-"], text=f"flush ruleset\n{ruleset}")

    def packets_outside(self) -> int:
        """Count the packets that have come out of the machine."""
        listed = self._outside.run(["nft", "list", "counter", "inet", "outside", "arrived"]).stdout
        return int(listed.split("packets")[-1].split()[0])


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with (
        empty_namespace("machine") as here,
        empty_namespace("outside") as outside,
        ExitStack() as stack,
    ):
        here.sysctl(FORWARDING | {"ipv6/conf/default/accept_dad": 0})
        outside.sysctl({"ipv6/conf/default/accept_dad": 0})
        here.ip([f"link add uplink type veth peer name eth0 netns {outside.name}"])
        outside.ip(
            [
                "link set lo up",
                "link set eth0 up",
                "addr add 203.0.113.1/24 dev eth0",
                "addr add 2001:db8:ffff::1/64 dev eth0 nodad",
                # All addresses are its own, but for routes that are more specific.
                "route add local 0.0.0.0/0 dev lo table main",
                "route add local ::/0 dev lo table main",
            ]
        )
        here.ip(
            [
                "link set lo up",
                "link set uplink up",
                "addr add 203.0.113.2/24 dev uplink",
                "addr add 2001:db8:ffff::2/64 dev uplink nodad",
                "route add default via 203.0.113.1",
                "route add default via 2001:db8:ffff::1",
            ]
        )
        outside.run(["nft", "-f", "-"], text=COUNTER)
        servers = Servers()
        stack.callback(servers.end_all)
        servers.start([Server(outside.name, "outside", (80, 53))])
        yield Machine(here, outside)


@pytest.fixture(scope="module")
def cluster(machine: Machine) -> Iterator[Cluster]:
    """A lab that was started by a thread in the machine's namespace.

    Each namespace of the lab begins with the machine's sysctls. The kernel copies them from its
    first namespace alone, which is not the one that plays the machine, so they are written here.
    """

    def inheriting(lines: Iterable[str], *, options: Sequence[str] = ()) -> None:
        batch = list(lines)
        ip(batch, options=options)
        for line in batch:
            if line.startswith("netns add "):
                Namespace(line.split()[2]).sysctl(FORWARDING)

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(namespace, "ip", inheriting)
        cluster = machine.here.call(partial(stack.enter_context, Cluster()))
        yield cluster


@pytest.fixture(scope="module")
def runner(machine: Machine, cluster: Cluster) -> Iterator[Runner]:
    with ExitStack() as stack:
        agent = machine.here.call(partial(stack.enter_context, cluster.agent("na")))
        barrier = cluster.barrier("na", agent)
        yield Runner(cluster.client, cluster.network, NFTABLES, barrier=barrier)


def test_the_machine_leads_packets_outside_where_its_firewall_lets_it(machine: Machine) -> None:
    """Otherwise the other tests would show nothing."""
    machine.firewall(MASQUERADE)
    before = machine.packets_outside()
    for target in ("192.0.2.1:80", "8.8.8.8:53/udp", "[2001:db8::1]:80"):
        ask = partial(probe, parse_destination(target), timeout=RESPONSE_TIMEOUT)
        seen = machine.here.call(ask)
        assert seen.reached == {"outside": 1}
    assert machine.packets_outside() > before


@pytest.mark.parametrize("forward", [0, 1])
@pytest.mark.parametrize(
    "ruleset",
    [
        pytest.param(MASQUERADE, id="masquerade"),
        pytest.param(MASQUERADE + FORWARD_DROP, id="drop"),
        pytest.param(DOCKER, id="docker"),
        pytest.param(FIREWALLD, id="firewalld"),
    ],
)
def test_a_lab_works_and_no_packet_leaves_it(
    machine: Machine, cluster: Cluster, runner: Runner, ruleset: str, forward: int
) -> None:
    machine.here.sysctl({"ipv4/ip_forward": forward, "ipv6/conf/all/forwarding": forward})
    machine.firewall(ruleset)
    before = machine.packets_outside()
    assert runner.run(SERVED) == ()
    for client, target in OUTSIDE_THE_LAB:
        attempt = partial(probe, parse_destination(target), tries=2, timeout=0.1)
        seen = cluster.network.namespace(client).call(attempt)
        assert seen == Outcome(dropped=2), f"{client} -> {target}"
    assert machine.packets_outside() == before
