"""Decode the JSON or protobuf of Services, EndpointSlices and Nodes into values of the model.

Every function is pure. An object that pyproxy does not proxy becomes a `NotProxied`. An invalid
field becomes a `Problem` in the object's `problems`, and the other fields are used. An object that
cannot be decoded at all becomes a `Problem`.

Facts: kube-proxy of Kubernetes v1.36 (its service and endpoint tracking and its node eligibility)
and the validation of the API server.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from sys import intern
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from pyproxy.errors import Problem
from pyproxy.model import objects as model
from pyproxy.model.address import Address, Network
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.model.special_addresses import special
from pyproxy.source import fields, salvage, slices, wire
from pyproxy.source.fields import FieldProblems, NotProxied
from pyproxy.source.services import service
from pyproxy.source.slices import endpoint_slice

__all__ = [
    "DecodedObject",
    "NotProxied",
    "Value",
    "decode_object",
    "endpoint_slice",
    "node",
    "service",
]

# KEP-3836: load balancers stop sending to such a node, because its /healthz fails.
AUTOSCALER_TAINT = "ToBeDeletedByClusterAutoscaler"
"""The taint that the cluster autoscaler puts on a node before it removes the node."""

_MOST_DEFERRED = 1_000
"""Endpoints of a slice that are decoded later; the API server admits no more."""

# Global names, because an attribute lookup on an enum is slow.
_SERVICE, _SLICE, _NODE = Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE

Value = model.Service | model.EndpointSlice | model.DeferredSlice | model.Node


class DecodedObject(msgspec.Struct, frozen=True):
    """One object with its name and its resourceVersion.

    `name` is None and `version` empty if not even the metadata could be decoded.
    """

    name: ObjectName | None
    version: str
    value: Value | NotProxied | Problem


def node(obj: wire.Node) -> model.Node:
    """Convert a Node: internal addresses before external ones, each in the order of the Node.

    podCIDR is used only if podCIDRs is empty.
    """
    spec, status = obj.spec or wire.NodeSpec(), obj.status or wire.NodeStatus()
    labels = obj.metadata.labels
    problems = FieldProblems(_NODE, ObjectName("", obj.metadata.name))
    found: dict[Address, None] = {}
    # The order of GetNodeHostIPs in kube-proxy.
    for wanted in ("InternalIP", "ExternalIP"):
        for i, entry in enumerate(status.addresses or []):
            if entry.type == wanted:
                field = f"status.addresses[{i}].address"
                try:
                    packed = fields.address(entry.address or "")
                except ValueError as error:
                    problems.add(field, f"{error}; ignored")
                    continue
                # The kubelet refuses such a --node-ip too.
                if reason := special(packed):
                    message = f"{entry.address} is {reason}, which no node can have; ignored"
                    problems.add(field, message)
                else:
                    found[packed] = None
    networks: dict[Network, None] = {}
    for i, text in enumerate(spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else [])):
        try:
            networks[fields.network(text)] = None
        except ValueError as error:
            problems.add(f"spec.podCIDRs[{i}]", f"{error}; ignored")
    being_removed = obj.metadata.deletion_timestamp is not None or any(
        taint.key == AUTOSCALER_TAINT for taint in spec.taints or []
    )
    return model.Node(
        name=obj.metadata.name,
        addresses=tuple(found),
        pod_networks=tuple(networks),
        zone=intern((labels.zone if labels else None) or ""),
        eligible=not being_removed,
        uid=obj.metadata.uid or "",
        problems=problems.all(),
    )


class _Decoders(NamedTuple):
    """The decoders of one format, which take an object's bytes and raise one of `_UNDECODABLE`.

    `convert_service` converts what `service` decoded, and `endpoints` the entries of a slice that
    `endpoint_slice` decoded. `legible_identity` raises nothing.
    """

    service: Callable[[Any], wire.Service | wire.ProtobufService]
    convert_service: Callable[[Any], model.Service | NotProxied]
    endpoint_slice: Callable[[Any], wire.EndpointSlice | wire.ProtobufSlice]
    endpoints: slices.EndpointsConverter
    node: Callable[[Any], wire.Node]
    identified: Callable[[Any], wire.Identified]
    legible_identity: Callable[[Any], wire.Identity]


_JSON = _Decoders(
    msgspec.json.Decoder(wire.Service).decode,
    service,
    msgspec.json.Decoder(wire.EndpointSlice).decode,
    slices.endpoints,
    msgspec.json.Decoder(wire.Node).decode,
    msgspec.json.Decoder(wire.Identified).decode,
    lambda data: salvage.identity(bytes(memoryview(data))),
)
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class OtherKindError(msgspec.ValidationError):
    """An object of another kind than the one that was requested."""


def decode_object(
    kind: Kind, obj: bytes | wire.Encoded, *, deferring: bool = False
) -> DecodedObject:
    """Decode one object of a list, a watch or a file. Raises nothing.

    An object with a field of a wrong type is returned as a Problem together with its name, so that
    the caller can delete the previous version of the object. With `deferring`, a slice in protobuf
    may be a DeferredSlice.
    """
    decoders, data = _opened(obj)
    try:
        if kind is _SERVICE:
            a_service = decoders.service(data)
            if a_service.kind != "Service":
                _check_kind(kind, a_service.kind)
            return _named(a_service.metadata, decoders.convert_service(a_service))
        if kind is _SLICE:
            a_slice = decoders.endpoint_slice(data)
            if a_slice.kind != "EndpointSlice":
                _check_kind(kind, a_slice.kind)
            if deferring and isinstance(a_slice, wire.ProtobufSlice):
                return _named(a_slice.metadata, _deferred(a_slice, decoders))
            return _named(a_slice.metadata, endpoint_slice(a_slice, decoders.endpoints))
        a_node = decoders.node(data)
        _check_kind(kind, a_node.kind)
        return _named(a_node.metadata, node(a_node))
    except _UNDECODABLE as error:
        # Its endpoints may have an error too, which comes first.
        return decode_object(kind, obj) if deferring else _invalid(kind, decoders, data, error)


def identify(kind: Kind, obj: bytes | wire.Encoded) -> tuple[ObjectName, str] | None:
    """Return the name and resourceVersion of an object, without decoding the rest of it.

    Return None if the object cannot be decoded, has no valid name, or is of another kind. Raises
    nothing.
    """
    decoders, data = _opened(obj)
    try:
        found = decoders.identified(data)
        _check_kind(kind, found.kind)
    except _UNDECODABLE:
        return None
    name, namespace = found.metadata.name, found.metadata.namespace or ""
    if kind is _NODE:
        namespace = ""
    elif not fields.is_name(namespace):
        return None
    if not fields.is_name(name):
        return None
    return ObjectName(intern(namespace), name), found.metadata.resource_version or ""


def _opened(obj: bytes | wire.Encoded) -> tuple[_Decoders, bytes | Raw]:
    """Return the decoders of an object's format, and its bytes."""
    if isinstance(obj, wire.ProtobufObject):
        return _protobuf(), obj.data
    return _JSON, obj


