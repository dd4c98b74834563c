"""Netlink messages of a kernel, and corrupted variants."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from hypothesis import strategies as st

from pyproxy.netlink import elements
from pyproxy.netlink.attributes import NESTED, attribute, nested, string
from pyproxy.netlink.elements import Shape, Tag, Value

HEADER = struct.Struct("=IHHII")


@st.composite
def attribute_trees(draw: st.DrawFn, depth: int = 4) -> bytes:
    """Attributes with valid lengths and arbitrary types and values."""
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.integers(0, 30)) | draw(st.sampled_from([0, NESTED]))
        inside = depth > 0 and draw(st.booleans())
        value = draw(attribute_trees(depth - 1)) if inside else draw(st.binary(max_size=20))
        parts.append(attribute(kind, value))
    return b"".join(parts)


@st.composite
def corrupted(draw: st.DrawFn, samples: Iterable[bytes]) -> bytes:
    """A sample with bytes changed, removed, inserted, or cut off."""
    data = bytearray(draw(st.sampled_from(list(samples))))
    for _ in range(draw(st.integers(0, 6))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["change", "remove", "insert", "cut", "zero", "length"])):
            case "change":
                data[at] = draw(st.integers(0, 255))
            case "remove":
                del data[at : at + draw(st.integers(1, 8))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case "cut":
                del data[at:]
            case "zero":
                data[at : at + 4] = bytes(len(data[at : at + 4]))
            case "length":
                data[at & ~3 : (at & ~3) + 2] = struct.pack("=H", draw(st.integers(0, 0xFFFF)))
    return bytes(data)


def framed(*bodies: bytes, kind: int = 0xA0C, flags: int = 0, sequence: int = 1) -> bytes:
    """Prefix each body with the headers of netlink and nfnetlink."""
    return b"".join(
        HEADER.pack(HEADER.size + 4 + len(body), kind, flags, sequence, 0)
        + bytes(4)
        + body
        + b"\0" * (-len(body) % 4)
        for body in bodies
    )


ROWS: dict[Shape, dict[bytes, Value]] = {
    Shape.EXACT: {
        b"\x0a\x60\0\1\6\0\0\0\0\x50\0\0": Tag("n3", "shop/web:http"),
        b"\x0a\x60\0\2\6\0\0\0\0\x50\0\0": Tag("drop"),
        b"\x0a\x60\0\3\6\0\0\0\0\x50\0\0": b"\x0a\xf4\0\1\x1f\x90\0\0",
        b"\x0a\x60\0\4": b"",
    },
    Shape.RANGE: {b"\x0a\0\0\0\x0a\xff\xff\xff": b"", b"\xf0\0\0\0\xff\xff\xff\xff": b""},
    Shape.CONCATENATED_RANGE: {b"\x0a\0\0\0\6\0\0\0" + b"\x0a\xff\xff\xff\6\0\0\0": Tag("", "x")},
}

ELEMENTS = [
    write.message.body
    for shape, rows in ROWS.items()
    for write in elements.add_elements("pyproxy", "some", rows, shape)
]
OBJECTS = [
    string(1, "pyproxy"),
    string(1, "pyproxy")
    + string(3, "services")
    + nested(4, attribute(1, bytes(4)))
    + string(7, "nat"),
    string(1, "pyproxy") + string(2, "services") + nested(4, nested(1, string(1, "meta"))),
    string(1, "pyproxy") + string(2, "services4") + attribute(3, bytes(4)) + attribute(5, bytes(4)),
    attribute(1, bytes(4)) + attribute(2, struct.pack(">I", 4711)) + string(3, "nft"),
]
SAMPLES = ELEMENTS + OBJECTS
bodies = st.one_of(corrupted(SAMPLES), attribute_trees(), st.binary(max_size=100))
