"""Strings that are no UTF-8: protobuf carries their bytes, and Go's JSON shows U+FFFD for each.

The API server validates the characters of names, labels, addresses and enums, and so their
encoding. Any client may write other bytes to every other string, for example a text that was cut
within a character.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproxy_lab.apiserver import protobuf
from pyproxy_lab.apiserver.protobuf_fields import SENT, Form, Part

from pyproxy.errors import Problem
from pyproxy.model.objects import DeferredSlice, Kind
from pyproxy.source import protobuf_stream
from pyproxy.source.client import ApiStatusError
from pyproxy.source.decode import decode_object, identify
from pyproxy.source.wire import ProtobufObject
from tests.examples import examples

OBJECTS: dict[Kind, dict[str, Any]] = {
    Kind.SERVICE: {
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "10.96.0.1",
            "clusterIPs": ["10.96.0.1"],
            "ports": [{"port": 80, "protocol": "TCP"}],
        },
    },
    Kind.ENDPOINT_SLICE: {
        "metadata": {
            "name": "web-1",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "protocol": "TCP", "port": 80}],
        "endpoints": [
            {
                "addresses": ["10.0.0.9"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
            }
        ],
    },
    Kind.NODE: {
        "metadata": {"name": "node-a"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    },
}

METADATA = {f"metadata.{name}" for name in ("name", "namespace", "resourceVersion", "labels")}
VALIDATED = {
    Kind.SERVICE: {
        *(*METADATA, "metadata.uid"),
        *("spec.type", "spec.clusterIP", "spec.clusterIPs", "spec.externalIPs"),
        *("spec.sessionAffinity", "spec.loadBalancerSourceRanges", "spec.ipFamilies"),
        *("spec.externalTrafficPolicy", "spec.internalTrafficPolicy"),
        *("spec.ports.name", "spec.ports.protocol"),
        *("status.loadBalancer.ingress.ip", "status.loadBalancer.ingress.ipMode"),
    },
    Kind.ENDPOINT_SLICE: {
        *(*METADATA, "addressType", "ports.name", "ports.protocol"),
        *("endpoints.addresses", "endpoints.nodeName"),
    },
    Kind.NODE: {*METADATA, "metadata.uid", "spec.taints.key"},
}
"""The strings that pyproxy uses and the API server validates; all others may have any bytes."""

ANNOTATIONS = [
    "example.com/x",
    "endpoints.kubernetes.io/last-change-trigger-time",
    "pyproxy.io/ipvs-scheduler",
]
API_VERSIONS = {Kind.ENDPOINT_SLICE: "discovery.k8s.io/v1"}


def paths(part: Part, prefix: str = "") -> Iterator[tuple[str, Form]]:
    """Yield the path of each string in a message."""
    for declared, form in part.fields.values():
        path = prefix + declared.removesuffix("?")
        if isinstance(form, Part):
            yield from paths(form, path + ".")
        elif form in {Form.TEXT, Form.TEXTS, Form.MAP}:
            yield path, form


def strings(kind: Kind, *, validated: bool) -> Iterator[tuple[Kind, str, str]]:
    """Yield the kind and the path of strings, and the key of one in a map."""
    for path, form in paths(SENT[kind.value]):
        if (path in VALIDATED[kind]) is validated:
            if form is not Form.MAP:
                yield kind, path, ""
                continue
            for key in ANNOTATIONS if path == "metadata.annotations" else ["app"]:
                yield kind, path, key


UNCHECKED = [each for kind in Kind for each in strings(kind, validated=False)]
CHECKED = [each for kind in Kind for each in strings(kind, validated=True)]


def forms_of(part: Part) -> dict[str, Form | Part]:
    """Return the forms of a message's fields by their names in JSON."""
    return {declared.removesuffix("?"): form for declared, form in part.fields.values()}


def with_text(kind: Kind, path: str, key: str, text: str) -> dict[str, Any]:
    """Return an object with a text at a path, in the first element of each list."""
    obj = copy.deepcopy(OBJECTS[kind])
    at, forms = obj, forms_of(SENT[kind.value])
    *names, last = path.split(".")
    for name in names:
        part = forms[name]
        assert isinstance(part, Part)
        forms = forms_of(part)
        inner = at.setdefault(name, [{}] if part.repeated else {})
        if part.repeated and not inner:
            inner.append({})
        at = inner[0] if part.repeated else inner
    if forms[last] is Form.TEXTS:
        at[last] = [text]
    elif forms[last] is Form.MAP:
        at.setdefault(last, {})[key] = text
    else:
        at[last] = text
    return obj


