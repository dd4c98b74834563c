"""The protobuf messages of the API, reduced to the fields that a Service proxy uses.

The parser skips unknown fields. The items of a list and the object of a watch event are declared as
bytes, so that a malformed object does not affect the others. So are ports, conditions, times and
the like, of which a cluster has few different ones, so that each is parsed once.

Strings are validated as UTF-8. The API server does not do that: its generated.proto files are
proto2. So a string that its validation lets through unread is declared as bytes, because any
client may have written a text that was cut within a character.

Importing this module costs about 50 ms, so it is imported when the first such message arrives.

Facts: field numbers and types of the generated.proto files of k8s.io/api core/v1 and discovery/v1,
and of k8s.io/apimachinery meta/v1 and runtime, of Kubernetes v1.36.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    Edition,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_PACKAGE = "pyproxy"

_STRING, _BYTES, _BOOL = "string", "bytes", "bool"
_INT32, _INT64 = "int32", "int64"
_SCALARS = {
    _STRING: FieldDescriptorProto.TYPE_STRING,
    _BYTES: FieldDescriptorProto.TYPE_BYTES,
    _BOOL: FieldDescriptorProto.TYPE_BOOL,
    _INT32: FieldDescriptorProto.TYPE_INT32,
    _INT64: FieldDescriptorProto.TYPE_INT64,
}
_REPEATED = "repeated "
_MAPS = {"map<string, string>": _STRING, "map<string, bytes>": _BYTES}
_LABELS, _ANNOTATIONS = _MAPS

_UNCHECKED = _BYTES
"""A string of any bytes: the API server validates neither its characters nor its encoding."""

_Field: TypeAlias = tuple[int, str] | tuple[int, str, str]

# By message: the number, type and default of each field. Any other type is a message.
_MESSAGES: dict[str, dict[str, _Field]] = {
    # runtime.Unknown follows the magic number, and holds the bytes of an object.
    "TypeMeta": {"kind": (2, _STRING)},
    "Unknown": {"type_meta": (1, "TypeMeta"), "raw": (2, _BYTES)},
    "ListMeta": {"resource_version": (2, _STRING), "continue_": (3, _STRING)},
    "ObjectList": {"metadata": (1, "ListMeta"), "items": (2, _REPEATED + _BYTES)},
    # An Unknown of which the object is a list, to parse both at once.
    "UnknownList": {"type_meta": (1, "TypeMeta"), "list": (2, "ObjectList")},
    "RawExtension": {"raw": (1, _BYTES)},
    "WatchEvent": {"type": (1, _STRING), "object": (2, "RawExtension")},
    "Status": {"message": (3, _UNCHECKED), "reason": (4, _UNCHECKED), "code": (6, _INT32)},
    "Identity": {"name": (1, _STRING), "namespace": (3, _STRING), "resource_version": (6, _STRING)},
    "Identified": {"metadata": (1, "Identity")},
    "Time": {"seconds": (1, _INT64), "nanos": (2, _INT32)},
    "ObjectMeta": {
        "name": (1, _STRING),
        "namespace": (3, _STRING),
        "uid": (5, _STRING),
        "resource_version": (6, _STRING),
        "creation_timestamp": (8, _BYTES),
        "deletion_timestamp": (9, _BYTES),
        "labels": (11, _LABELS),
        "annotations": (12, _ANNOTATIONS),
    },
    # Without the fields that a slice's reader does not use: each costs a call.
    "SliceMeta": {
        "name": (1, _STRING),
        "namespace": (3, _STRING),
        "resource_version": (6, _STRING),
        "labels": (11, _LABELS),
        "annotations": (12, _ANNOTATIONS),
    },
    "Bookmark": {"metadata": (1, "ObjectMeta")},
    "ServicePort": {
        "name": (1, _STRING),
        "protocol": (2, _STRING),
        "port": (3, _INT32),
        "node_port": (5, _INT32),
    },
    "ClientIPConfig": {"timeout_seconds": (1, _INT32)},
    "SessionAffinityConfig": {"client_ip": (1, "ClientIPConfig")},
    "ServiceSpec": {
        "ports": (1, _REPEATED + _BYTES),
        "cluster_ip": (3, _STRING),
        "type": (4, _STRING),
        "external_ips": (5, _REPEATED + _STRING),
        "session_affinity": (7, _STRING),
        "load_balancer_source_ranges": (9, _REPEATED + _STRING),
        "external_traffic_policy": (11, _STRING),
        "health_check_node_port": (12, _INT32),
        "session_affinity_config": (14, _BYTES),
        "cluster_ips": (18, _REPEATED + _STRING),
        "ip_families": (19, _REPEATED + _STRING),
        "internal_traffic_policy": (22, _STRING),
    },
    "Ingress": {"ip": (1, _STRING), "ip_mode": (3, _STRING)},
    "LoadBalancerStatus": {"ingress": (1, _REPEATED + "Ingress")},
    "ServiceStatus": {"load_balancer": (1, "LoadBalancerStatus")},
    # The spec as bytes, because `protobuf_services` looks most of them up.
    "Service": {"metadata": (1, "ObjectMeta"), "spec": (2, _BYTES), "status": (3, _BYTES)},
    # The defaults are the meaning of null.
    "Conditions": {
        "ready": (1, _BOOL, "true"),
        "serving": (2, _BOOL, "true"),
        "terminating": (3, _BOOL, "false"),
    },
    "Hint": {"name": (1, _UNCHECKED)},
    "Hints": {"for_zones": (1, _REPEATED + "Hint"), "for_nodes": (2, _REPEATED + "Hint")},
    "Endpoint": {
        "addresses": (1, _REPEATED + _STRING),
        "conditions": (2, _BYTES),
        "node_name": (6, _STRING),
        "zone": (7, _UNCHECKED),
        "hints": (8, _BYTES),
    },
    "SlicePort": {"name": (1, _STRING), "protocol": (2, _STRING), "port": (3, _INT32)},
    # Endpoints as bytes: the parser needs up to 100 bytes for an empty one, and each field of a
    # message costs a call, so that `protobuf_endpoints` parses most of them itself.
    "EndpointSlice": {
        "metadata": (1, "SliceMeta"),
        "endpoints": (2, _REPEATED + _BYTES),
        "ports": (3, _REPEATED + _BYTES),
        "address_type": (4, _STRING),
    },
    "Taint": {"key": (1, _STRING)},
    "NodeSpec": {
        "pod_cidr": (1, _UNCHECKED),
        "taints": (5, _REPEATED + "Taint"),
        "pod_cidrs": (7, _REPEATED + _UNCHECKED),
    },
    "NodeAddress": {"type": (1, _UNCHECKED), "address": (2, _UNCHECKED)},
    "NodeStatus": {"addresses": (5, _REPEATED + "NodeAddress")},
    "Node": {"metadata": (1, "ObjectMeta"), "spec": (2, "NodeSpec"), "status": (3, "NodeStatus")},
}  # fmt: skip


def _message(name: str, fields: Mapping[str, _Field]) -> DescriptorProto:
    message = DescriptorProto(name=name)
    for field_name, (number, kind, *default) in fields.items():
        field = message.field.add(name=field_name, number=number)
        base = kind.removeprefix(_REPEATED)
        field.label = field.LABEL_OPTIONAL if base == kind else field.LABEL_REPEATED
        if kind in _MAPS:
            base, field.label = f"{name}.{_entry(field_name)}", field.LABEL_REPEATED
            _add_entry(message, field_name, _MAPS[kind])
        if base in _SCALARS:
            field.type = _SCALARS[base]
        else:
            field.type, field.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{base}"
        if default:
            field.default_value = default[0]
    return message


def _entry(field: str) -> str:
    """Return the name of the message that holds an entry of a map, as protoc chooses it."""
    return f"{field.title()}Entry"


def _add_entry(message: DescriptorProto, field: str, values: str) -> None:
    entry = message.nested_type.add(name=_entry(field))
    entry.options.map_entry = True
    for number, (name, kind) in enumerate((("key", _STRING), ("value", values)), start=1):
        entry.field.add(
            name=name,
            number=number,
            label=FieldDescriptorProto.LABEL_OPTIONAL,
            type=_SCALARS[kind],
        )


def _pool() -> DescriptorPool:
    # Edition 2023: each field has presence and may have a default, and strings are validated.
    file = FileDescriptorProto(
        name="pyproxy.proto",
        package=_PACKAGE,
        syntax="editions",
        edition=Edition.EDITION_2023,
        message_type=[_message(name, fields) for name, fields in _MESSAGES.items()],
    )
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _pool()


def message(name: str) -> type[Any]:
    """Return the class of a message, of which the attributes are known at run time only."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
