"""Convert EndpointSlices of the API into those of the model.

Facts: kube-proxy of Kubernetes v1.36 (its endpoint tracking) and the API server's validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from sys import intern

from pyproxy.model import objects as model
from pyproxy.model.address import Family, family_of
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.model.special_addresses import special
from pyproxy.source import fields, wire
from pyproxy.source.fields import FieldProblems, NotProxied, shared

_FAMILY_OF_TYPE = {"IPv4": Family.IPV4, "IPv6": Family.IPV6}
_NO_CONDITIONS = wire.Conditions()
_NO_HINTS = wire.Hints()


def endpoint_slice(obj: wire.EndpointSlice) -> model.EndpointSlice | NotProxied:
    """Convert an EndpointSlice.

    As in kube-proxy, null conditions mean: ready and serving are true, terminating is false. The
    API defines all addresses of one endpoint as equivalent; consumers use the first.
    """
    labels = obj.metadata.labels
    if reason := fields.not_proxied_label(labels):
        return NotProxied(reason)
    if labels is None or not labels.service_name:
        return NotProxied("no label kubernetes.io/service-name, so no Service")
    if obj.address_type == "FQDN":
        return NotProxied("addressType FQDN")
    name = fields.name_of(obj.metadata)
    problems = FieldProblems(Kind.ENDPOINT_SLICE.value, str(name))
    family = _FAMILY_OF_TYPE.get(obj.address_type or "")
    endpoints: tuple[model.Endpoint, ...] = ()
    if family is None:
        problems.add(
            "addressType",
            f"{obj.address_type!r} is not one of IPv4, IPv6, FQDN; no endpoint is used",
        )
        # Any family: the slice has no endpoints and exists for its problem only.
        family = Family.IPV4
    else:
        endpoints = tuple(_endpoints(obj.endpoints or [], family, problems))
    annotations = obj.metadata.annotations
    return model.EndpointSlice(
        name=name,
        service=ObjectName(name.namespace, intern(labels.service_name)),
        family=family,
        ports=_shared_ports(tuple(_slice_ports(obj.ports or [], problems))),
        endpoints=endpoints,
        triggered=_epoch(annotations.triggered) if annotations else 0.0,
        problems=problems.all(),
    )


def _endpoints(
    entries: list[wire.Endpoint], family: Family, problems: FieldProblems
) -> Iterator[model.Endpoint]:
    """Yield the endpoints of a slice.

    A cluster may have 100,000, on few nodes in fewer zones, so names are interned and equal hints
    share one tuple.
    """
    for i, entry in enumerate(entries):
        if not entry.addresses:
            problems.add(f"endpoints[{i}].addresses", "empty; this endpoint is ignored")
            continue
        text = entry.addresses[0]
        try:
            packed = fields.address(text)
        except ValueError as error:
            problems.add(f"endpoints[{i}].addresses[0]", f"{error}; ignored")
            continue
        if family_of(packed) is not family:
            message = f"{text} has incorrect IP version: this slice is {family.label}; ignored"
            problems.add(f"endpoints[{i}].addresses[0]", message)
            continue
        if reason := special(packed):
            message = f"{text} is {reason}, which no endpoint can have; ignored"
            problems.add(f"endpoints[{i}].addresses[0]", message)
            continue
        # A terminating endpoint may be ready: the controller sets that for a Service with
        # publishNotReadyAddresses.
        conditions = entry.conditions or _NO_CONDITIONS
        hints = entry.hints or _NO_HINTS
        node, zone = entry.node_name or "", entry.zone or ""
        # The API server does not validate zones, and `pyproxy services` prints both.
        if not (node.isprintable() and zone.isprintable() and len(zone) <= fields.LONGEST_NAME):
            problems.add(f"endpoints[{i}]", "nodeName or zone is no printable name; both ignored")
            node = zone = ""
        yield model.Endpoint(
            packed,
            conditions.ready is not False,
            conditions.serving is not False,
            conditions.terminating is True,
            intern(node),
            intern(zone),
            _hints(hints.for_zones) if hints.for_zones else (),
            _hints(hints.for_nodes) if hints.for_nodes else (),
        )


def _hints(hints: list[wire.Hint]) -> tuple[str, ...]:
    names = tuple(intern(hint.name) for hint in hints if hint.name)
    return shared(names, len(names) + sum(map(len, names)))


def _shared_ports(ports: tuple[model.SlicePort, ...]) -> tuple[model.SlicePort, ...]:
    return shared(ports, sum(1 + len(port.name) for port in ports))


def _slice_ports(
    entries: list[wire.SlicePort], problems: FieldProblems
) -> Iterator[model.SlicePort]:
    """Yield the ports of a slice; a null port means "all ports", which kube-proxy ignores too."""
    for i, entry in enumerate(entries):
        if entry.port is None:
            continue
        protocol = fields.protocol(entry.protocol, f"ports[{i}].protocol", problems)
        number = fields.port(entry.port, f"ports[{i}].port", problems)
        if protocol is not None and number:
            yield model.SlicePort(intern(entry.name or ""), protocol, number)


def _epoch(text: str | None) -> float:
    """Convert an RFC 3339 time to seconds since the epoch, 0 if it is invalid.

    An invalid time is not a Problem: it only costs one measurement of latency.
    """
    try:
        time = datetime.fromisoformat(text or "")
        return time.timestamp() if time.tzinfo else 0.0
    except (ValueError, OverflowError):
        return 0.0
