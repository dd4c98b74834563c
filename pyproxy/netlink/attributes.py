"""Netlink attributes: the length-type-value records that message bodies consist of.

Facts: include/uapi/linux/netlink.h. Lengths include the 4-byte header, values are padded to 4
bytes, and a value that holds attributes itself has the flag NESTED in its type.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

NESTED = 0x8000
# NLA_F_NESTED and NLA_F_NET_BYTEORDER are flags in the upper two bits of the type.
_TYPE_MASK = 0x3FFF
_HEADER = struct.Struct("=HH")


def attribute(kind: int, value: bytes) -> bytes:
    """Pack one attribute; the value is at most 65531 bytes long."""
    return _HEADER.pack(len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Pack an attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(attributes))


def string(kind: int, value: str) -> bytes:
    """Pack a name, with the zero byte at its end that the kernel expects."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield each attribute as (type, value); one that is cut short ends the iteration."""
    view = memoryview(data)
    offset, size = 0, len(view)
    while offset + 4 <= size:
        length, kind = _HEADER.unpack_from(view, offset)
        if length < 4 or offset + length > size:
            return
        yield kind & _TYPE_MASK, view[offset + 4 : offset + length]
        # The length leaves out the padding, which the last attribute of a message may lack.
        offset += (length + 3) & ~3


def attribute_map(data: bytes | memoryview) -> dict[int, memoryview]:
    """Return the attributes by type; of a repeated type, the last one."""
    return dict(attributes(data))


def text(value: memoryview) -> str:
    """Decode a name that the kernel wrote."""
    return bytes(value).rstrip(b"\0").decode(errors="replace")
