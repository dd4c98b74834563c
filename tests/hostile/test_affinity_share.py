"""One pod floods one Service that has session affinity, from as many addresses as it likes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.network import Network
from pyproxy_lab.probe import probe

from pyproxy.agent.affinity_refusals import AffinityRefusals
from pyproxy.dataplane.interface import Changes, NodeRouting
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nft.schema import Rows
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.readback import read_learned, read_refused
from pyproxy.dataplane.nftables.schema import AFFINITY_LIMITS
from pyproxy.errors import Problem, ProblemReason
from pyproxy.model.address import Family, Port, Protocol, backend, parse_address
from pyproxy.model.destination import Destination
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.waiting import RESPONSE_TIMEOUT

pytestmark = pytest.mark.packets

ATTACKED, OTHER = "10.96.0.1", "10.96.0.2"
SILENT, B1, B2 = "10.244.2.99", "10.244.2.11", "10.244.2.12"
SHARE = 16
"""The share of each of 200 frontends; each of up to 8 has 256 times as many."""


def service(
    name: str, address: str, *pods: str, timeout: int = 600, frontends: int = 1
) -> ServiceRouting:
    """A UDP Service with ports from 53 on; only the first is used."""
    port = PortRouting(
        "dns",
        Family.IPV4,
        Protocol.UDP,
        tuple(
            Frontend(Scope.CLUSTER_IP, parse_address(address), Port(53 + number), Use.CLUSTER)
            for number in range(frontends)
        ),
        tuple(backend(parse_address(pod), Port(8080)) for pod in pods),
        (),
    )
    return ServiceRouting(ObjectName("shop", name), (port,), affinity_timeout=timeout)


def attacked(timeout: int = 600) -> ServiceRouting:
    # So many frontends have a share that a test exceeds with few packets.
    return service("attacked", ATTACKED, SILENT, timeout=timeout, frontends=200)


class Node:
    """The dataplane on the lab's first node."""

    def __init__(self, here: Namespace, dataplane: NftablesDataplane) -> None:
        self._here = here
        self.dataplane = dataplane

    def program(self, *services: ServiceRouting) -> None:
        changes = Changes({each.name: each for each in services})
        plan = self.dataplane.plan(changes)
        assert self._here.call(lambda: self.dataplane.commit(plan)) == ()

    def read(self, reader: Callable[[Nfnetlink, Family], Rows]) -> Rows:
        def visit() -> Rows:
            netlink = Nfnetlink()
            try:
                return reader(netlink, Family.IPV4)
            finally:
                netlink.close()

        return self._here.call(visit)

    def learned(self, address: str) -> int:
        key = frontend_key(parse_address(address), Protocol.UDP, Port(53))
        return sum(found[4:] == key for found in self.read(read_learned))

    def refused(self) -> int:
        netlink = self._here.call(Nfnetlink)
        try:
            return sum(read_refused(netlink, Family.IPV4).values())
        finally:
            netlink.close()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


@pytest.fixture
def node(network: Network) -> Iterator[Node]:
    here = network.namespace("na")
    made = Node(here, here.call(lambda: NftablesDataplane(NftablesOptions())))
    plan = made.dataplane.plan_full([attacked(), service("other", OTHER, B1, B2)], NodeRouting())
    try:
        assert here.call(lambda: made.dataplane.commit(plan)) == ()
        yield made
    finally:
        here.call(made.dataplane.cleanup)
        made.dataplane.close()


def flood(network: Network, first: int, count: int, sport: int = 4000) -> None:
    """Send a packet from each of `count` clients to the attacked Service."""
    attacker = network.namespace("ext")

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for number in range(first, first + count):
                raw.sendto(
                    packet(f"172.30.{1 + (number >> 8)}.{number & 255}", sport), (ATTACKED, 0)
                )

    attacker.call(send)


def packet(source: str, sport: int) -> bytes:
    ends = socket.inet_aton(source) + socket.inet_aton(ATTACKED)
    head = struct.pack(">BBHHHBBH", 0x45, 0, 29, 0, 0, 64, socket.IPPROTO_UDP, 0)
    return head + ends + struct.pack(">HHHH", sport, 53, 9, 0) + b"!"


def rounds(network: Network, count: int, clients: int = 60) -> Iterator[int]:
    for number in range(count):
        flood(network, 0, clients, sport=4000 + number)
        yield number


def test_one_service_s_clients_do_not_push_out_another_s(network: Network, node: Node) -> None:
    flood(network, 0, 100)
    assert node.learned(ATTACKED) == SHARE
    assert node.refused() == 100 - SHARE
    target = Destination(parse_address(OTHER), Port(53), Protocol.UDP)
    seen = network.namespace("a2").call(partial(probe, target, tries=8, timeout=RESPONSE_TIMEOUT))
    assert len(seen.reached) == 1
    assert node.learned(OTHER) == 1


def test_clients_that_come_back_use_up_nothing(network: Network, node: Node) -> None:
    for _ in rounds(network, 10, clients=SHARE):
        assert node.learned(ATTACKED) == SHARE
    assert node.refused() == 0


def test_entries_that_are_kept_alive_do_not_add_up(network: Network, node: Node) -> None:
    node.program(attacked(timeout=1))
    seen: set[bytes] = set()
    for _ in rounds(network, 2000, clients=200):
        present = node.read(read_learned).keys()
        # The share at once, twice as many in each second, and a life of 9/8 of a second.
        assert len(present) <= SHARE * (1 + 2 * 9 / 8)
        seen |= present
        if len(seen) > 5 * SHARE:
            break
    assert len(seen) > 5 * SHARE, "entries come and go"


def test_changes_of_the_timeout_do_not_add_up(network: Network, node: Node) -> None:
    for timeout in (600, 300, 1800, 86_400, 600):
        node.program(attacked(timeout))
        flood(network, 0, 60)
        assert node.learned(ATTACKED) <= SHARE
        limits = node.read(lambda netlink, family: read_learned(netlink, family, AFFINITY_LIMITS))
        assert len(limits) == 1, "one for each frontend, of the present timeout"


def test_the_service_is_named_once_and_its_connections_are_counted(
    network: Network, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    reported: list[Problem] = []
    refusals = AffinityRefusals(node.dataplane.refused_clients, reported.append, lambda: now)
    for _ in rounds(network, 3):
        now += 10
        refusals.check()
    (problem,) = reported
    assert (problem.name, problem.reason) == (
        "shop/attacked",
        ProblemReason.SESSION_AFFINITY_FULL,
    )
    (line,) = caplog.messages
    assert "Service shop/attacked: spec.sessionAffinity" in line
    (metric,) = refusals.collect()
    assert metric.samples[0].value == 3 * (60 - SHARE)


def test_both_versions_of_the_rules_are_listed(network: Network, node: Node) -> None:
    flood(network, 0, 40)
    listed = network.namespace("na").run(["nft", "list", "ruleset"]).stdout
    assert "update @affinity-limits4" in listed
    assert "update @affinity-refused6" not in listed, "only the family that is used"
