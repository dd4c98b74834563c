"""Endpoints of the usual form are read without the parser, with the result of the parser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproxy_lab.apiserver import protobuf

from pyproxy.model.address import Family
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.source import protobuf_endpoints, slices, wire
from pyproxy.source.decode import decode_object
from pyproxy.source.fields import FieldProblems
from pyproxy.source.protobuf_objects import endpoint
from pyproxy.source.wire import ProtobufObject
from tests.examples import examples


def field(number: int, value: bytes) -> bytes:
    size, encoded = len(value), bytearray()
    while size > 127:
        encoded.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *encoded, size]) + value


ADDRESS, CONDITIONS = field(1, b"10.0.0.9"), field(2, b"\x08\1\x10\1\x18\0")
REFERENCE, NODE, ZONE = field(4, b"a pod"), field(6, b"node-1"), field(7, b"zone-1")
PARTS: dict[str, list[bytes]] = {
    "address": [
        ADDRESS,
        *(field(1, text) for text in (b"fd00::9", b"127.0.0.1", b"", b"010.0.0.9", b"\xff")),
        field(1, b"::ffff:10.0.0.9"),
        b"\x0a\x88\x00" + ADDRESS[2:],  # a size with a byte too many
        field(1, b"1" * 126 + CONDITIONS),
        ADDRESS * 2,
    ],
    "conditions": [CONDITIONS, field(2, b"\x08\1"), field(2, b"\x08\2\x10\1\x18\0"), b""],
    "reference": [
        REFERENCE,
        field(4, b"x" * 200),
        field(4, b"x" * 20_000),
        field(4, NODE + ZONE),
        b"\x22\x85\x00" + REFERENCE[2:],
        b"\x22\x7f",
        b"\x22\xff\xff\xff\xff\x0f",
        field(3, b"host"),
        b"",
    ],
    "rest": [
        NODE + ZONE,
        NODE,
        ZONE,
        ZONE + NODE,
        NODE + NODE + ZONE,
        NODE + ADDRESS,
        NODE + CONDITIONS,
        NODE + field(1, b""),
        NODE + field(2, b""),
        NODE + ZONE + field(8, field(1, field(1, b"zone-2")) + field(2, field(1, b"node-2"))),
        field(6, b"node\n"),
        field(6, b"\xff"),
        NODE + field(7, b"z" * 300),
        NODE + b"\x7a",
        b"",
    ],
}


@st.composite
def encoded(draw: st.DrawFn) -> bytes:
    """Make an endpoint, mostly in the usual form."""
    parts = [
        options[0] if draw(st.integers(0, 2)) else draw(st.sampled_from(options))
        for options in PARTS.values()
    ]
    if not draw(st.integers(0, 7)):
        parts = draw(st.permutations(parts))
    made = b"".join(parts)
    return made[: draw(st.integers(0, len(made)))] if not draw(st.integers(0, 7)) else made


def converted(
    convert: Callable[[Any, Family, FieldProblems], object], entries: Any, family: Family
) -> object:
    problems = FieldProblems(Kind.ENDPOINT_SLICE, ObjectName("shop", "web-1"))
    try:
        return convert(entries, family, problems), problems.all()
    except msgspec.DecodeError as error:
        return str(error)


@given(st.lists(encoded(), max_size=4), st.sampled_from(list(Family)))
@settings(max_examples=examples(400))
def test_any_endpoints_are_those_of_the_parser(entries: list[bytes], family: Family) -> None:
    expected = converted(slices.endpoints, map(endpoint, entries), family)
    for _ in range(2):  # the first pass learns
        assert converted(protobuf_endpoints.endpoints, entries, family) == expected


def test_every_part_is_that_of_the_parser() -> None:
    for name, options in PARTS.items():
        for option in options:
            usual = {part: others[0] for part, others in PARTS.items()}
            entries = [b"".join(usual.values()), b"".join((usual | {name: option}).values())] * 2
            expected = converted(slices.endpoints, map(endpoint, entries), Family.IPV4)
            assert converted(protobuf_endpoints.endpoints, entries, Family.IPV4) == expected


def test_the_parser_sees_one_endpoint_of_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def counted(data: bytes) -> wire.Endpoint:
        seen.append(data)
        return endpoint(data)

    monkeypatch.setattr(protobuf_endpoints, "_known_rests", {})
    monkeypatch.setattr(protobuf_endpoints, "endpoint", counted)
    made = [
        {
            "addresses": [f"10.0.{number // 200}.{1 + number % 200}"],
            "conditions": {"ready": number % 3 > 0, "serving": True, "terminating": False},
            "targetRef": {"kind": "Pod", "name": "x" * (number % 250), "uid": "u" * 36},
            "nodeName": f"node-{number % 5}",
            "zone": "zone",
        }
        for number in range(1000)
    ]
    labels = {"kubernetes.io/service-name": "web"}
    obj = {
        "metadata": {"name": "web-1", "namespace": "shop", "labels": labels},
        "addressType": "IPv4",
        "endpoints": made,
    }
    raw = protobuf.encode("EndpointSlice", obj)
    assert decode_object(Kind.ENDPOINT_SLICE, ProtobufObject(raw)).name
    # Once to convert it, once to learn.
    assert len(seen) == 10
