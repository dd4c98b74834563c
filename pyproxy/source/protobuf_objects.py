"""Decode the protobuf of single objects into the structs of `wire`, as its JSON is decoded.

The results equal those of the JSON that the same server sends. Go's JSON leaves out an empty value
where its protobuf has it, and the other way round for null, so both become None where the meaning
is the same. A malformed message raises msgspec.DecodeError, as malformed JSON does.

Facts: Go's encoding/json, for strings that are no UTF-8.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from google.protobuf.message import DecodeError
from msgspec import UNSET

from pyproxy.source import protobuf_schema, wire

_T = TypeVar("_T")

MAGIC = b"k8s\0"
"""The beginning of an object with its kind; the items of a list have neither."""

ENDPOINT = protobuf_schema.message("Endpoint")
"""An endpoint of a slice."""

SERVICE_SPEC = protobuf_schema.message("ServiceSpec")
"""The spec of a Service."""

_UNKNOWN = protobuf_schema.message("Unknown")
_IDENTIFIED = protobuf_schema.message("Identified")
_STATUS = protobuf_schema.message("Status")
_BOOKMARK = protobuf_schema.message("Bookmark")
_SERVICE = protobuf_schema.message("Service")
_SLICE = protobuf_schema.message("EndpointSlice")
_NODE = protobuf_schema.message("Node")
_TIME = protobuf_schema.message("Time")
_SERVICE_PORT = protobuf_schema.message("ServicePort")
_AFFINITY = protobuf_schema.message("SessionAffinityConfig")
_SERVICE_STATUS = protobuf_schema.message("ServiceStatus")
_SLICE_PORT = protobuf_schema.message("SlicePort")
_CONDITIONS = protobuf_schema.message("Conditions")
_HINTS = protobuf_schema.message("Hints")

_LARGE = 256 << 10
"""Bytes of a slice above which its endpoints are not listed; 1,000 endpoints have 150 KB."""

_LARGEST_SHARED = 256
"""Bytes of a message that is parsed once; larger ones would fill the memory."""


def _before_raw(api_version: str, kind: str) -> bytes:
    """Return the bytes of an object with its kind before the length of its own bytes."""
    texts = (api_version.encode(), kind.encode())
    type_meta = b"\n%c%b\x12%c%b" % (len(texts[0]), texts[0], len(texts[1]), texts[1])
    return MAGIC + b"\n%c%b\x12" % (len(type_meta), type_meta)


_KINDS = {
    _before_raw("v1", "Service"): "Service",
    _before_raw("v1", "Node"): "Node",
    _before_raw("discovery.k8s.io/v1", "EndpointSlice"): "EndpointSlice",
}
_TYPE_SIZE_AT = len(MAGIC) + 1
# The encoding and the type of the raw bytes, which are empty.
_UNKNOWN_END = b'\x1a\0"\0'

# Of field number and wire type: a varint, 64 bits, bytes with their length, 32 bits.
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10
_METADATA, _NAME, _NAMESPACE, _VERSION = 1, 1, 3, 6

# Python's decoder makes one of each byte that is no UTF-8, and none of valid UTF-8.
_SURROGATE = re.compile("[\udc80-\udcff]")


def parse(message: type[Any], data: bytes) -> Any:
    """Parse a message. Raises msgspec.DecodeError."""
    try:
        return message.FromString(data)
    except DecodeError as error:
        # The text names the class of this package's schema, which means nothing to a user. Older
        # versions of the library give no reason after it.
        reason = str(error).partition(": ")[2] or "malformed message"
        raise msgspec.DecodeError(reason) from error


def service(data: bytes) -> wire.ProtobufService:
    """Decode a Service, of which spec and status stay encoded. Raises msgspec.DecodeError."""
    kind, obj = _object(_SERVICE, data)
    return wire.ProtobufService(_meta(obj.metadata), kind, obj.spec, obj.status)


def service_spec(data: bytes) -> wire.ServiceSpec:
    """Decode the spec of a Service. Raises msgspec.DecodeError."""
    spec = parse(SERVICE_SPEC, data)
    return wire.ServiceSpec(
        spec.type,
        spec.cluster_ip,
        # A slice is two to three times as fast as `list` here and below.
        spec.cluster_ips[:],
        spec.external_ips[:],
        [_service_port(each) for each in spec.ports],
        spec.ip_families[:],
        spec.load_balancer_source_ranges[:],
        spec.internal_traffic_policy,
        spec.external_traffic_policy,
        spec.session_affinity,
        _affinity(spec.session_affinity_config),
        spec.health_check_node_port or None,
    )


def endpoint_slice(data: bytes) -> wire.ProtobufSlice:
    """Decode an EndpointSlice, of which the endpoints stay encoded. Raises msgspec.DecodeError."""
    kind, obj = _object(_SLICE, data)
    meta, endpoints = obj.metadata, obj.endpoints
    return wire.ProtobufSlice(
        wire.Meta(
            meta.name,
            meta.namespace,
            resource_version=meta.resource_version,
            labels=_labels(meta.labels),
            annotations=_annotations(meta.annotations),
        ),
        kind,
        obj.address_type,
        # No list of many, because 16 MiB may hold eight million empty endpoints.
        endpoints if len(data) > _LARGE else endpoints[:],
        [_slice_port(each) for each in obj.ports],
    )


def endpoint(data: bytes) -> wire.Endpoint:
    """Decode an endpoint of a slice. Raises msgspec.DecodeError."""
    found = parse(ENDPOINT, data)
    hints = found.hints
    return wire.Endpoint(
        found.addresses[:],
        _conditions(found.conditions),
        _hints(hints) if hints else None,
        found.node_name,
        _text(found.zone),
    )


def node(data: bytes) -> wire.Node:
    """Decode a Node. Raises msgspec.DecodeError."""
    kind, obj = _object(_NODE, data)
    spec = obj.spec
    return wire.Node(
        _meta(obj.metadata),
        kind,
        wire.NodeSpec(
            _text(spec.pod_cidr),
            [_text(each) for each in spec.pod_cidrs],
            [wire.Taint(each.key) for each in spec.taints],
        ),
        wire.NodeStatus(
            [
                wire.NodeAddress(_text(each.type), _text(each.address))
                for each in obj.status.addresses
            ]
        ),
    )


def identified(data: bytes) -> wire.Identified:
    """Decode the identity of an object. Raises msgspec.DecodeError."""
    kind, obj = _object(_IDENTIFIED, data)
    meta = obj.metadata
    return wire.Identified(wire.Identity(meta.name, meta.namespace, meta.resource_version), kind)


def legible_identity(data: bytes) -> wire.Identity:
    """Return the legible parts of the identity of an object that cannot be decoded."""
    try:
        data = _opened(data)[1]
    except msgspec.DecodeError:
        return wire.Identity()
    texts = {_NAME: "", _NAMESPACE: "", _VERSION: ""}
    meta = next((value for number, value in _lengths(data) if number == _METADATA), b"")
    for number, value in _lengths(meta):
        if number in texts:
            texts[number] = _legible(value)
    return wire.Identity(texts[_NAME], texts[_NAMESPACE], texts[_VERSION])


def status(data: bytes) -> wire.Status:
    """Decode a Status with its kind. Raises msgspec.DecodeError."""
    kind, obj = _object(_STATUS, data)
    return wire.Status(kind, _text(obj.message), _text(obj.reason), obj.code)


def bookmark(data: bytes) -> wire.Meta:
    """Decode the metadata of the object of a bookmark. Raises msgspec.DecodeError."""
    return _meta(_object(_BOOKMARK, data)[1].metadata)


def _object(message: type[Any], data: bytes) -> tuple[str | None, Any]:
    kind, data = _opened(data)
    return kind, parse(message, data)


def _opened(data: bytes) -> tuple[str | None, bytes]:
    """Return the kind of an object, None if it has none, and its own bytes."""
    # No message begins with these bytes: the first is the start of a group, which the API lacks.
    if not data.startswith(MAGIC):
        return None, data
    # A parser's message and its fields are five calls, which the form that Go writes does without.
    begin = len(MAGIC) + 3 + data[_TYPE_SIZE_AT] if len(data) > _TYPE_SIZE_AT else 0
    if (kind := _KINDS.get(data[:begin])) is not None:
        size, start = varint(data, begin)
        if data[start + size :] == _UNKNOWN_END:
            return kind, data[start : start + size]
    unknown = parse(_UNKNOWN, data[len(MAGIC) :])
    return unknown.type_meta.kind, unknown.raw


def _meta(meta: Any) -> wire.Meta:
    return wire.Meta(
        meta.name,
        meta.namespace,
        meta.uid,
        meta.resource_version,
        _time(created) if (created := meta.creation_timestamp) else None,
        _time(deleted) if (deleted := meta.deletion_timestamp) else None,
        _labels(meta.labels),
        _annotations(meta.annotations),
    )


def _labels(pairs: Any) -> wire.Labels | None:
    if not pairs:
        return None
    return wire.Labels(
        pairs.get("service.kubernetes.io/service-proxy-name", UNSET),
        pairs.get("service.kubernetes.io/headless", UNSET),
        pairs.get("kubernetes.io/service-name"),
        pairs.get("topology.kubernetes.io/zone"),
    )


def _annotations(pairs: Any) -> wire.Annotations | None:
    if not pairs:
        return None
    triggered = pairs.get("endpoints.kubernetes.io/last-change-trigger-time")
    initial_events_end = pairs.get("k8s.io/initial-events-end")
    ipvs_scheduler = pairs.get("pyproxy.io/ipvs-scheduler")
    return wire.Annotations(
        None if triggered is None else _text(triggered),
        None if initial_events_end is None else _text(initial_events_end),
        None if ipvs_scheduler is None else _text(ipvs_scheduler),
    )


def _shared(convert: Callable[[bytes], _T]) -> Callable[[bytes], _T]:
    """Convert equal bytes once, because a cluster has few different ones of this message."""
    remember = lru_cache(maxsize=1024)(convert)
    return lambda data: remember(data) if len(data) <= _LARGEST_SHARED else convert(data)


@_shared
def _time(data: bytes) -> str | None:
    """Return a time as in JSON, None for Go's zero time."""
    value = parse(_TIME, data)
    if not (value.seconds or value.nanos):
        return None
    try:
        year, month, day, hour, minute, second, *_ = time.gmtime(value.seconds)
    except (ValueError, OverflowError, OSError) as error:
        raise msgspec.DecodeError(f"{value.seconds} seconds are no time") from error
    # Faster than strftime by five microseconds.
    return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"


