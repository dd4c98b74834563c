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
from functools import partial
from itertools import chain

import msgspec

from pyproxy.dataplane.nftables import offload_chain
from pyproxy.dataplane.nftables.kernel_drops import DropMatcher, KernelDrop, LooseDrop
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.errors import PermissionKernelError, RejectedError, StaleStateError
from pyproxy.model.address import Address, Backend, Port, Protocol, backend, backend_text, family_of
from pyproxy.netlink import nftables
from pyproxy.netlink.conntrack import Conntrack
from pyproxy.netlink.drop_monitor import DropMonitor
from pyproxy.netlink.flows import Flow
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
_BATCHES = 4096

_Sender = tuple[Address, int]
_Place = tuple[Kind, int, str, str, int]

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
    """One packet's path: its first addresses, its input interface, its rules, its end.

    `drops` are the drops of the packet, and of replies to it, that the kernel reported meanwhile.
    `traced` is false for a drop alone: of a packet that was not traced, or of one whose trace was
    complete before.
    """

    source: str
    destination: str
    incoming: str
    rules: tuple[MatchedRule, ...]
    end: str
    drops: tuple[KernelDrop, ...] = ()
    traced: bool = True


class _Packet:
    """The events of one packet so far, and what later ones are known by."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.last = 0.0
        self.numbers: set[int] = set()
        self.senders: set[_Sender] = set()
        # Of events with headers, which the kernel sends once for each base chain.
        self.places: set[_Place] = set()

    def may_have(self, event: Event) -> bool:
        """Return whether an event may be of this packet, and not of the next one."""
        return event.source is None or _place(event) not in self.places


class Assembly:
    """Collects events by packet. A packet is complete when it had no event for `quiet` seconds.

    A packet that a bridge copies has another number from there on, and the same sender. The next
    packet of a connection has the same sender too, maybe the same number, and passes the same
    rules. Times are in seconds, of any one clock.
    """

    def __init__(self, quiet: float) -> None:
        self._quiet = quiet
        # In the order of the last events.
        self._open: dict[int, _Packet] = {}
        self._made = 0
        self._numbers: dict[int, int] = {}
        self._senders: dict[_Sender, int] = {}

    def take(self, events: Sequence[Event], now: float) -> None:
        """Add events that were read at `now`."""
        for event in events:
            sender = None if event.source is None else (event.source, event.source_port)
            key = self._key_of(event, sender)
            packet = self._open.pop(key) if key in self._open else _Packet()
            self._open[key] = packet
            packet.events.append(event)
            packet.last = now
            packet.numbers.add(event.packet)
            self._numbers[event.packet] = key
            if sender is not None:
                packet.places.add(_place(event))
                packet.senders.add(sender)
                self._senders[sender] = key

    def finished(self, now: float) -> Iterator[list[Event]]:
        """Yield the events of each complete packet, oldest packet first, and forget them."""
        for key, packet in list(self._open.items()):
            if now - packet.last < self._quiet:
                return
            del self._open[key]
            for number in packet.numbers:
                if self._numbers.get(number) == key:
                    del self._numbers[number]
            for sender in packet.senders:
                if self._senders.get(sender) == key:
                    del self._senders[sender]
            yield packet.events

    def _key_of(self, event: Event, sender: _Sender | None) -> int:
        by_sender = self._senders.get(sender) if sender is not None else None
        for key in (self._numbers.get(event.packet), by_sender):
            if key is not None and self._open[key].may_have(event):
                return key
        self._made += 1
        return self._made


def _place(event: Event) -> _Place:
    return event.kind, event.family, event.table, event.chain, event.handle


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


def with_drops(trace: PacketTrace, drops: tuple[KernelDrop, ...]) -> PacketTrace:
    """Return a trace with the kernel's drops; its end is then that of the packet, if it has one."""
    own = next((each for each in drops if not each.reply), None)
    # A rule's drop is in the trace already, with the rule.
    end = trace.end if own is None or trace.end.startswith("dropped") else dropped(own)
    return msgspec.structs.replace(trace, drops=drops, end=end)


def _drop_alone(loose: LooseDrop) -> PacketTrace:
    end = dropped(loose.drop) if not loose.drop.reply else "a reply was dropped"
    return PacketTrace(loose.source, loose.destination, "", (), end, (loose.drop,), traced=False)


def dropped(drop: KernelDrop) -> str:
    """Return the end of a packet that the kernel dropped."""
    return f"dropped by the kernel {drop.cause}"


def _client(events: Sequence[Event]) -> Backend | None:
    for event in events:
        if event.source is not None:
            return backend(event.source, Port(event.source_port))
    return None


