"""Alerts of the drop monitor matched to the connections of a live trace.

Every translation keeps one end of a packet: the client's until masquerading, the endpoint's after.
A packet with the client's address and port belongs to the client's connection. For one that was
masqueraded, conntrack has both ends. Everything here is bounded: an attack may be traced.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence

import msgspec

from pyproxy.model.address import Backend, Port, backend, backend_text
from pyproxy.netlink.drop_alerts import Alert
from pyproxy.netlink.flows import Flow
from pyproxy.netlink.tracing import Event, Match

REMEMBERED = 10.0
"""Seconds after its last packet for which a connection's drops are recognized."""

_CONNECTIONS = 1024
_PER_ENDPOINT = 16
"""Connections to one endpoint that a masqueraded packet is compared with, the newest first."""

_UNTRACED_PER_SECOND = 100
_DROPS_PER_PACKET = 8

MEANINGS = {
    "NO_SOCKET": "no process listens on the port",
    "NETFILTER_DROP": "a rule of a firewall dropped it",
    "IP_RPFILTER": "rp_filter: the route back to the source is by another device",
    "IP_INNOROUTES": "no route to the destination, or forwarding is off",
    "IP_OUTNOROUTES": "no route to the destination",
    "NEIGH_FAILED": "the next hop does not respond to ARP or neighbor discovery",
    "NEIGH_QUEUEFULL": "too many packets wait for the next hop's ARP or neighbor discovery",
    "NEIGH_CREATEFAIL": "no new neighbor entry: the neighbor table may be full",
    "NEIGH_DEAD": "the neighbor entry was deleted",
    "PKT_TOO_BIG": "larger than the MTU of the route",
    "IP_INVALID_SOURCE": "an invalid source address",
    "IP_INVALID_DEST": "an invalid destination address",
    "IP_LOCAL_SOURCE": "the source is an address of this node",
    "IP_LOCALNET": "a loopback address on another device: see route_localnet",
    "IPV6DISABLED": "IPv6 is disabled on the device",
    "XFRM_POLICY": "an IPsec policy",
    "XDP": "an XDP program",
    "TC_INGRESS": "a tc filter or eBPF program at ingress",
    "TC_EGRESS": "a tc filter or eBPF program at egress",
    "BPF_CGROUP_EGRESS": "an eBPF program of the sender's cgroup",
    "SOCKET_FILTER": "a filter on the receiving socket",
    "SOCKET_RCVBUFF": "the receiving socket's buffer is full",
    "SOCKET_BACKLOG": "the receiving socket's backlog is full",
    "QDISC_DROP": "the queue of a device is full",
    "FULL_RING": "the ring of a device is full",
    "CPU_BACKLOG": "the queue of a processor is full: see net.core.netdev_max_backlog",
    "DEV_READY": "the device is down",
    "TCP_CSUM": "a wrong TCP checksum",
    "UDP_CSUM": "a wrong UDP checksum",
    "IP_CSUM": "a wrong IP checksum",
    "OTHERHOST": "its link-layer destination is another host",
    "NOMEM": "no memory",
    "IP_INADDRERRORS": "forwarding is off, or the address is not usable here",
}
"""Names of include/net/dropreason-core.h, without their prefix, in words."""


class KernelDrop(msgspec.Struct, frozen=True, rename="camel"):
    """A packet that the kernel dropped, with its ends at that moment.

    `function` is the kernel's. `reason` is its name of the drop reason, and `meaning` that in
    words; both may be empty. `reply` is true for a packet to the client.
    """

    source: str
    destination: str
    function: str
    reason: str = ""
    meaning: str = ""
    reply: bool = False

    @property
    def cause(self) -> str:
        """The function and the reason in one phrase."""
        where = f"in {self.function}" if self.function else ""
        why = f"{self.reason} ({self.meaning})" if self.meaning else self.reason
        return ": ".join(each for each in (where, why) if each) or "without a reason"


class LooseDrop(msgspec.Struct, frozen=True):
    """A drop of which no trace is open: ends of the client's first packet, and the drop."""

    source: str
    destination: str
    drop: KernelDrop


class _Connection:
    def __init__(self, client: Backend, destination: Backend, now: float) -> None:
        self.client = client
        self.first = destination
        self.destinations = {destination}
        self.last = now
        self.open = True
        self.drops: list[KernelDrop] = []
        self.entry: Flow | None = None


