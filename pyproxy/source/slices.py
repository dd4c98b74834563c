"""Convert EndpointSlices of the API into those of the model.

Facts: kube-proxy of Kubernetes v1.36 (its endpoint tracking) and the API server's validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton
from sys import intern
from typing import Any, TypeAlias, cast

from pyproxy.model import objects as model
from pyproxy.model.address import Address, Family, Port, family_of
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.model.special_addresses import UNUSUAL_FIRST_BYTES, special
from pyproxy.source import fields, wire
from pyproxy.source.fields import FieldProblems, NotProxied, shared

_FAMILY_OF_TYPE = {"IPv4": Family.IPV4, "IPv6": Family.IPV6}
_NO_CONDITIONS = wire.Conditions()
# Printable names of nodes and zones, interned: one look-up instead of two checks for each endpoint.
_KNOWN_NAMES: dict[str | None, str] = {None: ""}
_MOST_NAMES = 16_384
# Global names, because an attribute lookup on an enum is slow. So is its hash.
_KIND, _IPV4 = Kind.ENDPOINT_SLICE, Family.IPV4
_BY_FAMILY = tuple(
    (number, UNUSUAL_FIRST_BYTES[family])
    for family, number in ((Family.IPV4, AF_INET), (Family.IPV6, AF_INET6))
)
_NONE = Address(b"")
# A cast instead of Address(...), which would cost a call for each address.
pack = cast("Callable[[int, str], Address]", inet_pton)


EndpointsConverter: TypeAlias = Callable[[Any, Family, FieldProblems], tuple[model.Endpoint, ...]]
"""Converts the endpoints of a slice, whose form depends on the format; as `endpoints`."""


def endpoint_slice(
    obj: wire.EndpointSlice | wire.ProtobufSlice, convert: EndpointsConverter
) -> model.EndpointSlice | NotProxied:
    """Convert an EndpointSlice, and its endpoints by `convert`.

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
    problems = FieldProblems(_KIND, name)
    family = _FAMILY_OF_TYPE.get(obj.address_type or "")
    found: tuple[model.Endpoint, ...] = ()
    if family is None:
        problems.add(
            "addressType",
            f"{obj.address_type!r} is not one of IPv4, IPv6, FQDN; no endpoint is used",
        )
        # Any family: the slice has no endpoints and exists for its problem only.
        family = Family.IPV4
    else:
        found = convert(obj.endpoints or (), family, problems)
    annotations = obj.metadata.annotations
    return model.EndpointSlice(
        name=name,
        service=ObjectName(name.namespace, intern(labels.service_name)),
        family=family,
        ports=_ports(obj.ports or [], problems),
        endpoints=found,
        triggered=_epoch(annotations.triggered) if annotations else 0.0,
        problems=problems.all(),
    )


def endpoints(
    entries: Iterable[wire.Endpoint], family: Family, problems: FieldProblems, first: int = 0
) -> tuple[model.Endpoint, ...]:
    """Return the endpoints of a slice, or some that begin with the one of index `first`.

    A cluster may have 100,000, on few nodes in fewer zones, so names are interned and equal hints
    share one tuple. Most have an ordinary address, which this loop packs without another call.
    """
    found: list[model.Endpoint] = []
    number, unusual = address_form(family)
    names = _KNOWN_NAMES
    for i, entry in enumerate(entries, first):
        addresses = entry.addresses
        try:
            packed = pack(number, addresses[0]) if addresses else _NONE
        except (OSError, ValueError, UnicodeEncodeError):
            packed = _NONE
        if not packed or packed[0] in unusual:
            checked = _checked_address(i, addresses, family, problems)
            if checked is None:
                continue
            packed = checked
        # A terminating endpoint may be ready: the controller sets that for a Service with
        # publishNotReadyAddresses.
        conditions = entry.conditions or _NO_CONDITIONS
        hints = entry.hints
        node, zone = names.get(entry.node_name), names.get(entry.zone)
        if node is None or zone is None:
            valid = valid_names(entry)
            if valid is None:
                text = "nodeName or zone is no printable name; both ignored"
                problems.add(f"endpoints[{i}]", text)
            node, zone = valid or ("", "")
        found.append(
            model.Endpoint(
                packed,
                conditions.ready is not False,
                conditions.serving is not False,
                conditions.terminating is True,
                node,
                zone,
                shared_hints(hints.for_zones) if hints and hints.for_zones else (),
                shared_hints(hints.for_nodes) if hints and hints.for_nodes else (),
            )
        )
    return tuple(found)


def address_form(family: Family) -> tuple[int, frozenset[int]]:
    """Return the number of a family, and the first bytes that `special` may name."""
    return _BY_FAMILY[0 if family is _IPV4 else 1]


def valid_names(entry: wire.Endpoint) -> tuple[str, str] | None:
    """Return the node and the zone of an endpoint, and remember them; None if one is invalid."""
    node, zone = entry.node_name or "", entry.zone or ""
    # The API server does not validate zones, and `pyproxy services` prints both.
    if not (node.isprintable() and zone.isprintable() and len(zone) <= fields.LONGEST_NAME):
        return None
    node, zone = intern(node), intern(zone)
    if len(_KNOWN_NAMES) > _MOST_NAMES:
        _KNOWN_NAMES.clear()
        _KNOWN_NAMES[None] = ""
    # The table keeps its names alive, so it takes short ones only.
    if len(node) <= fields.LONGEST_NAME:
        _KNOWN_NAMES[node] = node
    _KNOWN_NAMES[zone] = zone
    return node, zone


def _checked_address(
    i: int, addresses: Sequence[str] | None, family: Family, problems: FieldProblems
) -> Address | None:
    """Return the address of an endpoint; None for one that is not used, which is a problem."""
    if not addresses:
        problems.add(f"endpoints[{i}].addresses", "empty; this endpoint is ignored")
        return None
    text, field = addresses[0], f"endpoints[{i}].addresses[0]"
    try:
        packed = fields.address(text)
    except ValueError as error:
        problems.add(field, f"{error}; ignored")
        return None
    if family_of(packed) is not family:
        message = f"{text} has incorrect IP version: this slice is {family.label}; ignored"
    elif reason := special(packed):
        message = f"{text} is {reason}, which no endpoint can have; ignored"
    else:
        return packed
    problems.add(field, message)
    return None


def shared_hints(hints: list[wire.Hint] | None) -> tuple[str, ...]:
    """Return the names of hints, as one instance for equal ones."""
    names = tuple(intern(hint.name) for hint in hints or () if hint.name)
    return shared(names, len(names) + sum(map(len, names)))


def _ports(entries: list[wire.SlicePort], problems: FieldProblems) -> tuple[model.SlicePort, ...]:
    """Return the ports of a slice, as one instance for equal ones."""
    if len(entries) == 1:
        # Most slices: one port, which is equal to those of many others.
        entry = entries[0]
        # The cache keeps its texts alive, so it takes short ones only.
        if len(entry.name or "") + len(entry.protocol or "") <= fields.LONGEST_NAME:
            usual = _one_port(entry.name, entry.protocol, entry.port)
            if usual:
                return usual
    ports = tuple(_slice_ports(entries, problems))
    return shared(ports, sum(1 + len(port.name) for port in ports))


@lru_cache(4096)
def _one_port(
    name: str | None, protocol: str | None, port: int | None
) -> tuple[model.SlicePort, ...]:
    """Convert a port; empty if it is invalid."""
    known, number = fields.known_protocol(protocol), port or 0
    if known is None or not 0 < number < 65536:
        return ()
    return (model.SlicePort(intern(name or ""), known, Port(number)),)


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