def _end(event: Event, *, source: bool) -> str:
    address = event.source if source else event.destination
    port = event.source_port if source else event.port
    return backend_text(backend(address, Port(port))) if address is not None else "?"


def rule_texts(listing: str) -> Mapping[tuple[str, int], str]:
    """Return each rule's text by its chain and handle, from `nft -a -t list table`."""
    found: dict[tuple[str, int], str] = {}
    chain = ""
    for line in listing.split("\n"):
        if began := _CHAIN.match(line):
            chain = began[1]
        elif rule := _RULE.fullmatch(line):
            found[chain, int(rule[2])] = rule[1]
    return found


class LiveTrace:
    """Traces matching packets from its construction to `close`. Raises KernelError.

    `monitor` adds the drops that the kernel reports; the caller closes it.
    """

    def __init__(self, match: Match, monitor: DropMonitor | None = None) -> None:
        self._name = f"{_PREFIX}{os.getpid()}"
        self._match = match
        self._texts: dict[tuple[str, str], Mapping[tuple[str, int], str]] = {}
        self._monitor = monitor
        self._conntrack = Conntrack()
        self._drops = DropMatcher(match, partial(self._conntrack.find, match.protocol))
        self._netlink = Nfnetlink()
        # Subscribed before packets are marked, so that no event is missed.
        self._socket = TraceSocket()
        try:
            self._delete_abandoned()
            self._mark()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop tracing, and close the sockets."""
        # Errors do not matter: the table may not exist, and an owned one goes with its socket.
        self._netlink.transact([delete_table(self._name)], SUBSYSTEM)
        self._netlink.close()
        self._socket.close()
        self._conntrack.close()

    def packet_traces(self, seconds: float) -> Iterator[PacketTrace | None]:
        """Yield the packets of the next `seconds`, each when it is complete; blocks meanwhile.

        A drop without an open trace is yielded by itself. None means that events were lost, because
        the kernel sent them faster than they were read.
        """
        assembly = Assembly(_QUIET)
        until = time.monotonic() + seconds
        # The last packets are complete only after a pause.
        while time.monotonic() < until + _QUIET + _POLL:
            # The kernel sends a packet's events before its alert, so that order is kept here.
            alerts, lost = self._monitor.read() if self._monitor else ((), False)
            batches = [self._socket.wait(0 if alerts else _POLL)]
            while alerts and batches[-1] and len(batches) < _BATCHES:
                batches.append(self._socket.wait(0))
            now = time.monotonic()
            for events in batches:
                lost |= events is None
                assembly.take(events or (), now)
                self._drops.note(events or (), now)
            if lost:
                yield None
            for loose in self._drops.take(alerts, now):
                yield _drop_alone(loose)
            for complete in assembly.finished(now):
                trace = packet_trace(complete, self._name, self._rule, _interface)
                client = _client(complete)
                yield with_drops(trace, self._drops.finish(client) if client else ())

    def has_fast_path(self) -> bool:
        """Return whether our rules offload connections, whose later packets pass no hook.

        Raises KernelError.
        """
        try:
            request = nftables.get_chain_rules(TABLE, offload_chain.NAME)
            return next(self._netlink.dump(request, consistent=False), None) is not None
        except StaleStateError:  # there is no table
            return False

    def offloaded(self) -> list[Flow]:
        """Return the connections that would be traced if no flowtable had them; KernelError."""
        match = self._match
        target, protocol = backend(match.destination, Port(match.port)), Protocol(match.protocol)
        pieces = self._conntrack.flows(family_of(match.destination), protocol, target)
        return [
            flow
            for flow in chain.from_iterable(pieces)
            if flow.offloaded and match.source in (None, flow.source[:-2])
        ]

    def _delete_abandoned(self) -> None:
        for name in nftables.read_table_names(self._netlink.dump(nftables.get_tables())):
            if name.startswith(_PREFIX):
                for failed in self._netlink.transact([delete_table(name)], SUBSYSTEM):
                    # Another process is tracing with it.
                    if not isinstance(failed.error, PermissionKernelError):
                        raise failed.error

    def _mark(self) -> None:
        for owned in (True, False):
            errors = self._netlink.transact(
                trace_table(self._name, self._match, owned=owned), SUBSYSTEM
            )
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
        check=False,
    )
    # A rule that nft cannot list is named by its handle.
    return rule_texts(done.stdout.decode("utf-8", "replace"))


def _interface(number: int) -> str:
    try:
        return socket.if_indextoname(number)
    except OSError:
        return f"interface {number}"
