"""From the API's JSON to the model's values: what a Service, an EndpointSlice and a Node mean.

Every function is pure. What is not this proxy's business is a `NotProxied`; what is wrong in an
object is a Problem that travels with the rest of it; what cannot be read at all is a `Problem`
in its place.

Facts: kube-proxy of Kubernetes v1.36 (its service and endpoint tracking and its node eligibility)
and the validation of the API server.
"""

from __future__ import annotations

from sys import intern

import msgspec
from msgspec import Raw

from pyproxy.errors import Problem
from pyproxy.model import objects as model
from pyproxy.model.address import Address, Network
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.source import fields, wire
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

AUTOSCALER_TAINT = "ToBeDeletedByClusterAutoscaler"
"""The taint that the cluster autoscaler puts on a node which it is about to remove."""

Value = model.Service | model.EndpointSlice | model.Node


class DecodedObject(msgspec.Struct, frozen=True):
    """What came of one object: its name and resourceVersion where they could be read, and itself.

    `name` is None and `version` empty where not even the identity of a spoilt object is readable.
    """

    name: ObjectName | None
    version: str
    value: Value | NotProxied | Problem


def node(read: wire.Node) -> model.Node:
    """Read a Node: its internal addresses before its external ones, each in the Node's order.

    podCIDR speaks only where podCIDRs does not.
    """
    spec, status = read.spec or wire.NodeSpec(), read.status or wire.NodeStatus()
    labels = read.metadata.labels
    findings = FieldProblems(Kind.NODE.value, read.metadata.name)
    found: dict[Address, None] = {}
    for wanted in ("InternalIP", "ExternalIP"):
        for i, entry in enumerate(status.addresses or []):
            if entry.type == wanted:
                try:
                    found[fields.address(entry.address or "")] = None
                except ValueError as error:
                    findings.note(f"status.addresses[{i}].address", f"{error}; left out")
    networks: dict[Network, None] = {}
    for i, text in enumerate(spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else [])):
        try:
            networks[fields.network(text)] = None
        except ValueError as error:
            findings.note(f"spec.podCIDRs[{i}]", f"{error}; left out")
    leaving = read.metadata.deletion_timestamp is not None or any(
        taint.key == AUTOSCALER_TAINT for taint in spec.taints or []
    )
    return model.Node(
        name=read.metadata.name,
        addresses=tuple(found),
        pod_networks=tuple(networks),
        zone=intern((labels.zone if labels else None) or ""),
        eligible=not leaving,
        uid=read.metadata.uid or "",
        problems=findings.problems,
    )


_SERVICE = msgspec.json.Decoder(wire.Service)
_SLICE = msgspec.json.Decoder(wire.EndpointSlice)
_NODE = msgspec.json.Decoder(wire.Node)
_IDENTIFIED = msgspec.json.Decoder(wire.Identified)


def decode_object(kind: Kind, data: bytes | Raw) -> DecodedObject:
    """Read one object of a list, a watch or a file from its JSON; raises nothing.

    An object whose JSON has a wrong type somewhere comes back as a Problem with the name that it
    goes by, so that the caller can drop what it knew of it.
    """
    try:
        if kind is Kind.SERVICE:
            a_service = _SERVICE.decode(data)
            return _named(a_service.metadata, service(a_service))
        if kind is Kind.ENDPOINT_SLICE:
            a_slice = _SLICE.decode(data)
            return _named(a_slice.metadata, endpoint_slice(a_slice))
        a_node = _NODE.decode(data)
        return _named(a_node.metadata, node(a_node))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _spoilt(kind, data, error)


def _spoilt(kind: Kind, data: bytes | Raw, error: Exception) -> DecodedObject:
    """Say what is wrong with an object that cannot be read, and by which name it goes."""
    name: ObjectName | None = None
    version = ""
    try:
        identity = _IDENTIFIED.decode(data).metadata
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # `error` already says what is wrong, of the same bytes
    else:
        version = identity.resource_version or ""
        if identity.name:
            namespace = "" if kind is Kind.NODE else identity.namespace or ""
            name = ObjectName(namespace, identity.name)
    message, _, path = str(error).partition(" - at `$")
    field = path.rstrip("`").lstrip(".") or "metadata"
    problem = Problem(
        kind.value, str(name or "(no name)"), field, f"{message}; the whole object is set aside"
    )
    return DecodedObject(name, version, problem)


def _named(meta: wire.Meta, value: Value | NotProxied) -> DecodedObject:
    """Join an object to its name. Raises msgspec.ValidationError where it has none."""
    if not meta.name:
        raise msgspec.ValidationError("Object without a name - at `$.metadata.name`")
    if isinstance(value, model.Node):
        return DecodedObject(ObjectName("", value.name), meta.resource_version or "", value)
    if not meta.namespace:
        raise msgspec.ValidationError("Object without a namespace - at `$.metadata.namespace`")
    name = fields.name_of(meta) if isinstance(value, NotProxied) else value.name
    return DecodedObject(name, meta.resource_version or "", value)
