"""Which conntrack entries are out of date: pure values and one decision.

The kernel translates the first packet of a flow and remembers it. A UDP client that keeps its
source port therefore stays with what its first packet met, however long ago: a backend that is
gone, or no translation at all from the time before there was a Service. TCP needs none of this:
its peers notice, and a connection to a backend that is being drained must live on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from pyproxy.model.address import Address, Backend, Family, Network, Protocol
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.flows import Flow
from pyproxy.policy.routing import PortRouting, Scope, ServiceRouting, Use

_PORT_SIZE = 2

PROTOCOLS = (Protocol.UDP, Protocol.SCTP)


class Key(NamedTuple):
    """A frontend as packets name it.

    `destination` is an address and a port packed as in `Backend`, the 2 bytes of the port alone
    for a node port, and empty for all frontends of the family and protocol.
    """

    family: Family
    protocol: Protocol
    destination: bytes = b""


class Claim(msgspec.Struct, frozen=True, gc=False):
    """What one Service says of a frontend: whom its flows may go to, and for which clients.

    `backends` is empty where it refuses or drops. `sources` is empty where everybody may come in.
    """

    backends: frozenset[Backend]
    sources: tuple[Network, ...] = ()

    def admits(self, flow: Flow) -> bool:
        """Whether the source ranges let the flow's client in.

        A client that has the frontend's own address is the node itself, which is not judged here.
        """
        client = Address(flow.source[:-2])
        return (
            not self.sources
            or client == flow.destination[:-2]
            or any(client in network for network in self.sources)
        )


FrontendOwners = tuple[Claim, ...]
"""All that is said of one frontend, for two Services may name the same external address."""

GONE: FrontendOwners = ()
"""A frontend that was ours until a moment ago."""


def stale(flow: Flow, claims: FrontendOwners) -> bool:
    """Whether the next packet of a flow to a frontend would be answered otherwise than the flow is.

    True where the flow goes to a backend that no claim allows it, where it goes untranslated
    though it would find a backend, and where it is translated though nobody would answer. An
    untranslated entry in another conntrack zone tells nothing: its zone is another program's, and
    the translation is in the entry of the default zone.
    """
    admitted = [claim.backends for claim in claims if claim.backends and claim.admits(flow)]
    if any(flow.reply_source in backends for backends in admitted):
        return False
    if flow.translated:
        return True
    return bool(admitted) and not flow.zoned


def port_claims(routing: ServiceRouting) -> Iterator[tuple[Key, Claim]]:
    """Say what a Service claims, its UDP and SCTP ports alone."""
    for port in routing.ports:
        if port.protocol not in PROTOCOLS:
            continue
        uses = {frontend.use for frontend in port.frontends}
        backends = {use: frozenset(_usable(port, use)) for use in uses}
        for frontend in port.frontends:
            guarded = frontend.scope is Scope.LOAD_BALANCER
            yield (
                Key(
                    port.family,
                    port.protocol,
                    frontend.address + frontend.port.to_bytes(2, "big"),
                ),
                Claim(backends[frontend.use], routing.source_ranges if guarded else ()),
            )


def _usable(port: PortRouting, use: Use) -> tuple[Backend, ...]:
    # A flow may stay with a backend that drains, as TCP connections do: the conversation is there.
    if use is Use.CLUSTER:
        return port.cluster + port.draining
    if use is Use.LOCAL:
        return port.local + port.draining
    if use is Use.SPLIT:
        # Who counts as a pod is not to be read from an entry, so either answer will do.
        return port.cluster + port.local + port.draining
    return ()


class Frontends:
    """The UDP and SCTP frontends as they were committed last.

    One thread writes. Any other may look into `claims` meanwhile: what it finds is always whole.
    """

    def __init__(self) -> None:
        self._services: dict[ObjectName, dict[Key, FrontendOwners]] = {}
        self._claimants: dict[Key, dict[ObjectName, FrontendOwners]] = {}
        self._claims: dict[tuple[Family, Protocol], dict[bytes, FrontendOwners]] = {
            (family, protocol): {} for family in Family for protocol in PROTOCOLS
        }

    def claims(self, family: Family, protocol: Protocol) -> Mapping[bytes, FrontendOwners]:
        """What is said of each frontend, by a key's `destination`; it follows every change."""
        return self._claims[family, protocol]

    def groups(self) -> frozenset[Key]:
        """The families and protocols that have a frontend at all, as keys that mean them all."""
        return frozenset(Key(*group) for group, claims in self._claims.items() if claims)

    def node_ports(self) -> list[Key]:
        """The frontends on the node's own addresses."""
        return [
            Key(*group, destination)
            for group, claims in self._claims.items()
            for destination in claims
            if len(destination) == _PORT_SIZE
        ]

    def replace(self, name: ObjectName, routing: ServiceRouting | None) -> frozenset[Key]:
        """Take a Service's new answer; the frontends that may have stale flows because of it."""
        before = self._services.pop(name, {})
        after: dict[Key, FrontendOwners] = {}
        for key, claim in port_claims(routing) if routing is not None else ():
            after[key] = (*after.get(key, ()), claim)
        if after:
            self._services[name] = after
        for key in before.keys() | after.keys():
            if before.get(key) != after.get(key):
                self._write(key, name, after.get(key))
        return frozenset(
            key
            for key in before.keys() | after.keys()
            if _unsettles(before.get(key, GONE), after.get(key, GONE))
        )

    def replace_all(self, routings: Iterable[ServiceRouting]) -> frozenset[Key]:
        """Take what every Service says, as `replace` does; one not among them is gone."""
        named = {routing.name: routing for routing in routings}
        return frozenset[Key]().union(
            *(self.replace(name, named.get(name)) for name in named.keys() | self._services.keys())
        )

    def _write(self, key: Key, name: ObjectName, claims: FrontendOwners | None) -> None:
        claimants = self._claimants.setdefault(key, {})
        if claims is None:
            claimants.pop(name, None)
        else:
            claimants[name] = claims
        group = self._claims[key.family, key.protocol]
        if claimants:
            group[key.destination] = tuple(claim for said in claimants.values() for claim in said)
        else:
            del self._claimants[key]
            group.pop(key.destination, None)


def _unsettles(before: FrontendOwners, after: FrontendOwners) -> bool:
    """Whether a change can make a flow stale: more backends for the same clients cannot."""
    old, new = _backends(before), _backends(after)
    if old - new or bool(old) != bool(new):
        return True
    return [claim.sources for claim in before] != [claim.sources for claim in after] and bool(new)


def _backends(claims: FrontendOwners) -> frozenset[Backend]:
    return frozenset[Backend]().union(*(claim.backends for claim in claims))