@_shared
def _service_port(data: bytes) -> wire.ServicePort:
    found = parse(_SERVICE_PORT, data)
    return wire.ServicePort(found.name, found.protocol, found.port, found.node_port)


@_shared
def _affinity(data: bytes) -> wire.SessionAffinityConfig:
    config = parse(_AFFINITY, data).client_ip
    seconds = config.timeout_seconds if config.HasField("timeout_seconds") else None
    return wire.SessionAffinityConfig(wire.ClientIPConfig(seconds))


@_shared
def service_status(data: bytes) -> wire.ServiceStatus:
    """Decode the status of a Service. Raises msgspec.DecodeError."""
    found = parse(_SERVICE_STATUS, data).load_balancer
    ingress = [wire.Ingress(each.ip, each.ip_mode) for each in found.ingress]
    return wire.ServiceStatus(wire.LoadBalancerStatus(ingress))


@_shared
def _slice_port(data: bytes) -> wire.SlicePort:
    found = parse(_SLICE_PORT, data)
    return wire.SlicePort(
        found.name, found.protocol, found.port if found.HasField("port") else None
    )


@_shared
def _conditions(data: bytes) -> wire.Conditions:
    found = parse(_CONDITIONS, data)
    return wire.Conditions(found.ready, found.serving, found.terminating)