@cache
def _protobuf() -> _Decoders:
    # Only when the first such object arrives, because the import takes time and memory.
    from pyproxy.source import (  # noqa: PLC0415
        protobuf_endpoints,
        protobuf_objects,
        protobuf_services,
    )

    return _Decoders(
        protobuf_objects.service,
        protobuf_services.service,
        protobuf_objects.endpoint_slice,
        protobuf_endpoints.endpoints,
        protobuf_objects.node,
        protobuf_objects.identified,
        protobuf_objects.legible_identity,
    )


def _deferred(
    obj: wire.ProtobufSlice, decoders: _Decoders
) -> model.EndpointSlice | model.DeferredSlice | NotProxied:
    """Convert a slice, and keep its endpoints for later unless it is an unusual one."""
    entries = obj.endpoints
    if isinstance(entries, list) and 0 < len(entries) <= _MOST_DEFERRED:
        head = endpoint_slice(obj, _no_endpoints)
        if isinstance(head, NotProxied):
            return head
        if not head.problems:
            return model.DeferredSlice(head, entries, _complete)
    return endpoint_slice(obj, decoders.endpoints)


def _no_endpoints(*_: object) -> tuple[model.Endpoint, ...]:
    return ()


def _complete(head: model.EndpointSlice, entries: list[bytes]) -> model.EndpointSlice | Problem:
    """Return a slice with endpoints in protobuf, or a Problem as `decode_object` does."""
    problems = FieldProblems(_SLICE, head.name)
    try:
        found = _protobuf().endpoints(entries, head.family, problems)
    except _UNDECODABLE as error:
        return _undecodable(_SLICE, str(head.name), error)
    return model.EndpointSlice(
        head.name, head.service, head.family, head.ports, found, head.triggered, problems.all()
    )


def _check_kind(expected: Kind, found: str | None) -> None:
    """Raise OtherKindError for another kind; the items of a list have none."""
    if found and found != expected.value:
        raise OtherKindError(f"Expected a {expected.value}, got a {found!r:.80} - at `$.kind`")


def _invalid(kind: Kind, decoders: _Decoders, data: bytes | Raw, error: Exception) -> DecodedObject:
    """Return the Problem of an object that cannot be decoded, with its name if that is legible."""
    try:
        identity = decoders.identified(data).metadata
    except _UNDECODABLE:
        identity = decoders.legible_identity(data)
    namespace = "" if kind is _NODE else identity.namespace or ""
    name: ObjectName | None = None
    label = "(no name)"
    if fields.is_name(identity.name) and (not namespace or fields.is_name(namespace)):
        name = ObjectName(namespace, identity.name)
        label = str(name)
    elif identity.name:
        label = ascii(f"{namespace}/{identity.name}"[: fields.LONGEST_NAME])
    problem = _undecodable(kind, label, error)
    # The name of an object of another kind belongs to another object.
    known = None if isinstance(error, OtherKindError) else name
    return DecodedObject(known, identity.resource_version or "", problem)


def _undecodable(kind: Kind, label: str, error: Exception) -> Problem:
    message, _, path = str(error).partition(" - at `$")
    field = path.rstrip("`").lstrip(".") or "metadata"
    if not isinstance(error, msgspec.ValidationError):
        field, message = "(whole object)", f"not decodable: {message}"
    return Problem(kind.value, label, field, f"{message}; the whole object is ignored")


def _named(meta: wire.Meta, value: Value | NotProxied) -> DecodedObject:
    """Add the name to an object. Raises msgspec.ValidationError if it has none."""
    if not meta.name:
        raise msgspec.ValidationError("Object without a name - at `$.metadata.name`")
    if not fields.is_name(meta.name):
        raise msgspec.ValidationError("Not a name - at `$.metadata.name`")
    if isinstance(value, model.Node):
        return DecodedObject(ObjectName("", value.name), meta.resource_version or "", value)
    if not meta.namespace:
        raise msgspec.ValidationError("Object without a namespace - at `$.metadata.namespace`")
    if not fields.is_namespace(meta.namespace):
        raise msgspec.ValidationError("Not a name - at `$.metadata.namespace`")
    name = fields.name_of(meta) if isinstance(value, NotProxied) else value.name
    return DecodedObject(name, meta.resource_version or "", value)
