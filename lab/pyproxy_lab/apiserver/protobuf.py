"""Namespaces and Services out of Kubernetes' protobuf form, which some clients write.

`kubectl create namespace` and `kubectl create service` send it, and read JSON. Responses are always
JSON. Facts: the generated.proto files of k8s.io/api/core/v1 and k8s.io/apimachinery.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import msgspec

from pyproxy_lab.apiserver.objects import Object

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_VARINT, _BYTES = 0, 2


class _Form(enum.Enum):
    TEXT = "string"
    NUMBER = "integer"
    FLAG = "boolean"
    TEXTS = "repeated string"
    MAP = "map of strings"
    INT_OR_STRING = "IntOrString"


class _Part(msgspec.Struct, frozen=True):
    """A message inside another one, perhaps repeated."""

    fields: dict[int, tuple[str, _Form | _Part]]
    repeated: bool = False


_METADATA = _Part(
    {
        1: ("name", _Form.TEXT),
        2: ("generateName", _Form.TEXT),
        3: ("namespace", _Form.TEXT),
        11: ("labels", _Form.MAP),
        12: ("annotations", _Form.MAP),
        14: ("finalizers", _Form.TEXTS),
    }
)
_SERVICE_PORT = _Part(
    {
        1: ("name", _Form.TEXT),
        2: ("protocol", _Form.TEXT),
        3: ("port", _Form.NUMBER),
        4: ("targetPort", _Form.INT_OR_STRING),
        5: ("nodePort", _Form.NUMBER),
        6: ("appProtocol", _Form.TEXT),
    },
    repeated=True,
)
_AFFINITY = _Part({1: ("clientIP", _Part({1: ("timeoutSeconds", _Form.NUMBER)}))})
_SERVICE_SPEC = _Part(
    {
        1: ("ports", _SERVICE_PORT),
        2: ("selector", _Form.MAP),
        3: ("clusterIP", _Form.TEXT),
        4: ("type", _Form.TEXT),
        5: ("externalIPs", _Form.TEXTS),
        7: ("sessionAffinity", _Form.TEXT),
        8: ("loadBalancerIP", _Form.TEXT),
        9: ("loadBalancerSourceRanges", _Form.TEXTS),
        10: ("externalName", _Form.TEXT),
        11: ("externalTrafficPolicy", _Form.TEXT),
        12: ("healthCheckNodePort", _Form.NUMBER),
        13: ("publishNotReadyAddresses", _Form.FLAG),
        14: ("sessionAffinityConfig", _AFFINITY),
        17: ("ipFamilyPolicy", _Form.TEXT),
        18: ("clusterIPs", _Form.TEXTS),
        19: ("ipFamilies", _Form.TEXTS),
        20: ("allocateLoadBalancerNodePorts", _Form.FLAG),
        21: ("loadBalancerClass", _Form.TEXT),
        22: ("internalTrafficPolicy", _Form.TEXT),
        23: ("trafficDistribution", _Form.TEXT),
    }
)
_KINDS = {
    "Namespace": _Part({1: ("metadata", _METADATA)}),
    "Service": _Part({1: ("metadata", _METADATA), 2: ("spec", _SERVICE_SPEC)}),
}
# A runtime.Unknown: its type, and the object's own bytes.
_TYPE_META = _Part({1: ("apiVersion", _Form.TEXT), 2: ("kind", _Form.TEXT)})
_TYPE_FIELD, _RAW_FIELD = 1, 2


def decode(body: bytes) -> Object | None:
    """Decode an object; None for a kind that is not known here. Raises ValueError."""
    if not body.startswith(_MAGIC):
        raise ValueError("it does not begin with k8s")
    kind: Object = {}
    raw = b""
    for number, value in _fields(body[len(_MAGIC) :]):
        if number == _TYPE_FIELD and isinstance(value, bytes):
            kind = _message(value, _TYPE_META)
        elif number == _RAW_FIELD and isinstance(value, bytes):
            raw = value
    part = _KINDS.get(kind.get("kind", ""))
    return None if part is None else {**kind, **_message(raw, part)}


def _message(raw: bytes, part: _Part) -> Object:
    """Decode a message; what has its zero value is left out, as in JSON."""
    result: Object = {}
    for number, value in _fields(raw):
        if number not in part.fields:
            continue
        name, form = part.fields[number]
        if isinstance(value, int):
            if form is _Form.FLAG:
                result[name] = bool(value)
            elif value:
                result[name] = value
        elif isinstance(form, _Part):
            inner = _message(value, form)
            if form.repeated:
                result.setdefault(name, []).append(inner)
            else:
                result[name] = inner
        elif form is _Form.TEXTS:
            result.setdefault(name, []).append(value.decode())
        elif form is _Form.MAP:
            entry = dict(_fields(value))
            result.setdefault(name, {})[_text(entry.get(1))] = _text(entry.get(2))
        elif form is _Form.INT_OR_STRING:
            choice = dict(_fields(value))
            result[name] = _text(choice.get(3)) if choice.get(1) else choice.get(2, 0)
        elif value:
            result[name] = value.decode()
    return result


def _text(value: int | bytes | None) -> str:
    return value.decode() if isinstance(value, bytes) else ""


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Return a message's fields by number: numbers as they are, everything else as bytes."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        value, at = _varint(raw, at)
        if key & 7 == _VARINT:
            yield key >> 3, value
        elif key & 7 == _BYTES and at + value <= len(raw):
            yield key >> 3, raw[at : at + value]
            at += value
        else:
            raise ValueError(f"field {key >> 3} cannot be read")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw) and shift < 64:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number is cut off")
