"""Any bytes of a watch become events or an error of the source."""

from __future__ import annotations

import json
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.errors import SourceError
from pyproxy.source.client import ApiStatusError
from pyproxy.source.stream import (
    ConnectionLostError,
    GoneError,
    MalformedResponseError,
    bookmark,
    event,
    lines,
    object_list,
)


def view(obj: Any) -> memoryview:
    return memoryview(obj if isinstance(obj, bytes) else json.dumps(obj).encode())


@given(st.lists(st.binary()))
def test_lines_do_not_depend_on_the_chunks(chunks: list[bytes]) -> None:
    *whole, rest = b"".join(chunks).split(b"\n")
    found: list[bytes] = []
    with pytest.raises(ConnectionLostError) if rest else nullcontext():
        found.extend(map(bytes, lines(chunks)))
    assert found == [line for line in whole if line]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ({"code": 410}, GoneError),
        ({"reason": "Expired"}, GoneError),
        ({"reason": "Gone", "code": 500}, GoneError),
        ({"code": 422, "message": "no\nway"}, ApiStatusError),
        ({}, ApiStatusError),
        ({"code": "410"}, MalformedResponseError),
    ],
)
def test_error_events(status: dict[str, Any], error: type[SourceError]) -> None:
    with pytest.raises(error) as caught:
        event(view({"type": "ERROR", "object": status}))
    assert "\n" not in str(caught.value)


@given(st.binary())
def test_malformed_events(data: bytes) -> None:
    with pytest.raises(MalformedResponseError):
        event(memoryview(data))


@given(
    st.sampled_from(["ADDED", "BOOKMARK", "ERROR", "?"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.dictionaries(
                st.sampled_from(["metadata", "resourceVersion", "annotations", "code", "kind"])
                | st.text(),
                inner,
            )
            | st.lists(inner)
        ),
        max_leaves=8,
    ),
)
def test_any_bytes_become_an_event_or_an_error(kind: str, obj: Any) -> None:
    with suppress(SourceError):
        found = event(view({"type": kind, "object": obj}))
        if kind == "BOOKMARK":
            bookmark(found.object)


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"{}", b'{"kind": "Status", "metadata": {}}', b"[" * 100_000, b"\xff"]
)
def test_malformed_lists(data: bytes) -> None:
    with pytest.raises(MalformedResponseError):
        object_list(data, "ServiceList")
