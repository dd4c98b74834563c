"""One look at the flows of one family and protocol: read, judge, delete."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol as Interface

import msgspec

from pyproxy.dataplane.conntrack.frontends import GONE, FrontendOwners, stale
from pyproxy.errors import KernelError
from pyproxy.model.address import Address, Family, Protocol
from pyproxy.netlink.conntrack import Deletion
from pyproxy.netlink.flows import Flow

_FEW = 8
"""Up to so many frontends are asked for one by one: the kernel then walks its table once for each
(30 ms with 200,000 entries), which is cheaper than reading every entry of the protocol."""

_ALL = b""
"""The `destination` of the key that stands for all frontends of the family and protocol."""


class Table(Interface):
    """The kernel's conntrack table; `netlink.conntrack.Conntrack` is the real one."""

    @property
    def selective(self) -> bool:
        """Whether asking for one destination costs less than asking for all."""
        ...

    def flows(
        self, family: Family, protocol: Protocol, destination: bytes = b""
    ) -> Iterator[list[Flow]]:
        """Read entries piece by piece. Raises KernelError."""
        ...

    def delete(self, flows: Sequence[Flow]) -> Deletion:
        """Delete entries."""
        ...


class Found(msgspec.Struct, frozen=True):
    """What one look came to; `failed` are the wanted destinations that need another."""

    deleted: int
    failed: frozenset[bytes]
    errors: frozenset[str]


class Look:
    """Everything that a look at one family and protocol needs to know.

    `claims` is read as it is at that moment: it may change meanwhile, and the newest is right.
    """

    def __init__(
        self,
        table: Table,
        family: Family,
        protocol: Protocol,
        claims: Mapping[bytes, FrontendOwners],
        node_addresses: Collection[Address],
    ) -> None:
        self._table = table
        self._family = family
        self._protocol = protocol
        self._claims = claims
        self._node_addresses = node_addresses

    def run(self, wanted: AbstractSet[bytes]) -> Found:
        """Remove the stale flows of the wanted destinations, each the last part of a `Key`.

        What is stale is deleted as it is read, so that memory does not grow with the table.
        """
        each = self._table.selective and len(wanted) <= _FEW and _ALL not in wanted
        deleted = 0
        failed: set[bytes] = set()
        errors: set[str] = set()
        for asked in wanted if each else (_ALL,):
            try:
                for piece in self._table.flows(self._family, self._protocol, asked):
                    outcome = self._table.delete([f for f in piece if self._doomed(f, wanted)])
                    deleted += outcome.deleted
                    for flow, error in outcome.failed:
                        errors.add(str(error))
                        failed |= {_ALL, flow.destination, flow.destination[-2:]} & wanted
            except KernelError as error:
                errors.add(str(error))
                failed |= {asked} if each else wanted
        return Found(deleted, frozenset(failed), frozenset(errors))

    def _doomed(self, flow: Flow, wanted: AbstractSet[bytes]) -> bool:
        """Whether a flow is to one of the wanted frontends, and stale."""
        destination = flow.destination
        claims = self._claims.get(destination)
        named = destination in wanted
        if destination[:-2] in self._node_addresses:
            port = destination[-2:]
            named = named or port in wanted
            if claims is None:
                claims = self._claims.get(port)
        if claims is None:
            # Only what was just told to be gone: all other flows are none of ours.
            return named and stale(flow, GONE)
        return (named or _ALL in wanted) and stale(flow, claims)
