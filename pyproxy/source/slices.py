"""What an EndpointSlice means to a Service proxy.

Facts: kube-proxy of Kubernetes v1.36 (its endpoint tracking) and the API server's validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from sys import intern

from pyproxy.model import objects as model
from pyproxy.model.address import Family, family_of
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.source import fields, wire
from pyproxy.source.fields import FieldProblems, NotProxied, shared

_FAMILY_OF_TYPE = {"IPv4": Family.IPV4, "IPv6": Family.IPV6}
_NO_CONDITIONS = wire.Conditions()
_NO_HINTS = wire.Hints()


def endpoint_slice(read: wire.EndpointSlice) -> model.EndpointSlice | NotProxied:
    """Read an EndpointSlice.

    A null condition reads as kube-proxy reads it: ready and serving are true, terminating is
    false. The API calls all addresses of one endpoint equivalent, and consumers use the first.
    """
    labels = read.metadata.labels
    if reason := fields.foreign(labels):
        return NotProxied(reason)
    if labels is None or not labels.service_name:
        return NotProxied("no label kubernetes.io/service-name: it belongs to no Service")
    if read.address_type == "FQDN":
        return NotProxied("its addresses are names (addressType FQDN)")
    name = fields.name_of(read.metadata)
    findings = FieldProblems(Kind.ENDPOINT_SLICE.value, str(name))
    family = _FAMILY_OF_TYPE.get(read.address_type or "")
    endpoints: tuple[model.Endpoint, ...] = ()
    if family is None:
        findings.note(
            "addressType", f"{read.address_type!r} is none of IPv4, IPv6, FQDN; no endpoint is used"
        )
        family = Family.IPV4
    else:
        endpoints = tuple(_endpoints(read.endpoints or [], family, findings))
    annotations = read.metadata.annotations
    return model.EndpointSlice(
        name=name,
        service=ObjectName(name.namespace, intern(labels.service_name)),
        family=family,
        ports=shared(tuple(_slice_ports(read.ports or [], findings))),
        endpoints=endpoints,
        triggered=_epoch(annotations.triggered) if annotations else 0.0,
        problems=findings.problems,
    )


def _endpoints(
    entries: list[wire.Endpoint], family: Family, findings: FieldProblems
) -> Iterator[model.Endpoint]:
    """Read a slice's endpoints.

    A cluster has 100,000 of these, on a few nodes in fewer zones: names are interned, and equal
    hints are one tuple.
    """
    for i, entry in enumerate(entries):
        if not entry.addresses:
            findings.note(f"endpoints[{i}].addresses", "empty; this endpoint is left out")
            continue
        text = entry.addresses[0]
        try:
            packed = fields.address(text)
        except ValueError as error:
            findings.note(f"endpoints[{i}].addresses[0]", f"{error}; left out")
            continue
        if family_of(packed) is not family:
            message = f"{text} has incorrect IP version: this slice is {family.label}; left out"
            findings.note(f"endpoints[{i}].addresses[0]", message)
            continue
        if reason := fields.special(packed):
            message = f"{text} is {reason}, which no endpoint can have; left out"
            findings.note(f"endpoints[{i}].addresses[0]", message)
            continue
        conditions = entry.conditions or _NO_CONDITIONS
        hints = entry.hints or _NO_HINTS
        yield model.Endpoint(
            packed,
            conditions.ready is not False,
            conditions.serving is not False,
            conditions.terminating is True,
            intern(entry.node_name or ""),
            intern(entry.zone or ""),
            _hints(hints.for_zones) if hints.for_zones else (),
            _hints(hints.for_nodes) if hints.for_nodes else (),
        )


def _hints(hints: list[wire.Hint]) -> tuple[str, ...]:
    return shared(tuple(intern(hint.name) for hint in hints if hint.name))


def _slice_ports(
    entries: list[wire.SlicePort], findings: FieldProblems
) -> Iterator[model.SlicePort]:
    """Read a slice's ports; one that is null would mean "all ports", which no proxy honours."""
    for i, entry in enumerate(entries):
        if entry.port is None:
            continue
        protocol = fields.protocol(entry.protocol, f"ports[{i}].protocol", findings)
        number = fields.port(entry.port, f"ports[{i}].port", findings)
        if protocol is not None and number:
            yield model.SlicePort(intern(entry.name or ""), protocol, number)


def _epoch(text: str | None) -> float:
    """Read an RFC 3339 time as seconds since the epoch; 0 for what is none.

    A controller's annotation that cannot be read costs one measurement, so it is no Problem.
    """
    try:
        time = datetime.fromisoformat(text or "")
        return time.timestamp() if time.tzinfo else 0.0
    except (ValueError, OverflowError):
        return 0.0