class DropMatcher:
    """Assigns alerts to connections. Times are in seconds, of any one clock.

    `entry` returns the conntrack entry of a client's and a frontend's end, None without one.
    """

    def __init__(self, match: Match, entry: Callable[[Backend, Backend], Flow | None]) -> None:
        self._match = match
        self._frontend = backend(match.destination, Port(match.port))
        self._entry = entry
        # In the order of their last packets.
        self._clients: OrderedDict[Backend, _Connection] = OrderedDict()
        self._by_end: dict[Backend, deque[_Connection]] = {}
        self._second, self._loose = 0.0, 0

    def note(self, events: Sequence[Event], now: float) -> None:
        """Add trace events that were read at `now`."""
        for event in events:
            if event.source is None or event.destination is None:
                continue
            client = backend(event.source, Port(event.source_port))
            destination = backend(event.destination, Port(event.port))
            known = self._clients.pop(client, None) or _Connection(client, destination, now)
            self._clients[client] = known
            known.last, known.open = now, True
            if destination not in known.destinations or destination == known.first:
                known.destinations.add(destination)
                self._index(destination, known)
        self._forget(now)

    def take(self, alerts: Sequence[Alert], now: float) -> Iterator[LooseDrop]:
        """Keep the drops of open traces, and yield those of others that match."""
        for alert in alerts:
            if alert.protocol != self._match.protocol:
                continue
            known, reply = self._connection(alert)
            if known is not None and known.open:
                if len(known.drops) < _DROPS_PER_PACKET:
                    known.drops.append(_drop(alert, reply=reply))
            elif known is not None:
                drop = _drop(alert, reply=reply)
                yield LooseDrop(backend_text(known.client), backend_text(known.first), drop)
            elif (untraced := self._untraced(alert)) and self._may_show(now):
                yield untraced

    def finish(self, source: Backend) -> tuple[KernelDrop, ...]:
        """Return the drops of the client's packet whose trace is complete."""
        known = self._clients.get(source)
        if known is None:
            return ()
        drops, known.drops, known.open = tuple(known.drops), [], False
        return drops

    def _connection(self, alert: Alert) -> tuple[_Connection | None, bool]:
        if known := self._clients.get(alert.source):
            return known, False
        known = self._clients.get(alert.destination)
        if known and alert.source in self._ends(known):
            return known, True
        for known in self._by_end.get(alert.destination, ()):
            if self._node_end(known) == alert.source:
                return known, False
        for known in self._by_end.get(alert.source, ()):
            if self._node_end(known) == alert.destination:
                return known, True
        return None, False

    def _ends(self, known: _Connection) -> set[Backend]:
        entry = self._find(known)
        return known.destinations | ({Backend(entry.reply_source)} if entry else set())

    def _node_end(self, known: _Connection) -> bytes | None:
        """Return the source of the masqueraded packets of a connection."""
        entry = self._find(known)
        return entry.reply_destination if entry else None

    def _find(self, known: _Connection) -> Flow | None:
        if known.entry is None:
            known.entry = self._entry(known.client, known.first)
        return known.entry

    def _untraced(self, alert: Alert) -> LooseDrop | None:
        for client, end, reply in (
            (alert.source, alert.destination, False),
            (alert.destination, alert.source, True),
        ):
            wanted = self._match.source
            if end == self._frontend and wanted in (None, client[:-2]):
                drop = _drop(alert, reply=reply)
                return LooseDrop(backend_text(client), backend_text(end), drop)
        return None

    def _may_show(self, now: float) -> bool:
        if now - self._second >= 1.0:
            self._second, self._loose = now, 0
        self._loose += 1
        return self._loose <= _UNTRACED_PER_SECOND

    def _index(self, end: Backend, known: _Connection) -> None:
        same = self._by_end.setdefault(end, deque(maxlen=_PER_ENDPOINT))
        if known not in same:
            same.appendleft(known)

    def _forget(self, now: float) -> None:
        while self._clients:
            oldest = next(iter(self._clients.values()))
            if len(self._clients) <= _CONNECTIONS and now - oldest.last < REMEMBERED:
                return
            del self._clients[oldest.client]
            for end in oldest.destinations:
                same = self._by_end.get(end)
                if same is not None and oldest in same:
                    same.remove(oldest)
                    if not same:
                        del self._by_end[end]


def _drop(alert: Alert, *, reply: bool) -> KernelDrop:
    return KernelDrop(
        backend_text(alert.source),
        backend_text(alert.destination),
        alert.function,
        alert.reason,
        MEANINGS.get(alert.reason, ""),
        reply,
    )
