from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproxy_lab.apiserver import protobuf


def field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2, len(value)]) + value


KIND = field(1, field(1, b"v1") + field(2, b"Namespace"))
LABEL = field(11, field(1, b"a") + field(2, b"b"))
NAMESPACE = field(1, field(1, b"shop") + field(2, b"") + LABEL)


def test_a_namespace() -> None:
    assert protobuf.decode(b"k8s\x00" + KIND + field(2, NAMESPACE)) == {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"a": "b"}},
    }


def test_a_kind_that_is_not_known() -> None:
    assert protobuf.decode(b"k8s\x00" + field(1, field(2, b"Secret"))) is None


@pytest.mark.parametrize("body", [b"", b"{}", b"k8s\x00\x0a", b"k8s\x00\x0a\x7fx", b"k8s\x00\xff"])
def test_what_cannot_be_read(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"field|number|begin"):
        protobuf.decode(body)


@given(st.binary(max_size=60))
def test_no_bytes_do_harm(raw: bytes) -> None:
    try:
        found = protobuf.decode(b"k8s\x00" + KIND + field(2, raw))
    except ValueError:
        return
    assert found is not None
