"""Convert Services in protobuf into those of the model.

Each field of a parsed message is a call from Python, and a cluster has ten thousand Services. Most
differ from many others in their metadata, selector and cluster IP alone. So this module cuts the
selector, which is not used, and the cluster IP out of a spec, and looks the rest up. Any other
Service is decoded by `protobuf_objects` and converted by `services`, with the same result.

Facts: the field numbers of `protobuf_schema`. Go writes fields in the order of their numbers.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from pyproxy.model import objects as model
from pyproxy.model.address import Address, Family, parse_address
from pyproxy.model.special_addresses import UNUSUAL_FIRST_BYTES
from pyproxy.source import fields, services, wire
from pyproxy.source.fields import NotProxied
from pyproxy.source.protobuf_objects import SERVICE_SPEC, parse, service_spec, service_status

# The first bytes of fields: the number and the wire type of bytes with their length.
_PORTS, _SELECTOR, _CLUSTER_IP = (number << 3 | 2 for number in (1, 2, 3))
_CLUSTER_IPS = b"\x92\x01"

_FIELD_SIZES = tuple(range(2, 2 + 128))
"""The bytes of a field by those of its value. From 128 on, which raises IndexError, there is one
more."""

_UNUSUAL = {4: UNUSUAL_FIRST_BYTES[Family.IPV4], 16: UNUSUAL_FIRST_BYTES[Family.IPV6]}

_LONGEST_SHAPE = 512
_MOST_SHAPES = 4096

_Shape: TypeAlias = tuple[bytes, bytes, bytes, int]
"""The spec before and after clusterIPs, the status, and the size of the cluster IP."""

_known: dict[_Shape, model.Service] = {}
"""A Service of each shape."""


def service(obj: wire.ProtobufService) -> model.Service | NotProxied:
    """Convert a Service, as `services.service`. Raises msgspec.DecodeError."""
    usual = _usual(obj.spec)
    meta = obj.metadata
    annotations = meta.annotations
    if usual is None or (annotations is not None and annotations.ipvs_scheduler):
        return services.service(_decoded(obj))
    address, before, after = usual
    shape = (before, after, obj.status, len(address))
    known = _known.get(shape)
    if known is None:
        converted = services.service(_decoded(obj))
        _learn(shape, converted)
        return converted
    if reason := fields.not_proxied_label(meta.labels):
        return NotProxied(reason)
    return model.Service(
        fields.name_of(meta),
        known.ports,
        (address,),
        internal_policy=known.internal_policy,
        external_policy=known.external_policy,
        affinity_timeout=known.affinity_timeout,
        families=known.families,
        uid=meta.uid or "",
        created=meta.creation_timestamp or "",
    )


def _usual(spec: bytes) -> tuple[Address, bytes, bytes] | None:
    """Return the cluster IP, and what is before and after clusterIPs, without the selector.

    Return None unless clusterIP is an ordinary address and all of clusterIPs.
    """
    try:
        at = 0
        while spec[at] == _PORTS:
            at += _FIELD_SIZES[spec[at + 1]]
        ports = spec[:at]
        while spec[at] == _SELECTOR:
            at += _FIELD_SIZES[spec[at + 1]]
        end = at + _FIELD_SIZES[spec[at + 1]]
        before, found, after = spec[end:].partition(_CLUSTER_IPS + spec[at + 1 : end])
        if not found or spec[at] != _CLUSTER_IP:
            return None
        address = parse_address(spec[at + 2 : end].decode())
    except (IndexError, ValueError):
        return None
    return None if address[0] in _UNUSUAL[len(address)] else (address, ports + before, after)


def _decoded(obj: wire.ProtobufService) -> wire.Service:
    spec, status = service_spec(obj.spec), service_status(obj.status)
    return wire.Service(obj.metadata, obj.kind, spec, status)


def _learn(shape: _Shape, converted: model.Service | NotProxied) -> None:
    """Remember a valid Service with nothing but ports and what many others have too."""
    if isinstance(converted, NotProxied) or converted.problems:
        return
    if converted.external_ips or converted.load_balancer_ips or converted.source_ranges:
        return
    if converted.health_check_port or any(port.node_port for port in converted.ports):
        return
    before, after, status, _ = shape
    if len(before) + len(after) + len(status) > _LONGEST_SHAPE:
        return
    try:
        parts = [parse(SERVICE_SPEC, each) for each in (before, after)]
    except msgspec.DecodeError:
        # The text of clusterIPs was found within another field.
        return
    # Another cluster IP here would be one more of each Service.
    if any(part.cluster_ips for part in parts):
        return
    if len(_known) >= _MOST_SHAPES:
        _known.clear()
    _known[shape] = converted