@_shared
def _hints(data: bytes) -> wire.Hints:
    found = parse(_HINTS, data)
    return wire.Hints(
        [wire.Hint(_text(each.name)) for each in found.for_zones],
        [wire.Hint(_text(each.name)) for each in found.for_nodes],
    )


def _lengths(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the fields of a message that have a length, up to the first malformed one."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        size = 0
        if key & 7 == _VARINT:
            at = varint(data, at)[1]
        elif key & 7 == _LENGTH:
            size, at = varint(data, at)
        elif key & 7 in {_FIXED64, _FIXED32}:
            at += 8 if key & 7 == _FIXED64 else 4
        else:
            return
        if at > len(data) - size:
            return
        if key & 7 == _LENGTH:
            yield key >> 3, data[at : at + size]
            at += size


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and the index after it, which is beyond the end if it is malformed."""
    # Two bytes first, because the loop costs as much as parsing a message.
    if at + 1 < len(data):
        first, second = data[at], data[at + 1]
        if first < 0x80:
            return first, at + 1
        if second < 0x80:
            return first & 0x7F | second << 7, at + 2
    value = 0
    for shift, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    return 0, len(data) + 1


def _text(data: bytes) -> str:
    """Decode a string that the server does not validate, with U+FFFD for each invalid byte."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        # `errors="replace"` makes one U+FFFD of several bytes; Go makes one of each.
        return _SURROGATE.sub("\ufffd", data.decode(errors="surrogateescape"))


def _legible(data: bytes) -> str:
    """Decode a string of an undecodable object; empty if it is no UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return ""
