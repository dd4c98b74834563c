"""The paths of a packet through IPVS and the rules around it: a pure function over their state.

The order of the hooks is the kernel's (netfilter priorities, net/netfilter/ipvs/ip_vs_core.c):

1. input, or output for a packet that the node sends: the chains `new-connections` and `services`.
2. IPVS at the same hook: a virtual service by the packet's mark, else by address and port; then a
   persistence template, else the scheduler.
3. postrouting, unless the packet has arrived: `clear-internal-mark`, then masquerading.

A packet that only passes through the node meets postrouting alone. No rule looks at source ports.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import msgspec
from msgspec.structs import replace

from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.plan import scheduling_text, virtual_text
from pyproxy.dataplane.ipvs.rows import virtual_by_mark
from pyproxy.dataplane.ipvs.ruleset import Options
from pyproxy.dataplane.ipvs.schedulers import is_estimate, shares
from pyproxy.dataplane.nft.lookup import Element, Lookups, find_element
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nft.schema import SetKind
from pyproxy.dataplane.packets import (
    Delivered,
    Dropped,
    DropReason,
    Masquerade,
    Packet,
    Rejected,
    RejectWith,
    TracePath,
    TraceResult,
    TraceStep,
    Untouched,
    Verdict,
)
from pyproxy.model.address import Address, Backend, Mark, Port, Protocol, backend, backend_text
from pyproxy.netlink.ipvs import PERSISTENT, Scheduling, Server, Virtual

_IPVS = "ipvs"


class IpvsState(msgspec.Struct, frozen=True):
    """The state that decides on a packet: set elements, IPVS's tables, addresses, and options.

    `node_addresses` are those of all devices but kube-ipvs0, whose own are `service_addresses`.
    `templates` are IPVS's persistence templates: the server that a client had, by virtual service
    and client; the server's port is 0 if the virtual service is one by mark.
    """

    sets: Lookups
    virtuals: Mapping[Virtual, Scheduling]
    servers: Mapping[Virtual, Sequence[Server]]
    options: Options
    node_addresses: frozenset[Address] = frozenset()
    service_addresses: frozenset[Address] = frozenset()
    templates: Mapping[tuple[Virtual, Address], Backend] = {}

    def is_local(self, address: Address) -> bool:
        """Return whether nft's `fib ... type local` matches an address."""
        return address in self.node_addresses or address in self.service_addresses


class _Walk(msgspec.Struct, frozen=True):
    """A packet on its way; `verdict` ends it."""

    destination: Address
    port: Port
    steps: tuple[TraceStep, ...] = ()
    probability: Fraction = Fraction(1)
    mark: Mark = Mark(0)
    translated: bool = False
    masquerade: Masquerade = Masquerade.NONE
    verdict: Verdict | None = None

    def step(self, chain: str, action: str, by: object = "") -> _Walk:
        return replace(self, steps=(*self.steps, TraceStep(chain, action, str(by or ""))))


def trace(packet: Packet, state: IpvsState, remarks: tuple[str, ...] = ()) -> TraceResult:
    """Return all paths of a packet; `remarks` are added to the tracer's own."""
    tracer = _Tracer(packet, state)
    paths = tuple(_path(walk) for walk in tracer.run())
    return TraceResult(packet, paths, (*remarks, *tracer.remarks))


def _path(walk: _Walk) -> TracePath:
    verdict = walk.verdict
    if verdict is None:
        verdict = Untouched(walk.masquerade)
        if walk.translated:
            verdict = Delivered(backend(walk.destination, walk.port), walk.masquerade)
    return TracePath(verdict, walk.probability, walk.steps)


