"""The floor: the same elements packed by the plainest program that will do, and sent.

It knows nothing of Services, compares nothing and remembers nothing. What the agent takes beyond
this is the price of being one.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping

import msgspec

from bench.figures import Spread
from bench.inside import inside, lists
from bench.objects import Size
from pyproxy.dataplane.nftables.readback import read_table
from pyproxy.dataplane.nftables.schema import BY_NAME, ENDPOINTS, SERVICES, TABLE, Rows, Table
from pyproxy.lab.namespace import LabError
from pyproxy.model.address import Family
from pyproxy.netlink.attributes import string
from pyproxy.netlink.nfnetlink import NLM_F_CREATE, Message, Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM, Value, delete_elements

_NEW_ELEMENTS, _DELETE_ELEMENTS = SUBSYSTEM << 8 | 12, SUBSYSTEM << 8 | 14
_NESTED = 0x8000
_ELEMENTS = 3 | _NESTED
_MESSAGE_LIMIT = 60_000
_GOTO = struct.pack(">i", -4)


class Floor(msgspec.Struct, frozen=True):
    """Seconds to pack everything, to send it, and to do both for one element."""

    packing: float
    sending: float
    change: Spread

    @property
    def everything(self) -> float:
        """Seconds for all elements."""
        return self.packing + self.sending


def floor(size: Size, changes: int) -> Floor:
    """Measure on the agent's own table, emptied of the elements that are then written again."""
    with inside() as agent:
        agent.hear(lists(size))
        agent.agent.sync()
        netlink = Nfnetlink()
        try:
            names = (SERVICES.of(Family.IPV4), ENDPOINTS.of(Family.IPV4))
            held = read_table(netlink)
            return _measure(netlink, {name: held[name] for name in names}, changes)
        finally:
            netlink.close()


def _measure(netlink: Nfnetlink, table: Table, changes: int) -> Floor:
    for name, rows in table.items():
        shape = BY_NAME[name][0].shape
        _send(netlink, [each.message for each in delete_elements(TABLE, name, rows, shape)])
    began = time.perf_counter()
    messages = [message for name, rows in table.items() for message in _pack(name, rows)]
    packed = time.perf_counter()
    _send(netlink, messages)
    sent = time.perf_counter()
    name = ENDPOINTS.of(Family.IPV4)
    return Floor(packed - began, sent - packed, Spread(_changes(netlink, table[name], changes)))


def _changes(netlink: Nfnetlink, endpoints: Rows, changes: int) -> list[float]:
    seconds = []
    keys = list(endpoints)[: changes // 2]
    for key in keys:
        for kind in (_DELETE_ELEMENTS, _NEW_ELEMENTS):
            began = time.perf_counter()
            _send(netlink, list(_pack(ENDPOINTS.of(Family.IPV4), {key: endpoints[key]}, kind)))
            seconds.append(time.perf_counter() - began)
    return seconds


def _send(netlink: Nfnetlink, messages: list[Message]) -> None:
    if refusals := netlink.transact(messages, SUBSYSTEM):
        raise LabError(f"the kernel refused what it had held: {refusals[0].error}")


def _pack(name: str, rows: Mapping[bytes, Value], kind: int = _NEW_ELEMENTS) -> Iterator[Message]:
    head = string(1, TABLE) + string(2, name)
    flags = NLM_F_CREATE if kind == _NEW_ELEMENTS else 0
    size = 0
    parts: list[bytes] = []
    for key, value in rows.items():
        element = _element(key, value)
        if size + len(element) > _MESSAGE_LIMIT:
            yield _message(kind, flags, head, parts)
            parts, size = [], 0
        parts.append(element)
        size += len(element)
    yield _message(kind, flags, head, parts)


def _message(kind: int, flags: int, head: bytes, parts: list[bytes]) -> Message:
    elements = b"".join(parts)
    return Message(kind, flags, head + struct.pack("=HH", len(elements) + 4, _ELEMENTS) + elements)


def _element(key: bytes, value: Value) -> bytes:
    if isinstance(value, bytes):
        data = value
        inner = 1
    else:
        chain = value.target.encode() + b"\0"
        padding = b"\0" * (-len(chain) % 4)
        verdict = struct.pack("=HH4sHH", 8, 1, _GOTO, len(chain) + 4, 2)
        data, inner = verdict + chain + padding, 2 | _NESTED
    return (
        struct.pack(
            f"=HHHHHH{len(key)}sHHHH",
            *(len(key) + len(data) + 20, 1 | _NESTED),
            *(len(key) + 8, 1 | _NESTED),
            *(len(key) + 4, 1),
            key,
            *(len(data) + 8, 2 | _NESTED),
            *(len(data) + 4, inner),
        )
        + data
    )
