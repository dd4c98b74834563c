"""Which conntrack entries are stale: pure values, and one decision.

The kernel translates the first packet of a flow and reuses the entry for all later ones. A UDP
client that keeps its source port therefore stays with an endpoint that is gone, or untranslated if
its first packet came before the Service. TCP is left alone: its peers notice, and a connection to a
draining endpoint must go on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

import msgspec

from pyproxy.model.address import Address, Backend, Family, Network, Protocol
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.flows import Flow
from pyproxy.policy.parts import service_of
from pyproxy.policy.routing import PortRouting, Scope, ServiceRouting, Use

_PORT_SIZE = 2

PROTOCOLS = (Protocol.UDP, Protocol.SCTP)


class FrontendKey(NamedTuple):
    """A frontend, or several, by the destination of their packets.

    `destination` is an address and a port packed as in `Backend`. It is the 2 bytes of the port
    for a node port, and empty for all frontends of the family and protocol.
    """

    family: Family
    protocol: Protocol
    destination: bytes = b""


class ClientRanges(msgspec.Struct, frozen=True, gc=False):
    """The clients that source ranges admit: sorted ranges that do not overlap, by their bounds.

    A bound is the length of an address and the address, so that both families sort apart.
    """

    lows: tuple[bytes, ...]
    highs: tuple[bytes, ...]

    @classmethod
    def of(cls, networks: Iterable[Network]) -> ClientRanges:
        """Join networks of both families."""
        lows: list[bytes] = []
        highs: list[bytes] = []
        for low, high in sorted((_bound(each.address), _bound(each.last)) for each in networks):
            if highs and low <= highs[-1]:
                highs[-1] = max(high, highs[-1])
            else:
                lows.append(low)
                highs.append(high)
        return cls(tuple(lows), tuple(highs))

    def __contains__(self, client: Address) -> bool:
        # A search for each of a hundred thousand flows, in up to tens of thousands of ranges.
        bound = _bound(client)
        at = bisect_right(self.lows, bound)
        return at > 0 and bound <= self.highs[at - 1]


def _bound(address: Address) -> bytes:
    return bytes((len(address),)) + address


class FlowTarget(msgspec.Struct, frozen=True, gc=False):
    """The endpoints that flows to one Service's frontend may go to, and the clients it admits.

    `backends` is empty if the frontend rejects or drops. `sources` is None if it admits every
    client.
    """

    backends: frozenset[Backend]
    sources: ClientRanges | None = None

    def admits(self, flow: Flow) -> bool:
        """Return whether the source ranges admit the flow's client.

        A client with the frontend's own address is the node itself, which is always admitted.
        """
        client = Address(flow.source[:-2])
        return self.sources is None or client == flow.destination[:-2] or client in self.sources


Targets = tuple[FlowTarget, ...]
"""One target per Service: several Services may have the same external address."""

GONE: Targets = ()
"""The targets of a frontend that was ours until the last commit."""


def is_stale(flow: Flow, targets: Targets) -> bool:
    """Return whether a flow's entry differs from what a new flow to the frontend would get.

    It does if the flow goes to an endpoint that no target allows, if it is translated although the
    frontend has no endpoint, and if it is untranslated although the frontend has one. An
    untranslated entry in another conntrack zone is never stale: the zone is another program's, and
    the translation is in the entry of the default zone.
    """
    admitted = [target.backends for target in targets if target.backends and target.admits(flow)]
    # Replies come from the endpoint to which conntrack translates the destination.
    if any(flow.reply_source in backends for backends in admitted):
        return False
    if flow.translated:
        return True
    return bool(admitted) and not flow.zoned


def flow_targets(routing: ServiceRouting) -> Iterator[tuple[FrontendKey, FlowTarget]]:
    """Yield the flow target of each UDP and SCTP frontend of a Service."""
    ranges = ClientRanges.of(routing.source_ranges) if routing.source_ranges else None
    for port in routing.ports:
        if port.protocol not in PROTOCOLS:
            continue
        uses = {frontend.use for frontend in port.frontends}
        backends = {use: frozenset(_usable(port, use)) for use in uses}
        for frontend in port.frontends:
            # As in kube-proxy, source ranges restrict neither external IPs nor node ports.
            has_ranges = frontend.scope is Scope.LOAD_BALANCER
            yield (
                FrontendKey(
                    port.family,
                    port.protocol,
                    frontend.address + frontend.port.to_bytes(2, "big"),
                ),
                FlowTarget(backends[frontend.use], ranges if has_ranges else None),
            )


def _usable(port: PortRouting, use: Use) -> tuple[Backend, ...]:
    # A flow may stay with a draining endpoint, as TCP connections do.
    if use is Use.CLUSTER:
        return port.cluster + port.draining
    if use is Use.LOCAL:
        return port.local + port.draining
    if use is Use.SPLIT:
        # An entry does not tell whether its client is a pod, so either list is right.
        return port.cluster + port.local + port.draining
    return ()


class Frontends:
    """The UDP and SCTP frontends of the last commit.

    One thread writes. Others may read `targets` meanwhile, because each value is replaced as a
    whole.
    """

    def __init__(self) -> None:
        self._services: dict[ObjectName, dict[FrontendKey, Targets]] = {}
        self._by_service: dict[FrontendKey, dict[ObjectName, Targets]] = {}
        self._targets: dict[tuple[Family, Protocol], dict[bytes, Targets]] = {
            (family, protocol): {} for family in Family for protocol in PROTOCOLS
        }

    def targets(self, family: Family, protocol: Protocol) -> Mapping[bytes, Targets]:
        """Return a live view of the targets by `FrontendKey.destination`."""
        return self._targets[family, protocol]

    def groups(self) -> frozenset[FrontendKey]:
        """Return a key that stands for all frontends, per family and protocol that has any."""
        return frozenset(FrontendKey(*group) for group, targets in self._targets.items() if targets)

    def node_ports(self) -> list[FrontendKey]:
        """Return the keys of node ports."""
        return [
            FrontendKey(*group, destination)
            for group, targets in self._targets.items()
            for destination in targets
            if len(destination) == _PORT_SIZE
        ]

    def replace(self, name: ObjectName, routing: ServiceRouting | None) -> frozenset[FrontendKey]:
        """Replace a Service's targets; return the frontends that may have stale flows now."""
        before = self._services.pop(name, {})
        after: dict[FrontendKey, Targets] = {}
        for key, target in flow_targets(routing) if routing is not None else ():
            after[key] = (*after.get(key, ()), target)
        if after:
            self._services[name] = after
        for key in before.keys() | after.keys():
            if before.get(key) != after.get(key):
                self._write(key, name, after.get(key))
        return frozenset(
            key
            for key in before.keys() | after.keys()
            if _may_make_stale(before.get(key, GONE), after.get(key, GONE))
        )

    def replace_all(
        self, routings: Iterable[ServiceRouting], kept: Collection[ObjectName] = ()
    ) -> frozenset[FrontendKey]:
        """Replace the targets of all Services.

        Those that are not in `routings` are gone, except the `kept` ones and their parts.
        """
        named = {routing.name: routing for routing in routings}
        others = self._services.keys() - named.keys()
        gone = [name for name in others if service_of(name) not in kept] if kept else others
        return frozenset[FrontendKey]().union(
            *(self.replace(name, routing) for name, routing in named.items()),
            *(self.replace(name, None) for name in gone),
        )

    def _write(self, key: FrontendKey, name: ObjectName, targets: Targets | None) -> None:
        services = self._by_service.setdefault(key, {})
        if targets is None:
            services.pop(name, None)
        else:
            services[name] = targets
        group = self._targets[key.family, key.protocol]
        if services:
            # One assignment, because the worker reads this dictionary meanwhile.
            group[key.destination] = tuple(chain.from_iterable(services.values()))
        else:
            del self._by_service[key]
            group.pop(key.destination, None)


def _may_make_stale(before: Targets, after: Targets) -> bool:
    """Return whether a change can make a flow stale: more endpoints for the same clients cannot."""
    old, new = _backends(before), _backends(after)
    # From none to one endpoint, entries of untranslated flows become stale.
    if old - new or bool(old) != bool(new):
        return True
    return [target.sources for target in before] != [target.sources for target in after] and bool(
        new
    )


def _backends(targets: Targets) -> frozenset[Backend]:
    return frozenset[Backend]().union(*(target.backends for target in targets))
