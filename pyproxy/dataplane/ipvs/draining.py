"""The rows that a change writes, with real servers drained before they are removed: pure.

IPVS ends the connections of a real server that is removed. A server of TCP that no Service needs
therefore gets weight 0, which means no new connections, and stays until it has none. Its virtual
service and the address stay as long, because established connections need both. The rules reject
new clients meanwhile. Servers of UDP and SCTP are removed at once, because a flow must not go on to
an endpoint that is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec

from pyproxy.dataplane.diff import Delta, diff
from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.rows import key_of_virtual
from pyproxy.dataplane.ipvs.schema import ADDRESSES_ON_DEVICE, SERVERS, VIRTUALS, ServerKey, Table
from pyproxy.dataplane.nft.rows import SharedRow
from pyproxy.model.address import Address, Backend, Protocol, family_of
from pyproxy.netlink.elements import Tag
from pyproxy.netlink.ipvs import Virtual

_DRAINING_WEIGHT = 0
# Its comment is in the kernel, so that a restart can tell it from a Service without endpoints.
_DRAINS = Tag("", "drains")


class Draining(msgspec.Struct, frozen=True):
    """The rows that stay only until their connections end.

    `servers` are the real servers by virtual service, `virtuals` the virtual services that have no
    other server.
    """

    servers: Mapping[Virtual, AbstractSet[Backend]] = {}
    virtuals: AbstractSet[Virtual] = frozenset()

    def pairs(self) -> set[ServerKey]:
        """Return the real servers as keys of their table."""
        return {(virtual, each) for virtual, found in self.servers.items() for each in found}


class Change(msgspec.Struct, frozen=True):
    """The input of one plan.

    `touched` are the keys by table that may change, `wanted` the desired rows among them.
    `is_needed` returns whether any Service needs a shared row. `node_addresses` are those of the
    node's other devices, which kube-ipvs0 must not have too. `drained` are real servers that have
    no connections left.
    """

    touched: Mapping[str, AbstractSet[Hashable]]
    wanted: Table
    is_needed: Callable[[SharedRow], bool]
    node_addresses: AbstractSet[Address]
    drained: AbstractSet[ServerKey] = frozenset()


class PlannedDelta(msgspec.Struct, frozen=True):
    """The rows to remove and to add, and the rows that drain after that."""

    delta: Delta[Any, Any]
    draining: Draining


def plan_delta(held: Table, draining: Draining, change: Change) -> PlannedDelta:
    """Return the smallest change from `held`, the kernel state, to the desired rows."""
    return _DeltaPlanner(held, draining, change).run()


def rows_of_drained(
    draining: Draining, drained: AbstractSet[ServerKey]
) -> dict[str, set[Hashable]]:
    """Return the keys by table that may change because these servers have drained."""
    virtuals = {virtual for virtual, _ in drained} & draining.virtuals
    return {SERVERS: set(drained), VIRTUALS: set(virtuals)}


class _DeltaPlanner:
    def __init__(self, held: Table, draining: Draining, change: Change) -> None:
        self._held = held
        self._change = change
        self._servers = {virtual: set(found) for virtual, found in draining.servers.items()}
        self._virtuals = set(draining.virtuals)
        self._touched: dict[str, set[Any]] = {
            name: set(keys) for name, keys in change.touched.items()
        }
        self._after: Table = {}

    def run(self) -> PlannedDelta:
        for name, keys in self._touched.items():
            wanted = self._change.wanted.get(name, {})
            self._after[name] = {key: wanted[key] for key in keys if key in wanted}
        # In this order: virtual services stay for their servers, addresses for virtual services.
        for key in self._touched.get(SERVERS, ()):
            self._server(key)
        for virtual in self._virtuals:
            if key_of_virtual(virtual) in self._touched.get(
                schema.NO_ENDPOINT_SERVICES.of(virtual.family), ()
            ):
                self._touch(VIRTUALS, virtual)
        for virtual in self._touched.get(VIRTUALS, ()):
            self._virtual(virtual)
        for address in self._touched.get(ADDRESSES_ON_DEVICE, ()):
            self._address(address)
        before = {
            name: {key: rows[key] for key in keys if key in rows}
            for name, keys in self._touched.items()
            if (rows := self._held.get(name))
        }
        servers = {virtual: frozenset(found) for virtual, found in self._servers.items() if found}
        return PlannedDelta(diff(before, self._after), Draining(servers, frozenset(self._virtuals)))

    def _server(self, key: ServerKey) -> None:
        virtual, backend = key
        # A server that is wanted again stops draining, and keeps its connections.
        self._servers.get(virtual, set()).discard(backend)
        stays = (
            key not in self._after[SERVERS]
            and key in self._held.get(SERVERS, {})
            and key not in self._change.drained
            and schema.protocol_of(virtual) == Protocol.TCP
        )
        if stays:
            self._servers.setdefault(virtual, set()).add(backend)
            self._after[SERVERS][key] = _DRAINING_WEIGHT

    def _virtual(self, virtual: Virtual) -> None:
        wanted = virtual in self._after[VIRTUALS]
        is_retired = not wanted and bool(self._servers.get(virtual))
        self._virtuals.discard(virtual)
        if is_retired:
            self._virtuals.add(virtual)
            self._after[VIRTUALS][virtual] = self._held[VIRTUALS][virtual]
        if virtual.mark:
            return
        key = key_of_virtual(virtual)
        # The element in `frontends` keeps the virtual service ours, also after a restart. The other
        # one makes the rules reject new connections.
        for kind in (schema.FRONTENDS, schema.NO_ENDPOINT_SERVICES):
            name = kind.of(virtual.family)
            held = self._held.get(name, {}).get(key)
            if key not in self._touched.get(name, ()):
                self._touch(name, key)
                if held is not None and held != _DRAINS and kind is schema.NO_ENDPOINT_SERVICES:
                    self._after[name][key] = held
            if is_retired:
                # The element of a Service without endpoints would stay for good, so its value is
                # replaced by one that marks it as ours to remove.
                kept = held if kind is schema.FRONTENDS else None
                self._after[name].setdefault(key, kept or _DRAINS)
        self._touch(ADDRESSES_ON_DEVICE, virtual.address)

    def _address(self, address: Address) -> None:
        change = self._change
        has = address in self._held.get(ADDRESSES_ON_DEVICE, {})
        stays = has and any(virtual.address == address for virtual in self._virtuals)
        is_needed = change.is_needed((ADDRESSES_ON_DEVICE, address))
        present = (stays or is_needed) and address not in change.node_addresses
        for name in (ADDRESSES_ON_DEVICE, schema.ADDRESSES.of(family_of(address))):
            self._shared_row(name, address, wanted=present)
        # A draining cluster IP stays one: its address blocks no other machine (`_may_block`).
        name = schema.CLUSTER_IPS.of(family_of(address))
        was = stays and address in self._held.get(name, {})
        self._shared_row(name, address, wanted=was or change.is_needed((name, address)))

    def _shared_row(self, name: str, address: Address, *, wanted: bool) -> None:
        self._touch(name, address)
        self._after[name].pop(address, None)
        if wanted:
            self._after[name][address] = b""

    def _touch(self, name: str, key: Hashable) -> None:
        self._touched.setdefault(name, set()).add(key)
        self._after.setdefault(name, {})
