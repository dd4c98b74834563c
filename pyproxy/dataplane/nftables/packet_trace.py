"""Traces of live packets: the kernel reports the rules that they traverse (nftrace).

A table of our own marks the packets. It belongs to the socket that made it (`flags owner`), so the
kernel deletes it when the process ends. Linux before 5.12 has no owners: the table of a killed
process stays until the next trace, which deletes it.
"""

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
# Numbers of netfilter (NFPROTO_*): not all of them are those of AF_*.
_FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}

_PREFIX = f"{TABLE}-trace-"
# The kernel reports no end of a packet, so a pause in its events has to mean it.
_QUIET = 0.3
_POLL = 0.1

RuleText = Callable[[str, str, str, int], str]
"""Returns a rule's text by its table's family and name, its chain and its handle."""


class MatchedRule(msgspec.Struct, frozen=True, rename="camel"):
    """A rule that a packet matched, or a policy, and its verdict.

    `new_destination` is the packet's destination from here on, if that has changed.
    """

    table: str
    chain: str
    rule: str
    verdict: str
    new_destination: str = ""


class PacketTrace(msgspec.Struct, frozen=True, rename="camel"):
    """One packet's path: its first addresses, its input interface, its rules, its end."""

    source: str
    destination: str
    incoming: str
    rules: tuple[MatchedRule, ...]
    end: str


class Assembly:
    """Collects events by packet. A packet is complete when it had no event for `quiet` seconds.

    A packet that a bridge copies has another number from there on, and the same sender. Times are
    in seconds, of any one clock.
    """

    def __init__(self, quiet: float) -> None:
        self._quiet = quiet
        self._open: dict[int, tuple[float, list[Event]]] = {}
        self._numbers: dict[int, int] = {}

    def take(self, events: Sequence[Event], now: float) -> None:
        """Add events that were read at `now`."""
        for event in events:
            if event.packet not in self._numbers:
                self._numbers[event.packet] = self._same_as(event)
            number = self._numbers[event.packet]
            _, earlier = self._open.pop(number, (now, []))
            # Inserted again, so that the dict stays in the order of the last events.
            self._open[number] = (now, [*earlier, event])

    def finished(self, now: float) -> Iterator[list[Event]]:
        """Yield the events of each complete packet, oldest packet first, and forget them."""
        for number, (last, events) in list(self._open.items()):
            if now - last >= self._quiet:
                del self._open[number]
                for event in events:
                    self._numbers.pop(event.packet, None)
                yield events

    def _same_as(self, event: Event) -> int:
        sender = (event.source, event.source_port)
        for number, (_, events) in self._open.items():
            if event.source and any((e.source, e.source_port) == sender for e in events):
                return number
        return event.packet


def packet_trace(
    events: Sequence[Event], own_table: str, rule_text: RuleText, interface: Callable[[int], str]
) -> PacketTrace:
    """Return the trace of one packet's events, without rules of `own_table`, which marks it."""
    first = next((event for event in events if event.source is not None), events[0])
    destination = _end(first, source=False)
    rules = []
    current = destination
    for event in events:
        new = ""
        # The kernel sends headers once for each base chain, after the translation by earlier ones.
        if event.destination is not None and (to := _end(event, source=False)) != current:
            current = new = to
        # A policy that accepts is no decision: the packet continues at the next base chain.
        matched = event.handle or (event.kind is Kind.POLICY and event.verdict != "accept")
        if new or (matched and event.table != own_table):
            family = _FAMILIES.get(event.family, str(event.family))
            rule = "its policy"
            if event.kind is not Kind.POLICY:
                rule = rule_text(family, event.table, event.chain, event.handle)
            table = f"{family} {event.table}"
            rules.append(MatchedRule(table, event.chain, rule, event.verdict, new))
    return PacketTrace(
        _end(first, source=True),
        destination,
        interface(first.incoming) if first.incoming else "",
        tuple(rules),
        _outcome(events, rules, current, interface),
    )


