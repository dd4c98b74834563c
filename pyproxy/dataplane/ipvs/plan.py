"""One commit as a value, and its requests in the order in which they are sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from pyproxy.dataplane.diff import Delta
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.ipvs.draining import Draining
from pyproxy.dataplane.ipvs.marks import Marks
from pyproxy.dataplane.ipvs.ruleset import Options
from pyproxy.dataplane.ipvs.schema import (
    ADDRESSES_ON_DEVICE,
    BY_NAME,
    DEVICE,
    OTHER_METHOD,
    SERVERS,
    TABLE,
    VIRTUALS,
    Table,
)
from pyproxy.dataplane.nft import listing
from pyproxy.dataplane.nft.rows import SharedRow
from pyproxy.model.address import Address, address_text, backend, backend_text
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import ElementMessage, add_elements, delete_elements
from pyproxy.netlink.ipvs import PERSISTENT, Messages, Scheduling, Virtual, protocol_name
from pyproxy.netlink.requests import Request
from pyproxy.policy.routing import ServiceRouting

_KINDS = {
    VIRTUALS: "virtual service",
    SERVERS: "real server",
    ADDRESSES_ON_DEVICE: "address",
}


class IpvsPlan(msgspec.Struct, frozen=True):
    """Rows to remove and to add, and the state after the commit.

    `services` are the changed routings, `shared` is the change in each shared row's users, and
    `marks` are the ports' numbers. `held` is the kernel state that a full plan started from.
    `reload` says that the rules of `options` must be loaded, `device` that the device must be made,
    `label` that it must get our alias. `node` is the node's routing if it changes. `foreign` are
    the virtual services of other programs that a full plan has read.
    """

    delta: Delta[Any, Any]
    draining: Draining
    services: Mapping[ObjectName, ServiceRouting | None]
    shared: Mapping[SharedRow, int]
    marks: Marks
    options: Options
    held: Table | None = None
    node: NodeRouting | None = None
    reload: bool = False
    device: bool = False
    label: bool = False
    foreign: frozenset[Virtual] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.delta or self.reload or self.device or self.label)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    @property
    def whole(self) -> bool:
        """Whether the plan was made from a read-back."""
        return self.held is not None

    def lines(self) -> Iterator[str]:
        """Yield a line for each row that is written."""
        if self.device:
            yield f"add device {DEVICE}"
        if self.label:
            yield f"label device {DEVICE}"
        if self.reload:
            yield f"load the base rules of table inet {TABLE}"
        for verb, side in (("delete", self.delta.remove), ("add", self.delta.add)):
            other = self.delta.add if verb == "delete" else self.delta.remove
            for name, kind in _KINDS.items():
                for key, value in side.get(name, {}).items():
                    changes = key in other.get(name, {})
                    if not (changes and verb == "delete"):
                        yield f"{'set' if changes else verb} {kind} {_text(key, value)}"
            sets = {name: rows for name, rows in side.items() if name in BY_NAME}
            yield from listing.commands(verb, sets, TABLE, BY_NAME)

    def counts(self) -> Mapping[str, int]:
        """Count the objects of each kind; one that changes counts once."""
        counts = dict.fromkeys((*_KINDS.values(), "element"), 0)
        for name in self.delta.remove.keys() | self.delta.add.keys():
            keys = self.delta.remove.get(name, {}).keys() | self.delta.add.get(name, {}).keys()
            counts[_KINDS.get(name, "element")] += len(keys)
        counts |= {"ruleset": int(self.reload), "device": int(self.device or self.label)}
        return {kind: count for kind, count in counts.items() if count}

    def netlink(self) -> Iterator[str]:
        """Yield each message in hexadecimal, with its table; those to IPVS come first and last."""
        # The kernel gives IPVS a message type of its own at each boot, which no plan knows.
        write = Messages(0)
        for each in (*new_virtuals(self.delta, write), *new_servers(self.delta, write)):
            yield f"{_KINDS[each.table]}, IPVS: {each.request.body.hex()}"
        for write_of in self.elements():
            what = f"{write_of.set_name}, {len(write_of.keys)} elements"
            yield f"{what}, type {write_of.message.kind:#06x}: {write_of.message.body.hex()}"
        for each in removals(self.delta, write):
            yield f"{_KINDS[each.table]}, IPVS: {each.request.body.hex()}"

    def elements(self) -> list[ElementMessage]:
        """Pack the changed elements; one with a new value is removed and then added."""
        # NEWSETELEM replaces nothing: the kernel rejects an existing key with other data, and
        # ignores another comment.
        gone, new = self.delta.remove, self.delta.add
        return [
            *(each for name in gone if name in BY_NAME
              for each in delete_elements(TABLE, name, gone[name], BY_NAME[name][0].shape)),
            *(each for name in new if name in BY_NAME
              for each in add_elements(TABLE, name, new[name], BY_NAME[name][0].shape)),
        ]  # fmt: skip


class Write(msgspec.Struct, frozen=True):
    """A request and the row that it writes; `value` is None for a removal."""

    table: str
    key: Any
    value: Any
    request: Request


def new_virtuals(delta: Delta[Any, Any], write: Messages) -> Iterator[Write]:
    """Yield new virtual services, and new schedulers of others."""
    gone, new = delta.remove, delta.add
    for virtual, how in new.get(VIRTUALS, {}).items():
        changes = virtual in gone.get(VIRTUALS, {})
        request = (write.set_virtual if changes else write.add_virtual)(virtual, how)
        yield Write(VIRTUALS, virtual, how, request)


def new_servers(delta: Delta[Any, Any], write: Messages) -> Iterator[Write]:
    """Yield the servers that new connections need; their virtual services must exist."""
    gone, new = delta.remove, delta.add
    there = gone.get(SERVERS, {})
    for key, weight in new.get(SERVERS, {}).items():
        if key not in there:
            yield Write(SERVERS, key, weight, write.add_server(key[0], key[1], weight))
        # A server that serves again: only a weight above 0 admits new connections.
        elif weight:
            yield Write(SERVERS, key, weight, write.set_server(key[0], key[1], weight))


def removals(delta: Delta[Any, Any], write: Messages) -> Iterator[Write]:
    """Yield what must wait until the rules send no new connections: weights of 0, removals."""
    gone, new = delta.remove, delta.add
    virtuals = gone.get(VIRTUALS, {}).keys() - new.get(VIRTUALS, {}).keys()
    for key in gone.get(SERVERS, {}):
        weight = new.get(SERVERS, {}).get(key)
        if weight == 0:
            yield Write(SERVERS, key, 0, write.set_server(key[0], key[1], 0))
        # The kernel removes the servers of a removed virtual service.
        elif weight is None and key[0] not in virtuals:
            yield Write(SERVERS, key, None, write.delete_server(*key))
    for virtual in virtuals:
        yield Write(VIRTUALS, virtual, None, write.delete_virtual(virtual))


def row_lines(table: Table) -> Iterator[str]:
    """Yield one line for each row."""
    for name, kind in _KINDS.items():
        for key, value in table.get(name, {}).items():
            yield f"{kind} {_text(key, value)}"
    yield from listing.lines({name: table[name] for name in table if name in BY_NAME}, BY_NAME)


def _text(key: Any, value: Any) -> str:
    if isinstance(key, bytes):
        return f"{address_text(Address(key))} on {DEVICE}"
    if isinstance(key, Virtual):
        return f"{virtual_text(key)} {scheduling_text(value)}"
    virtual, server = key
    how = "not masqueraded" if value == OTHER_METHOD else f"weight {value}"
    return f"{backend_text(server)} of {virtual_text(virtual)} {how}"


def virtual_text(virtual: Virtual) -> str:
    """Return a virtual service as `tcp 10.96.0.1:80`, or `mark 0x50000004 (IPv4)`."""
    if virtual.mark:
        return f"mark {virtual.mark:#010x} (IPv{virtual.family.value})"
    place = backend_text(backend(virtual.address, virtual.port))
    return f"{protocol_name(virtual.protocol)} {place}"


def scheduling_text(how: Scheduling) -> str:
    """Return the scheduler and its persistence, as `rr persistent 10800`."""
    return f"{how.scheduler}{f' persistent {how.timeout}' if how.flags & PERSISTENT else ''}"
