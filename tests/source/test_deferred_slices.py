"""A slice of a first list is decoded in two parts, with the result of decoding it at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproxy_lab.apiserver import protobuf

from pyproxy.model.objects import DeferredSlice, Kind
from pyproxy.source import decode
from pyproxy.source.decode import DecodedObject, decode_object
from pyproxy.source.wire import ProtobufObject
from tests.examples import examples
from tests.source.test_protobuf_endpoints import encoded, field

LABELS = field(11, field(1, b"kubernetes.io/service-name") + field(2, b"web"))
META = field(1, b"web-1") + field(3, b"shop") + field(6, b"7")
FIELDS = {
    "metadata": [META + LABELS, META, field(3, b"shop") + LABELS, field(1, b"web-1") + LABELS],
    "type": [field(4, kind) for kind in (b"IPv4", b"IPv6", b"FQDN", b"IPv5", b"\xff")],
    "ports": [field(3, b"\x0a\x04http\x12\x03TCP\x18\x90\x3f"), field(3, b"\x18\0"), b""],
}


@st.composite
def raw_slices(draw: st.DrawFn) -> bytes:
    """Make a slice, mostly one that pyproxy uses."""
    meta, family, ports = (
        options[0] if draw(st.integers(0, 3)) else draw(st.sampled_from(options))
        for options in FIELDS.values()
    )
    entries = draw(st.lists(encoded(), max_size=4))
    return field(1, meta) + b"".join(field(2, each) for each in entries) + ports + family


def completed(found: DecodedObject) -> DecodedObject:
    """Return what was decoded, with a deferred slice decoded too."""
    if not isinstance(found.value, DeferredSlice):
        return found
    return DecodedObject(found.name, found.version, found.value.complete())


@given(raw_slices())
@settings(max_examples=examples(400))
def test_any_deferred_slice_is_the_one_decoded_at_once(data: bytes) -> None:
    raw = ProtobufObject(data)
    found = decode_object(Kind.ENDPOINT_SLICE, raw, deferring=True)
    assert completed(found) == decode_object(Kind.ENDPOINT_SLICE, raw)
    if isinstance(found.value, DeferredSlice):
        assert found.value.name == found.name
        assert not found.value.problems


def slice_of(count: int) -> ProtobufObject:
    made = {
        "metadata": {
            "name": "web-1",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"]} for _ in range(count)],
    }
    return ProtobufObject(protobuf.encode("EndpointSlice", made))


@pytest.mark.parametrize(
    ("count", "is_deferred"),
    [(0, False), (1, True), (decode._MOST_DEFERRED, True), (decode._MOST_DEFERRED + 1, False)],
)
def test_slices_of_a_size_that_the_api_allows_are_deferred(count: int, is_deferred: bool) -> None:
    found = decode_object(Kind.ENDPOINT_SLICE, slice_of(count), deferring=True)
    assert isinstance(found.value, DeferredSlice) is is_deferred
    assert completed(found) == decode_object(Kind.ENDPOINT_SLICE, slice_of(count))
