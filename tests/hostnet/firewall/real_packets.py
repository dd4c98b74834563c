"""A namespace in which real datagrams meet rules, and the evaluation of the same packets."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import msgspec
from pyproxy_lab.namespace import Namespace

from pyproxy.hostnet.firewall.bits import number
from pyproxy.hostnet.firewall.evaluator import ChainResult, evaluate
from pyproxy.hostnet.firewall.hook_packet import Connection, Hook, HookPacket, Host, Tuple
from pyproxy.hostnet.firewall.ipsets import IpSets
from pyproxy.hostnet.firewall.legacy_tables import read_legacy_tables
from pyproxy.hostnet.firewall.nft_tables import NftTables
from pyproxy.model.address import Family, Port, parse_address
from tests.namespaces import empty_namespace
from tests.waiting import PATIENCE

ADDRESSES = ("10.9.0.1", "10.9.0.2", "10.9.1.1", "fd09::1", "fd09::2", "fd09:1::1")
OWN = [parse_address(each) for each in ADDRESSES]
HOST = Host({"lo": 1}, frozenset(OWN), owners=dict.fromkeys(OWN, "lo"))
SO_MARK = 36


class Datagram(msgspec.Struct, frozen=True):
    """A datagram over the device lo, from one address of the namespace to another."""

    source: str
    destination: str
    source_port: int
    port: int
    mark: int = 0

    @property
    def family(self) -> Family:
        return Family.IPV6 if ":" in self.source else Family.IPV4

    def packet(self, host: Host) -> HookPacket:
        """The datagram in the hook input."""
        source, destination = parse_address(self.source), parse_address(self.destination)
        there = Tuple(source, destination, self.source_port, self.port)
        back = Tuple(destination, source, self.port, self.source_port)
        # A datagram over lo keeps no mark behind output.
        return HookPacket(
            self.family, 17, source, destination, self.source_port, Port(self.port), Hook.INPUT,
            host, in_interface="lo", connection=Connection(there, back), mark=number(self.mark),
            from_process=True,
        )  # fmt: skip


class Rules:
    """The rules of a namespace's hook input, and whether real datagrams pass it."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace

    def nft(self, text: str) -> None:
        self.namespace.run(["nft", "-f", "-"], text=text)

    def send(self, datagrams: Sequence[Datagram]) -> list[bool]:
        """Send datagrams, and return which of them arrived."""

        def run(wait: Callable[[], None]) -> list[bool]:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread, which ends
            return [_send(each, wait) for each in datagrams]

        with _barrier() as wait:
            return self.namespace.call(lambda: run(wait))

    def evaluate_nft(self, datagrams: Sequence[Datagram]) -> list[ChainResult]:
        """Evaluate the chain `c` of table `inet t`."""

        def run() -> list[ChainResult]:
            with closing(NftTables()) as tables:
                (base,) = tables.base_chains()[0]
                chain, table = tables.load(base), tables.table(base.family, base.table)
                return [evaluate(chain, table, each.packet(HOST)) for each in datagrams]

        return self.namespace.call(run)

    def evaluate_xtables(self, datagrams: Sequence[Datagram], legacy: bool) -> list[ChainResult]:
        """Evaluate the chain INPUT of the table filter, of the family of each datagram."""

        def run() -> list[ChainResult]:
            with closing(NftTables()) as tables, closing(IpSets()) as sets:
                host = msgspec.structs.replace(HOST, sets=sets.match)
                found = []
                for each in datagrams:
                    if legacy:
                        (table,) = read_legacy_tables(each.family)
                        found.append(
                            evaluate(table.base_chain(Hook.INPUT), table, each.packet(host))
                        )
                        continue
                    family = 2 if each.family is Family.IPV4 else 10
                    (base,) = (
                        base
                        for base in tables.base_chains()[0]
                        if (base.family, base.name) == (family, "INPUT")
                    )
                    reader = tables.table(family, base.table)
                    found.append(evaluate(tables.load(base), reader, each.packet(host)))
                return found

        return self.namespace.call(run)


@contextmanager
def rules_of_input() -> Iterator[Rules]:
    """Make a namespace whose addresses are on the device lo."""
    with empty_namespace("fw") as namespace:
        namespace.sysctl({"ipv6/conf/all/disable_ipv6": 0, "ipv6/conf/lo/disable_ipv6": 0})
        added = [f"addr add {each}/{128 if ':' in each else 32} dev lo" for each in ADDRESSES]
        namespace.ip(
            ["link set lo up", *(f"{each}{' nodad' if ':' in each else ''}" for each in added)]
        )
        yield Rules(namespace)


@contextmanager
def _barrier() -> Iterator[Callable[[], None]]:
    """Yield a function that returns once all datagrams that this CPU sent over lo have arrived.

    A CPU has one queue of them for all namespaces, and the present one has no rules.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.settimeout(PATIENCE)
        own.bind(("127.0.0.1", 0))
        own.connect(own.getsockname())

        def wait() -> None:
            own.send(b"1")
            own.recv(1)

        yield wait


def _send(datagram: Datagram, wait: Callable[[], None]) -> bool:
    family = socket.AF_INET6 if datagram.family is Family.IPV6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        receiver.bind((datagram.destination, datagram.port))
        receiver.setblocking(False)
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, SO_MARK, datagram.mark)
            sender.bind((datagram.source, datagram.source_port))
            try:
                sender.sendto(b"1234567890", (datagram.destination, datagram.port))
            except PermissionError:
                return False
        # The device lo delivers before sendto returns, unless the kernel is busy.
        wait()
        try:
            receiver.recv(100)
        except (BlockingIOError, ConnectionRefusedError):
            return False
        return True
