"""nf_tables' flowtables: messages that write them, their expression, and what the kernel has.

Facts: include/uapi/linux/netfilter/nf_tables.h; nf_tables_newflowtable, nft_flowtable_update and
nft_delflowtable_hook in net/netfilter/nf_tables_api.c. Since Linux 5.8 a flowtable can get and lose
devices while it has flows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec

from pyproxy.netlink.attributes import attribute, attribute_map, attributes, nested, string, text
from pyproxy.netlink.frames import NLM_F_CREATE
from pyproxy.netlink.nfnetlink import Message
from pyproxy.netlink.nftables import NOTHING, message_type

_NEWFLOWTABLE, _GETFLOWTABLE, _DELFLOWTABLE = 22, 23, 24
_TABLE, _NAME, _HOOK, _FLAGS = 1, 2, 3, 7
_HOOK_NUMBER, _HOOK_PRIORITY, _HOOK_DEVICES = 1, 2, 3
_DEVICE_NAME = 1
_INGRESS = 0
_COUNTER = 2
"""NFT_FLOWTABLE_COUNTER: conntrack's counters include the packets of the fast path."""


class Flowtable(msgspec.Struct, frozen=True):
    """A flowtable in the kernel: its name, and the names of its devices."""

    name: str
    devices: frozenset[str]


def new_flowtable(table: str, name: str, priority: int) -> Message:
    """Add a flowtable without devices; one that exists stays as it is."""
    hook = nested(_HOOK, *_place(priority))
    flags = attribute(_FLAGS, struct.pack(">I", _COUNTER))
    body = string(_TABLE, table) + string(_NAME, name) + hook + flags
    return Message(message_type(_NEWFLOWTABLE), NLM_F_CREATE, body)


def add_device(table: str, name: str, priority: int, device: str) -> Message:
    """Bind a device to a flowtable that exists; ENOENT before Linux 6.16 if there is no device."""
    # The kernel compares the flags of an update with those that the flowtable has.
    hook = nested(_HOOK, *_place(priority), _devices(device))
    flags = attribute(_FLAGS, struct.pack(">I", _COUNTER))
    body = string(_TABLE, table) + string(_NAME, name) + hook + flags
    return Message(message_type(_NEWFLOWTABLE), NLM_F_CREATE, body)


def delete_device(table: str, name: str, priority: int, device: str) -> Message:
    """Release a device; its flows return to the slow path. ENOENT if it is not bound."""
    hook = nested(_HOOK, *_place(priority), _devices(device))
    body = string(_TABLE, table) + string(_NAME, name) + hook
    return Message(message_type(_DELFLOWTABLE), 0, body)


def delete_flowtable(table: str, name: str) -> Message:
    """Delete a flowtable that no rule uses; its flows return to the slow path."""
    return Message(message_type(_DELFLOWTABLE), 0, string(_TABLE, table) + string(_NAME, name))


def get_flowtables(table: str) -> Message:
    """Request the flowtables of a table."""
    return Message(message_type(_GETFLOWTABLE), 0, string(_TABLE, table))


def read_flowtables(replies: Iterable[memoryview]) -> dict[str, Flowtable]:
    """Read the replies to `get_flowtables`, by name."""
    found: dict[str, Flowtable] = {}
    for reply in replies:
        fields = attribute_map(reply)
        if _NAME not in fields:
            continue
        name = text(fields[_NAME])
        hook = attribute_map(fields.get(_HOOK, NOTHING))
        devices = attributes(hook.get(_HOOK_DEVICES, NOTHING))
        found[name] = Flowtable(
            name, frozenset(text(value) for kind, value in devices if kind == _DEVICE_NAME)
        )
    return found


def _place(priority: int) -> tuple[bytes, bytes]:
    return (
        attribute(_HOOK_NUMBER, struct.pack(">I", _INGRESS)),
        attribute(_HOOK_PRIORITY, struct.pack(">i", priority)),
    )


def _devices(name: str) -> bytes:
    return nested(_HOOK_DEVICES, string(_DEVICE_NAME, name))
