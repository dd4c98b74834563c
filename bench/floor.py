"""The floor: the same elements packed by the plainest program that will do, and sent.

It knows nothing of Services, compares nothing and remembers nothing. The agent's time beyond
this is the price of being one.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping

import msgspec
from pyproxy_lab.bench.figures import Spread
from pyproxy_lab.bench.shape import Size
from pyproxy_lab.namespace import LabError

from bench.inside import Inside, held, inside, lists
from pyproxy.dataplane.nft.schema import Rows, Table
from pyproxy.dataplane.nftables.schema import ENDPOINTS, SERVICES, TABLE
from pyproxy.model.address import Family
from pyproxy.netlink.attributes import string
from pyproxy.netlink.elements import Value
from pyproxy.netlink.frames import NLM_F_CREATE
from pyproxy.netlink.nfnetlink import Message, Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM, delete_table

_NEW_ELEMENTS, _DELETE_ELEMENTS = SUBSYSTEM << 8 | 12, SUBSYSTEM << 8 | 14
_NESTED = 0x8000
_ELEMENTS = 3 | _NESTED
_MESSAGE_LIMIT = 60_000
_GOTO = struct.pack(">i", -4)


class Floor(msgspec.Struct, frozen=True):
    """Seconds to pack everything, to send it, and to do both for one element."""

    packing: Spread
    sending: Spread
    change: Spread

    @property
    def everything(self) -> float:
        """Seconds for all elements, at their best: a floor is what nothing disturbed."""
        return self.packing.best + self.sending.best


def floor(size: Size, changes: int, runs: int) -> Floor:
    """Measure on a table as the agent makes it, with the elements that the agent writes."""
    with inside() as agent:
        agent.handle_event(lists(size))
        agent.agent.sync()
        wanted = _read()
    # One Service brings the chains that all of them go to. Its agent must be gone by then: while
    # anybody listens, the kernel announces every single element.
    agent = Inside()
    agent.handle_event(lists(Size(1, size.endpoints)))
    agent.agent.sync()
    agent.dataplane.close()
    netlink = Nfnetlink()
    try:
        times = [_write(netlink, wanted) for _ in range(runs)]
        endpoints = wanted[ENDPOINTS.of(Family.IPV4)]
        changed = Spread(_changes(netlink, endpoints, changes))
        netlink.transact([delete_table(TABLE)], SUBSYSTEM)
    finally:
        netlink.close()
    packing, sending = (Spread(each) for each in zip(*times, strict=True))
    return Floor(packing, sending, changed)


def _read() -> Table:
    """Read what the kernel holds, in order and not in that of the kernel's hashes."""
    found = held()
    names = (SERVICES.of(Family.IPV4), ENDPOINTS.of(Family.IPV4))
    return {name: dict(sorted(found[name].items())) for name in names}


def _write(netlink: Nfnetlink, table: Table) -> tuple[float, float]:
    for name, there in _read().items():
        _send(netlink, list(_pack(name, dict.fromkeys(there, b""), _DELETE_ELEMENTS)))
    began = time.perf_counter()
    messages = [message for name, rows in table.items() for message in _pack(name, rows)]
    packed = time.perf_counter()
    _send(netlink, messages)
    return packed - began, time.perf_counter() - packed


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
    if errors := netlink.transact(messages, SUBSYSTEM):
        raise LabError(f"the kernel rejected its own elements: {errors[0].error}")


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
    data, inner = value if isinstance(value, bytes) else _verdict(value.target), 1
    if not isinstance(value, bytes):
        inner = 2 | _NESTED
    size = len(data) + 8 if data else 0
    head = struct.pack(
        f"=HHHHHH{len(key)}s",
        *(len(key) + 12 + size, 1 | _NESTED),
        *(len(key) + 8, 1 | _NESTED),
        *(len(key) + 4, 1),
        key,
    )
    if not data:
        return head
    return head + struct.pack("=HHHH", size, 2 | _NESTED, len(data) + 4, inner) + data


def _verdict(chain: str) -> bytes:
    name = chain.encode() + b"\0"
    return struct.pack("=HH4sHH", 8, 1, _GOTO, len(name) + 4, 2) + name + b"\0" * (-len(name) % 4)