class _Tracer:
    """One packet and one state."""

    def __init__(self, packet: Packet, state: IpvsState) -> None:
        self._packet = packet
        self._state = state
        self._frontend = frontend_key(packet.destination, packet.protocol, packet.port)
        self._is_sent = not packet.interface
        self.remarks: list[str] = []

    def run(self) -> Iterator[_Walk]:
        packet = self._packet
        walk = _Walk(packet.destination, packet.port)
        is_examined = self._is_sent or self._state.is_local(packet.destination)
        if is_examined:
            walk = self._rules(walk)
        if walk.verdict is not None:
            yield walk
        elif not packet.new:
            yield walk.step("conntrack", "goes the way of the first packet of its connection")
        # IPVS hooks input and output only: a packet that is forwarded does not meet it.
        elif is_examined:
            for scheduled in self._ipvs(walk):
                yield self._postrouting(scheduled)
        else:
            yield self._postrouting(walk)

    def _rules(self, walk: _Walk) -> _Walk:
        if self._packet.new:
            walk = self._new_connection(walk)
        elif self._packet.protocol is Protocol.TCP:
            # A connection of TCP outlives a change; a flow of UDP or SCTP must not.
            return walk
        return self._services(walk) if walk.verdict is None else walk

    def _new_connection(self, walk: _Walk) -> _Walk:
        if has_ranges := self._find(schema.SOURCE_RANGE_FRONTENDS, self._frontend):
            source = self._find(schema.SOURCES, self._frontend + self._packet.source)
            if source is None:
                dropped = walk.step(
                    "new-connections", "its source is in no source range", has_ranges
                )
                return replace(dropped, verdict=Dropped(DropReason.SOURCE_RANGES))
            walk = walk.step("new-connections", "its source is in a source range", source)
        for element in (self._find(schema.MASQUERADED, self._frontend), self._from_outside()):
            if element:
                walk = walk.step("new-connections", "marked to be masqueraded", element)
                walk = replace(walk, mark=Mark(walk.mark | self._state.options.mark))
        return walk

    def _from_outside(self) -> Element | None:
        """Return the cluster IP's element if packets of this source are masqueraded there."""
        if self._state.options.masquerade_all or self._is_from_pod() is False:
            return self._find(schema.CLUSTER_IPS, self._packet.destination)
        return None

    def _services(self, walk: _Walk) -> _Walk:
        internal = self._find(schema.INTERNAL_SERVICES, self._frontend)
        if internal and (self._is_from_pod() or self._state.is_local(self._packet.source)):
            # The mark replaces the one for masquerading.
            walk = walk.step(
                "services", "marked for the virtual service of all endpoints", internal
            )
            assert isinstance(internal.value, bytes)  # noqa: S101 (a data map's)
            return replace(walk, mark=Mark(int.from_bytes(internal.value, sys.byteorder)))
        if dropped := self._find(schema.DROPPED, self._frontend):
            walk = walk.step("services", "the traffic policy allows no endpoint", dropped)
            return replace(walk, verdict=Dropped(DropReason.POLICY))
        if rejected := self._find(schema.NO_ENDPOINT_SERVICES, self._frontend):
            return self._reject(walk.step("services", "the Service has no endpoint", rejected))
        if self._find(schema.HEALTH_CHECKS, self._frontend):
            return walk
        address = self._find(schema.ADDRESSES, self._packet.destination)
        if address and not self._find(schema.FRONTENDS, self._frontend):
            return self._reject(
                walk.step("services", "no Service has this port of the address", address)
            )
        return walk

    def _reject(self, walk: _Walk) -> _Walk:
        is_tcp = self._packet.protocol is Protocol.TCP
        return replace(walk, verdict=Rejected(RejectWith.TCP_RESET if is_tcp else RejectWith.ICMP))

    def _ipvs(self, walk: _Walk) -> Iterator[_Walk]:
        found = self._virtual(walk)
        if found is None:
            yield walk
            return
        virtual, how = found
        walk = walk.step(
            _IPVS, "taken by the virtual service", f"{virtual_text(virtual)} {scheduling_text(how)}"
        )
        servers = self._state.servers.get(virtual, ())
        if how.flags & PERSISTENT and (known := self._template(virtual, servers)):
            walk = walk.step(_IPVS, "the client had this real server before", _server_text(known))
            yield self._translate(walk, virtual, how, known)
            return
        scheduled = shares(how.scheduler, servers, self._packet.source)
        if not scheduled:
            # ip_vs_leave() replies with ICMP port unreachable, also to TCP.
            walk = walk.step(_IPVS, "no real server has a weight above 0")
            yield replace(walk, verdict=Rejected(RejectWith.ICMP))
            return
        if is_estimate(how.scheduler) and len(scheduled) > 1:
            self.remarks.append(
                f"the scheduler {how.scheduler} chooses by client or by load: the shares are those"
                " of many clients"
            )
        for server, share in scheduled:
            chosen = walk.step(_IPVS, "scheduled to the real server", _server_text(server))
            chosen = replace(chosen, probability=walk.probability * share)
            yield self._translate(chosen, virtual, how, server)

    def _virtual(self, walk: _Walk) -> tuple[Virtual, Scheduling] | None:
        # ip_vs_service_find(): a virtual service by mark comes before one by address.
        family = self._packet.family
        candidates = [
            Virtual(family, int(self._packet.protocol), self._packet.destination, self._packet.port)
        ]
        if walk.mark:
            candidates.insert(0, virtual_by_mark(family, walk.mark))
        for virtual in candidates:
            how = self._state.virtuals.get(virtual)
            if how is not None:
                return virtual, how
        return None

    def _template(self, virtual: Virtual, servers: Sequence[Server]) -> Server | None:
        had = self._state.templates.get((virtual, self._packet.source))
        if had is None:
            return None
        # expire_quiescent_template: a template of a server with weight 0 does not count.
        return next(
            (
                server
                for server in servers
                if server.weight and had in (server.backend, server.backend[:-2] + b"\0\0")
            ),
            None,
        )

    def _translate(self, walk: _Walk, virtual: Virtual, how: Scheduling, server: Server) -> _Walk:
        port = Port(int.from_bytes(server.backend[-2:], "big"))
        if virtual.mark and how.flags & PERSISTENT:
            # ip_vs_sched_persist() translates the port only if it is the virtual service's own.
            port = walk.port
        return replace(walk, destination=Address(server.backend[:-2]), port=port, translated=True)

    def _postrouting(self, walk: _Walk) -> _Walk:
        to_node = self._state.is_local(walk.destination)
        if walk.verdict is not None or (to_node and not self._is_sent):
            return walk
        mark = walk.mark
        if schema.is_our_mark(mark):
            # As the chain clear-internal-mark does.
            is_node = self._state.is_local(self._packet.source)
            mark = self._state.options.mark if is_node else Mark(0)
        is_marked = bool(mark & self._state.options.mark)
        source = self._find(schema.ADDRESSES, self._packet.source)
        if to_node:
            # The mark is cleared on lo: the node's own programs see its address anyway.
            return self._masquerade(walk, Masquerade.SERVICE_ADDRESS, source) if source else walk
        if is_marked:
            return self._masquerade(walk, Masquerade.MARK)
        if source:
            return self._masquerade(walk, Masquerade.SERVICE_ADDRESS, source)
        hairpin = self._find(schema.HAIRPIN, self._packet.source + walk.destination)
        if hairpin and not self._state.is_local(self._packet.source):
            return self._masquerade(walk, Masquerade.HAIRPIN, hairpin)
        return walk

    @staticmethod
    def _masquerade(walk: _Walk, how: Masquerade, by: Element | None = None) -> _Walk:
        return replace(walk.step("nat-postrouting", how.value, by), masquerade=how)

    def _is_from_pod(self) -> bool | None:
        """Return whether the rules take the packet for a pod's; None where they do not test it."""
        options, packet = self._state.options, self._packet
        if prefix := options.pod_interface.removesuffix("*"):
            if prefix != options.pod_interface:
                return packet.interface.startswith(prefix)
            return packet.interface == prefix
        if packet.family in options.pod_families:
            return self._find(schema.PODS, packet.source) is not None
        return None

    def _find(self, kind: SetKind, key: bytes) -> Element | None:
        return find_element(self._state.sets, kind, self._packet.family, key)


def _server_text(server: Server) -> str:
    return f"{backend_text(server.backend)} weight {server.weight}"
