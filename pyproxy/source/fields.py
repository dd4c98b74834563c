"""Single fields of API objects: read into the model's types, or noted as a Problem.

A `FieldProblems` travels with one object while it is read. What cannot be used is noted and left
out, and the rest of the object goes on.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import lru_cache
from sys import intern
from typing import TypeVar, cast

import msgspec
from msgspec import UNSET

from pyproxy.errors import Problem
from pyproxy.model.address import (
    Address,
    Family,
    Network,
    Port,
    Protocol,
    family_of,
    parse_address,
    parse_network,
)
from pyproxy.model.objects import ObjectName, TrafficPolicy
from pyproxy.source import wire

_T = TypeVar("_T")

_MAPPED = bytes(10) + b"\xff\xff"
_SINGLE: dict[bytes, str] = {
    bytes(4): "the unspecified address",
    bytes(16): "the unspecified address",
    bytes(15) + b"\x01": "a loopback address",
    b"\xff" * 4: "the broadcast address",
}
_LINK_LOCAL = bytes((169, 254))
_FIRST_BYTE = {127: "a loopback address"} | dict.fromkeys(range(224, 240), "a multicast address")
_SUSPECT = frozenset((*_FIRST_BYTE, *_LINK_LOCAL[:1], *(each[0] for each in _SINGLE), 0xFE))
"""The first bytes of all addresses that are special, in either family."""

_PROTOCOLS = {protocol.name: protocol for protocol in Protocol}
_POLICIES = {policy.value: policy for policy in TrafficPolicy}
_FAMILIES = {family.label: family for family in Family}


class NotProxied(msgspec.Struct, frozen=True):
    """An object that is right, and that a Service proxy leaves alone."""

    reason: str


class FieldProblems:
    """The problems of one object, gathered while it is read."""

    def __init__(self, kind: str, name: str) -> None:
        self._kind = kind
        self._name = name
        self._problems: list[Problem] = []

    def note(self, field: str, message: str) -> None:
        """Note what is wrong with a field and what becomes of it."""
        self._problems.append(Problem(self._kind, self._name, field, message))

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All that was noted, in the order in which the object was read."""
        return tuple(self._problems)


def shared(value: _T) -> _T:
    """Return one instance for equal tuples: a cluster's hints and ports repeat without end.

    The table is bounded, so that a cluster which makes up new values all the time loses sharing
    and nothing else.
    """
    return cast("_T", _table(value))


@lru_cache(maxsize=4096)
def _table(value: Hashable) -> Hashable:
    return value


def address(text: str) -> Address:
    """Pack an address; an IPv4-mapped IPv6 address is IPv4, as in Go. Raises ValueError."""
    packed = parse_address(text)
    return Address(packed[12:]) if len(packed) == 16 and packed[:12] == _MAPPED else packed


def special(packed: Address) -> str:
    """Tell why no Service and no endpoint can have this address; empty where it can.

    These are the addresses that the API server's own validation refuses. They matter in objects
    from before that validation: a Service on a loopback address would take over connections of
    the node to itself.
    """
    if packed[0] not in _SUSPECT:
        return ""
    if reason := _SINGLE.get(packed):
        return reason
    if len(packed) == 4:
        return (
            "a link-local address" if packed[:2] == _LINK_LOCAL else _FIRST_BYTE.get(packed[0], "")
        )
    if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80:
        return "a link-local address"
    return "a multicast address" if packed[0] == 0xFF else ""


def addresses(
    texts: Iterable[tuple[str, str]], families: tuple[Family, ...], findings: FieldProblems
) -> tuple[Address, ...]:
    """Read (field, text) pairs, without repetition; no families means that each will do."""
    found: dict[Address, None] = {}
    for field, text in texts:
        try:
            packed = address(text)
        except ValueError as error:
            findings.note(field, f"{error}; left out")
            continue
        if reason := special(packed):
            findings.note(field, f"{text} is {reason}, which no Service can have; left out")
        elif families and family_of(packed) not in families:
            labels = " and ".join(family.label for family in families)
            findings.note(
                field, f"{text} has incorrect IP version: this Service is {labels}; left out"
            )
        else:
            found[packed] = None
    return tuple(found)


def network(text: str) -> Network:
    """Read a CIDR; one in the IPv4-mapped part of IPv6 is IPv4. Raises ValueError."""
    value = parse_network(text)
    if len(value.address) == 16 and value.prefix >= 96 and value.address[:12] == _MAPPED:
        return Network(Address(value.address[12:]), value.prefix - 96)
    return value


def port(value: int | None, field: str, findings: FieldProblems) -> Port:
    """Check a port; what is none is noted and reads as 0."""
    if value is not None and 0 < value < 65536:
        return Port(value)
    findings.note(field, f"{value} is not a port (1 to 65535); left out")
    return Port(0)


def protocol(text: str | None, field: str, findings: FieldProblems) -> Protocol | None:
    """Read a protocol, TCP where none is given; what is not proxied is noted and reads as None."""
    found = _PROTOCOLS.get(text or "TCP")
    if found is None:
        findings.note(field, f"{text!r} is none of TCP, UDP and SCTP; this port is left out")
    return found


def policy(text: str | None, field: str, findings: FieldProblems) -> TrafficPolicy:
    """Read a traffic policy, Cluster where none is given or it is unknown."""
    found = _POLICIES.get(text or "Cluster")
    if found is None:
        findings.note(field, f"{text!r} is neither Cluster nor Local; Cluster is used")
        return TrafficPolicy.CLUSTER
    return found


def families(labels: Iterable[str]) -> tuple[Family, ...]:
    """Read spec.ipFamilies; names that are no family are left out."""
    return tuple(dict.fromkeys(_FAMILIES[label] for label in labels if label in _FAMILIES))


def name_of(meta: wire.Meta) -> ObjectName:
    """Name an object; namespaces are interned, for they are few."""
    return ObjectName(intern(meta.namespace or ""), meta.name)


def foreign(labels: wire.Labels | None) -> str:
    """Tell by its labels why an object is not ours; empty where it is.

    The same two labels are the selector of every list and watch, so this speaks for sources that
    have no selectors: a folder of manifests.
    """
    if labels is None:
        return ""
    if labels.proxy_name is not UNSET:
        return "another proxy's, by label service.kubernetes.io/service-proxy-name"
    if labels.headless is not UNSET:
        return "headless, by label service.kubernetes.io/headless"
    return ""