def _outcome(
    events: Sequence[Event],
    rules: Sequence[MatchedRule],
    destination: str,
    interface: Callable[[int], str],
) -> str:
    last = events[-1]
    if last.verdict == "drop":
        where = f"{rules[-1].table} {rules[-1].chain}" if rules else last.chain
        return f"dropped in {where}"
    out = next((event.outgoing for event in reversed(events) if event.outgoing), 0)
    return f"sent to {destination}" + (f" by {interface(out)}" if out else ", on this node")


def _end(event: Event, *, source: bool) -> str:
    address = event.source if source else event.destination
    port = event.source_port if source else event.port
    return backend_text(backend(address, Port(port))) if address is not None else "?"


def rule_texts(listing: str) -> Mapping[tuple[str, int], str]:
    """Return each rule's text by its chain and handle, from `nft -a -t list table`."""
    found: dict[tuple[str, int], str] = {}
    chain = ""
    for line in listing.splitlines():
        if began := _CHAIN.match(line):
            chain = began[1]
        elif rule := _RULE.fullmatch(line):
            found[chain, int(rule[2])] = rule[1]
    return found


class LiveTrace:
    """Traces matching packets from its construction to `close`. Raises KernelError."""

    def __init__(self, match: Match) -> None:
        self._name = f"{_PREFIX}{os.getpid()}"
        self._texts: dict[tuple[str, str], Mapping[tuple[str, int], str]] = {}
        self._netlink = Nfnetlink()
        # Subscribed before packets are marked, so that no event is missed.
        self._socket = TraceSocket()
        try:
            self._delete_abandoned()
            self._mark(match)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop tracing, and close the sockets."""
        # Errors do not matter: the table may not exist, and an owned one goes with its socket.
        self._netlink.transact([delete_table(self._name)], SUBSYSTEM)
        self._netlink.close()
        self._socket.close()

    def packet_traces(self, seconds: float) -> Iterator[PacketTrace | None]:
        """Yield the packets of the next `seconds`, each when it is complete; blocks meanwhile.

        None means that events were lost, because the kernel sent them faster than they were read.
        """
        assembly = Assembly(_QUIET)
        until = time.monotonic() + seconds
        # The last packets are complete only after a pause.
        while time.monotonic() < until + _QUIET + _POLL:
            events = self._socket.wait(_POLL)
            if events is None:
                yield None
            now = time.monotonic()
            assembly.take(events or (), now)
            for complete in assembly.finished(now):
                yield packet_trace(complete, self._name, self._rule, _interface)

    def _delete_abandoned(self) -> None:
        for name in nftables.read_table_names(self._netlink.dump(nftables.get_tables())):
            if name.startswith(_PREFIX):
                for failed in self._netlink.transact([delete_table(name)], SUBSYSTEM):
                    # Another process is tracing with it.
                    if not isinstance(failed.error, PermissionKernelError):
                        raise failed.error

    def _mark(self, match: Match) -> None:
        for owned in (True, False):
            errors = self._netlink.transact(trace_table(self._name, match, owned=owned), SUBSYSTEM)
            if not errors:
                return
            # Linux before 5.12 rejects the flag `owner`.
            if not (owned and isinstance(errors[0].error, RejectedError)):
                raise errors[0].error

    def _rule(self, family: str, table: str, chain: str, handle: int) -> str:
        known = self._texts.get((family, table), {})
        # Another program may have added the rule since, so an unknown handle lists the table again.
        if (chain, handle) not in known:
            known = self._texts[family, table] = _list(family, table)
        return known.get((chain, handle), f"rule {handle}")


def _list(family: str, table: str) -> Mapping[tuple[str, int], str]:
    done = subprocess.run(
        # -a lists handles, which identify rules in events; -t leaves the elements out.
        ["nft", "-a", "-t", "list", "table", family, table],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    # A rule that nft cannot list is named by its handle.
    return rule_texts(done.stdout)


def _interface(number: int) -> str:
    try:
        return socket.if_indextoname(number)
    except OSError:
        return f"interface {number}"
