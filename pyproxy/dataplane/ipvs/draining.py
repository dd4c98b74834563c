"""What the kernel should hold next, of the rows that a change is about: values in, values out.

A real server of TCP that nobody wants any more is not removed: that would end its connections. It
gets weight 0, which gives it no new ones, and stays until those that it has are gone. As long as it
does its virtual service stays, and the address, so that their packets find the way; the rules
refuse whoever is new. UDP and SCTP go at once, for a flow must not go on to an endpoint that is
gone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec

from pyproxy.dataplane.diff import Delta, diff
from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.schema import ADDRESSES_ON_DEVICE, SERVERS, VIRTUALS, ServerKey, Table
from pyproxy.dataplane.nft.rows import SharedRow, frontend_key
from pyproxy.model.address import Address, Backend, Protocol, family_of
from pyproxy.netlink.elements import Tag
from pyproxy.netlink.ipvs import Virtual

_NO_NEW_ONES = 0
_REFUSES = Tag("", "drains")


class Draining(msgspec.Struct, frozen=True):
    """What nobody wants and what stays all the same, until its connections are gone.

    `servers` are the real servers by virtual service, `virtuals` those virtual services of which
    nothing else is left.
    """

    servers: Mapping[Virtual, AbstractSet[Backend]] = {}
    virtuals: AbstractSet[Virtual] = frozenset()

    def pairs(self) -> set[ServerKey]:
        """List the real servers."""
        return {(virtual, each) for virtual, found in self.servers.items() for each in found}


class Change(msgspec.Struct, frozen=True):
    """What one plan is about.

    `touched` are keys by table, and `wanted` the rows of those that policy asks for. `asks_for`
    tells whether any Service wants a row that several may want, and `own` are the addresses of this
    machine's other devices, which ours must not have as well. `done` are real servers that left and
    whose connections are gone.
    """

    touched: Mapping[str, AbstractSet[Hashable]]
    wanted: Table
    asks_for: Callable[[SharedRow], bool]
    own: AbstractSet[Address]
    done: AbstractSet[ServerKey] = frozenset()


class Next(msgspec.Struct, frozen=True):
    """The rows to remove and to add, and who is leaving once that is done."""

    delta: Delta[Any, Any]
    leaving: Draining


def settle(held: Table, leaving: Draining, change: Change) -> Next:
    """Work out the least to write, from what the kernel holds."""
    return _Settling(held, leaving, change).run()


def drain(leaving: Draining, done: AbstractSet[ServerKey]) -> dict[str, set[Hashable]]:
    """Say what is touched when these have no connections left."""
    retired = {virtual for virtual, _ in done} & leaving.virtuals
    return {SERVERS: set(done), VIRTUALS: set(retired)}


class _Settling:
    def __init__(self, held: Table, leaving: Draining, change: Change) -> None:
        self._held = held
        self._change = change
        self._servers = {virtual: set(found) for virtual, found in leaving.servers.items()}
        self._virtuals = set(leaving.virtuals)
        self._touched: dict[str, set[Any]] = {
            name: set(keys) for name, keys in change.touched.items()
        }
        self._after: Table = {}

    def run(self) -> Next:
        for name, keys in self._touched.items():
            wanted = self._change.wanted.get(name, {})
            self._after[name] = {key: wanted[key] for key in keys if key in wanted}
        for key in self._touched.get(SERVERS, ()):
            self._server(key)
        for virtual in self._virtuals:
            if _key(virtual) in self._touched.get(
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
        return Next(diff(before, self._after), Draining(servers, frozenset(self._virtuals)))

    def _server(self, key: ServerKey) -> None:
        virtual, backend = key
        self._servers.get(virtual, set()).discard(backend)
        stays = (
            key not in self._after[SERVERS]
            and key in self._held.get(SERVERS, {})
            and key not in self._change.done
            and schema.protocol_of(virtual) == Protocol.TCP
        )
        if stays:
            self._servers.setdefault(virtual, set()).add(backend)
            self._after[SERVERS][key] = _NO_NEW_ONES

    def _virtual(self, virtual: Virtual) -> None:
        wanted = virtual in self._after[VIRTUALS]
        retires = not wanted and bool(self._servers.get(virtual))
        self._virtuals.discard(virtual)
        if retires:
            self._virtuals.add(virtual)
            self._after[VIRTUALS][virtual] = self._held[VIRTUALS][virtual]
        if virtual.mark:
            return
        key = _key(virtual)
        for kind in (schema.FRONTENDS, schema.NO_ENDPOINT_SERVICES):
            name = kind.of(virtual.family)
            held = self._held.get(name, {}).get(key)
            if key not in self._touched.get(name, ()):
                self._touch(name, key)
                if held is not None and held != _REFUSES and kind is schema.NO_ENDPOINT_SERVICES:
                    self._after[name][key] = held
            if retires:
                # A refusal that a Service had asked for, and no longer does, would stay for good.
                said = held if kind is schema.FRONTENDS else None
                self._after[name].setdefault(key, said or _REFUSES)
        self._touch(ADDRESSES_ON_DEVICE, virtual.address)

    def _address(self, address: Address) -> None:
        change = self._change
        has = address in self._held.get(ADDRESSES_ON_DEVICE, {})
        stays = has and any(virtual.address == address for virtual in self._virtuals)
        asked = change.asks_for((ADDRESSES_ON_DEVICE, address))
        here = (stays or asked) and address not in change.own
        for name in (ADDRESSES_ON_DEVICE, schema.ADDRESSES.of(family_of(address))):
            self._shared_row(name, address, wanted=here)
        # A cluster IP is one until it is let go: it matters to how long that may take.
        name = schema.CLUSTER_IPS.of(family_of(address))
        was = stays and address in self._held.get(name, {})
        self._shared_row(name, address, wanted=was or change.asks_for((name, address)))

    def _shared_row(self, name: str, address: Address, *, wanted: bool) -> None:
        self._touch(name, address)
        self._after[name].pop(address, None)
        if wanted:
            self._after[name][address] = b""

    def _touch(self, name: str, key: Hashable) -> None:
        self._touched.setdefault(name, set()).add(key)
        self._after.setdefault(name, {})


def _key(virtual: Virtual) -> bytes:
    return frontend_key(virtual.address, Protocol(schema.protocol_of(virtual)), virtual.port)
