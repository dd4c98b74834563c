"""What the kernel tells of packets, put together by packet: pure."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.errors import PermissionKernelError, RejectedError
from pyproxy.model.address import Port, backend, backend_text
from pyproxy.netlink import nftables
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM, delete_table
from pyproxy.netlink.tracing import Event, Kind, Match, TraceSocket, trace_table

_RULE = re.compile(r"\t\t(.*) # handle (\d+)")
_CHAIN = re.compile(r"\tchain (\S+) \{")
_FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}

_PREFIX = f"{TABLE}-trace-"
_QUIET = 0.3
_POLL = 0.1

RuleText = Callable[[str, str, str, int], str]
"""Gives a rule's text by its table's family and name, its chain and its handle."""


class Met(msgspec.Struct, frozen=True, rename="camel"):
    """A rule that a packet met, or a policy, and what became of it there.

    `now_to` is where the packet is going from here on, where that has changed.
    """

    table: str
    chain: str
    rule: str
    verdict: str
    now_to: str = ""


class PacketTrace(msgspec.Struct, frozen=True, rename="camel"):
    """One packet's way through this machine: its addresses as it came, what it met, its end."""

    source: str
    destination: str
    came_in_by: str
    met: tuple[Met, ...]
    end: str


class Assembly:
    """Collects what is told of packets, until of one nothing has been told for `quiet`.

    Where a packet is copied on its way, as a bridge does, it has another number from there on. Its
    sender is the same. Times are in seconds, of any one clock.
    """

    def __init__(self, quiet: float) -> None:
        self._quiet = quiet
        self._open: dict[int, tuple[float, list[Event]]] = {}
        self._numbers: dict[int, int] = {}

    def take(self, events: Sequence[Event], now: float) -> None:
        """Take in what was told at `now`."""
        for event in events:
            if event.packet not in self._numbers:
                self._numbers[event.packet] = self._same_as(event)
            number = self._numbers[event.packet]
            _, told = self._open.pop(number, (now, []))
            # The one that was told of last is last.
            self._open[number] = (now, [*told, event])

    def finished(self, now: float) -> Iterator[list[Event]]:
        """Give the packets of which nothing more is to be expected, oldest first."""
        for number, (last, told) in list(self._open.items()):
            if now - last >= self._quiet:
                del self._open[number]
                for event in told:
                    self._numbers.pop(event.packet, None)
                yield told

    def _same_as(self, event: Event) -> int:
        sender = (event.source, event.source_port)
        for number, (_, told) in self._open.items():
            if event.source and any((e.source, e.source_port) == sender for e in told):
                return number
        return event.packet


def journey(
    told: Sequence[Event], own_table: str, rule_text: RuleText, interface: Callable[[int], str]
) -> PacketTrace:
    """Put one packet's events into words; `own_table` is the one that has it traced."""
    first = next((event for event in told if event.source is not None), told[0])
    destination = _end(first, source=False)
    met = []
    going = destination
    for event in told:
        now_to = ""
        if event.destination is not None and (to := _end(event, source=False)) != going:
            going = now_to = to
        tells = event.handle or (event.kind is Kind.POLICY and event.verdict != "accept")
        if now_to or (tells and event.table != own_table):
            family = _FAMILIES.get(event.family, str(event.family))
            rule = "its policy"
            if event.kind is not Kind.POLICY:
                rule = rule_text(family, event.table, event.chain, event.handle)
            met.append(Met(f"{family} {event.table}", event.chain, rule, event.verdict, now_to))
    came_in_by = interface(first.incoming) if first.incoming else ""
    return PacketTrace(
        _end(first, source=True),
        destination,
        came_in_by,
        tuple(met),
        _fate(told, met, going, interface),
    )


def _fate(
    told: Sequence[Event], met: Sequence[Met], going: str, interface: Callable[[int], str]
) -> str:
    last = told[-1]
    if last.verdict == "drop":
        where = f"{met[-1].table} {met[-1].chain}" if met else last.chain
        return f"taken off its way in {where}"
    out = next((event.outgoing for event in reversed(told) if event.outgoing), 0)
    return f"on its way to {going}" + (f" by {interface(out)}" if out else ", on this machine")


def _end(event: Event, *, source: bool) -> str:
    address = event.source if source else event.destination
    port = event.source_port if source else event.port
    return backend_text(backend(address, Port(port))) if address is not None else "?"


def rule_texts(listing: str) -> Mapping[tuple[str, int], str]:
    """Read `nft -a -t list table`: each rule's text by its chain and handle."""
    found: dict[tuple[str, int], str] = {}
    chain = ""
    for line in listing.splitlines():
        if began := _CHAIN.match(line):
            chain = began[1]
        elif rule := _RULE.fullmatch(line):
            found[chain, int(rule[2])] = rule[1]
    return found


class LiveTrace:
    """Traces matching packets from when it is made until `close`. Raises KernelError."""

    def __init__(self, match: Match) -> None:
        self._name = f"{_PREFIX}{os.getpid()}"
        self._texts: dict[tuple[str, str], Mapping[tuple[str, int], str]] = {}
        self._netlink = Nfnetlink()
        self._socket = TraceSocket()
        try:
            self._sweep()
            self._set(match)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Have nothing traced any more."""
        self._netlink.transact([delete_table(self._name)], SUBSYSTEM)
        self._netlink.close()
        self._socket.close()

    def packet_traces(self, seconds: float) -> Iterator[PacketTrace | None]:
        """Wait for packets, for `seconds`, and tell of each once it has gone its way.

        None says that something was lost, for more was told than could be read.
        """
        assembly = Assembly(_QUIET)
        until = time.monotonic() + seconds
        while time.monotonic() < until + _QUIET + _POLL:
            told = self._socket.wait(_POLL)
            if told is None:
                yield None
            now = time.monotonic()
            assembly.take(told or (), now)
            for events in assembly.finished(now):
                yield journey(events, self._name, self._rule, _interface)

    def _sweep(self) -> None:
        for name in nftables.read_table_names(self._netlink.dump(nftables.get_tables())):
            if name.startswith(_PREFIX):
                for refusal in self._netlink.transact([delete_table(name)], SUBSYSTEM):
                    # Another's, who is at it now.
                    if not isinstance(refusal.error, PermissionKernelError):
                        raise refusal.error

    def _set(self, match: Match) -> None:
        for owned in (True, False):
            refusals = self._netlink.transact(
                trace_table(self._name, match, owned=owned), SUBSYSTEM
            )
            if not refusals:
                return
            if not (owned and isinstance(refusals[0].error, RejectedError)):
                raise refusals[0].error

    def _rule(self, family: str, table: str, chain: str, handle: int) -> str:
        known = self._texts.get((family, table), {})
        if (chain, handle) not in known:
            known = self._texts[family, table] = _list(family, table)
        return known.get((chain, handle), f"rule {handle}")


def _list(family: str, table: str) -> Mapping[tuple[str, int], str]:
    done = subprocess.run(
        ["nft", "-a", "-t", "list", "table", family, table],
        capture_output=True,
        text=True,
        check=False,
    )
    # A rule that nft cannot spell is told by its number.
    return rule_texts(done.stdout)


def _interface(number: int) -> str:
    try:
        return socket.if_indextoname(number)
    except OSError:
        return f"interface {number}"
