"""One sweep over the flows of one family and protocol: read, decide, delete."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol as Interface

import msgspec

from pyproxy.dataplane.conntrack.frontends import GONE, Targets, is_stale
from pyproxy.errors import KernelError
from pyproxy.model.address import Address, Family, Protocol
from pyproxy.netlink.conntrack import Deletion
from pyproxy.netlink.flows import Flow

_FEW = 8
"""Number of frontends up to which each is read by itself. The kernel walks its table once for each,
30 ms with 200,000 entries, which costs less than a dump of every entry of the protocol."""

_ALL = b""
"""The `destination` of the key that stands for all frontends of the family and protocol."""


class Table(Interface):
    """The kernel's conntrack table; `netlink.conntrack.Conntrack` is the real one."""

    @property
    def selective(self) -> bool:
        """Whether the kernel filters a dump by destination, which then costs less than all."""
        ...

    def flows(
        self, family: Family, protocol: Protocol, destination: bytes = b""
    ) -> Iterator[list[Flow]]:
        """Yield entries in the pieces of the dump. Blocks; raises KernelError."""
        ...

    def delete(self, flows: Sequence[Flow]) -> Deletion:
        """Delete entries. Blocks; idempotent: a missing entry is no failure."""
        ...


class SweepResult(msgspec.Struct, frozen=True):
    """The result of one sweep; `failed` are the wanted destinations to sweep again."""

    deleted: int
    failed: frozenset[bytes]
    errors: frozenset[str]


class Sweep:
    """Deletes stale flows of one family and protocol.

    `targets` is a live view. A commit may change it during the sweep; the newest value is right.
    Node ports are served on `node_addresses`, and were until late on `lost_addresses`.
    """

    def __init__(
        self,
        table: Table,
        family: Family,
        protocol: Protocol,
        targets: Mapping[bytes, Targets],
        node_addresses: Collection[Address],
        lost_addresses: Collection[Address] = (),
    ) -> None:
        self._table = table
        self._family = family
        self._protocol = protocol
        self._targets = targets
        self._node_addresses = node_addresses
        self._lost_addresses = lost_addresses

    def run(self, wanted: AbstractSet[bytes]) -> SweepResult:
        """Delete the stale flows of the wanted `FrontendKey.destination`s.

        Each piece of the dump is handled before the next, so memory does not grow with the table.
        """
        each = self._table.selective and len(wanted) <= _FEW and _ALL not in wanted
        deleted = 0
        failed: set[bytes] = set()
        errors: set[str] = set()
        for asked in wanted if each else (_ALL,):
            try:
                for piece in self._table.flows(self._family, self._protocol, asked):
                    deletion = self._table.delete([f for f in piece if self._is_stale(f, wanted)])
                    deleted += deletion.deleted
                    for flow, error in deletion.failed:
                        errors.add(str(error))
                        # Any of these may be the key under which the flow was wanted.
                        failed |= {_ALL, flow.destination, flow.destination[-2:]} & wanted
            except KernelError as error:
                errors.add(str(error))
                failed |= {asked} if each else wanted
        return SweepResult(deleted, frozenset(failed), frozenset(errors))

    def _is_stale(self, flow: Flow, wanted: AbstractSet[bytes]) -> bool:
        """Return whether a flow is stale and goes to one of the wanted frontends."""
        destination = flow.destination
        targets = self._targets.get(destination)
        named = destination in wanted
        if destination[:-2] in self._node_addresses:
            port = destination[-2:]
            named = named or port in wanted
            # A frontend with the node's address and this port precedes a node port.
            if targets is None:
                targets = self._targets.get(port)
        elif self._lost_addresses and destination[:-2] in self._lost_addresses:
            named = named or destination[-2:] in wanted
        if targets is None:
            # Without a target, a flow is ours only if its frontend was removed just now.
            return named and is_stale(flow, GONE)
        return (named or _ALL in wanted) and is_stale(flow, targets)