def encoded(kind: Kind, path: str, key: str, data: bytes) -> bytes:
    """Encode an object with these bytes at a path."""
    # Bytes of the same size that the objects have nowhere else.
    stand_in = "@" * len(data)
    raw = protobuf.encode(kind.value, with_text(kind, path, key, stand_in))
    assert raw.count(stand_in.encode()) == 1
    return raw.replace(stand_in.encode(), data)


def in_json(data: bytes) -> str:
    """Decode a text as Go's encoding/json shows it."""
    text, at = "", 0
    while at < len(data):
        for size in range(1, 5):
            try:
                text += data[at : at + size].decode()
            except UnicodeDecodeError:
                continue
            at += size
            break
        else:
            text, at = text + "\ufffd", at + 1
    return text


CUT = [
    *(b"Z\xc3\xbcrich in \xc3", b"price: \xe2\x82", b"wave \xf0\x9f\x91"),
    *(b"\xf0\x9f\x91\xe2\x82\xac\xe2\x82", b"surrogate\xed\xa0\x80", b"overlong\xc0\xaf"),
    *(b"\xff\xfe of UTF-16", b"beyond \xf4\x90\x80\x80", b"\x80 alone and \xef\xbf\xbd"),
]
BYTES = st.one_of(
    st.sampled_from(CUT),
    st.binary(min_size=8, max_size=60),
    st.lists(st.sampled_from([b"ab", *CUT]), min_size=2, max_size=4).map(b"".join),
)


def assert_equal(kind: Kind, path: str, key: str, data: bytes) -> None:
    obj = with_text(kind, path, key, in_json(data))
    api_version = API_VERSIONS.get(kind, "v1")
    text = json.dumps({"kind": kind.value, "apiVersion": api_version, **obj}).encode()
    expected = decode_object(kind, text)
    raw = encoded(kind, path, key, data)
    with_kind = ProtobufObject(protobuf.envelope(api_version, kind.value, raw))
    for _ in range(2):  # the first pass learns endpoints and shapes
        assert decode_object(kind, ProtobufObject(raw)) == expected
        assert decode_object(kind, with_kind) == expected
    assert identify(kind, with_kind) == identify(kind, text)
    deferred = decode_object(kind, with_kind, deferring=True).value
    if isinstance(deferred, DeferredSlice):
        deferred = deferred.complete()
    assert deferred == expected.value


@pytest.mark.parametrize(("kind", "path", "key"), UNCHECKED)
def test_an_unchecked_text_may_have_any_bytes(kind: Kind, path: str, key: str) -> None:
    for data in CUT:
        assert_equal(kind, path, key, data)
        found = decode_object(kind, ProtobufObject(encoded(kind, path, key, data)))
        assert not isinstance(found.value, Problem)


@given(st.sampled_from(UNCHECKED), BYTES)
@settings(max_examples=examples(200))
def test_any_bytes_are_those_in_json(where: tuple[Kind, str, str], data: bytes) -> None:
    assert_equal(*where, data)


@pytest.mark.parametrize(("kind", "path", "key"), CHECKED)
def test_a_checked_text_without_utf8_makes_an_object_invalid(
    kind: Kind, path: str, key: str
) -> None:
    raw = encoded(kind, path, key, b"a text \xff")
    found = decode_object(kind, ProtobufObject(raw)).value
    assert isinstance(found, Problem)
    assert found.field == "(whole object)"


@pytest.mark.parametrize("data", CUT)
@pytest.mark.parametrize("member", ["message", "reason"])
def test_the_text_of_an_error_may_have_any_bytes(member: str, data: bytes) -> None:
    stand_in = "@" * len(data)
    raw = protobuf.encode("Status", {"code": 500, member: stand_in})
    frame = protobuf.event("ERROR", protobuf.envelope("v1", "Status", raw))[4:]
    with pytest.raises(ApiStatusError, match="a watch ended: ") as caught:
        protobuf_stream.event(frame.replace(stand_in.encode(), data))
    assert str(caught.value) == f"a watch ended: {' '.join(in_json(data).split())}"
    assert caught.value.status == 500
