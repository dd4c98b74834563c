"""Convert single fields of API objects into the types of the model.

A `FieldProblems` collects the invalid fields of one object while it is converted. An invalid field
is ignored, and the rest of the object is used.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import lru_cache
from sys import intern
from typing import TypeVar, cast

import msgspec
from msgspec import UNSET

from pyproxy.errors import Problem, ProblemList
from pyproxy.model.address import (
    Address,
    Family,
    Network,
    Port,
    Protocol,
    family_of,
    is_mapped,
    parse_address,
    parse_network,
)
from pyproxy.model.objects import Kind, ObjectName, TrafficPolicy
from pyproxy.model.special_addresses import special
from pyproxy.source import wire

_T = TypeVar("_T", bound=tuple[Hashable, ...])

_PROTOCOLS = {protocol.name: protocol for protocol in Protocol}
_POLICIES = {policy.value: policy for policy in TrafficPolicy}
_FAMILIES = {family.label: family for family in Family}


LONGEST_NAME = 253
"""Characters of an object's name, as in the API server's validation."""

_LARGEST_SHARED = 512
_MOST_NAMESPACES = 4096
_known_namespaces: set[str] = set()


class NotProxied(msgspec.Struct, frozen=True):
    """A valid object that pyproxy does not proxy, and why."""

    reason: str


class FieldProblems:
    """The problems of one object, collected while it is converted.

    An object may have a hundred thousand invalid fields, so all but the first few are only counted.
    """

    __slots__ = ("_kind", "_name", "_problems")

    def __init__(self, kind: Kind, name: ObjectName) -> None:
        self._kind = kind
        self._name = name
        # Made with the first problem, because most objects have none.
        self._problems: ProblemList | None = None

    def add(self, field: str, message: str) -> None:
        """Add a problem: the field, the error and its consequence."""
        if self._problems is None:
            self._problems = ProblemList()
        if self._problems.has_room:
            self._problems.add(Problem(self._kind.value, str(self._name), field, message))
        else:
            self._problems.count()

    @property
    def has_room(self) -> bool:
        """Whether the next problem is kept, so that its text is worth making."""
        return self._problems is None or self._problems.has_room

    def count(self) -> None:
        """Add a problem that is not kept; only without `has_room`."""
        if self._problems is not None:
            self._problems.count()

    def all(self) -> tuple[Problem, ...]:
        """Return the problems in the order in which the fields were converted, and a summary."""
        return () if self._problems is None else self._problems.all()


def shared(value: _T, size: int) -> _T:
    """Return one instance for equal tuples, because hints and ports repeat across a cluster.

    `size` is the number of items and of characters in all of them. The table keeps its values
    alive, so it takes small ones only: ever new names of a megabyte would fill the memory. A
    cluster with many values only loses the sharing.
    """
    return cast("_T", _table(value)) if size <= _LARGEST_SHARED else value


@lru_cache(maxsize=4096)
def _table(value: Hashable) -> Hashable:
    return value


def address(text: str) -> Address:
    """Pack an address; an IPv4-mapped IPv6 address is IPv4, as in Go. Raises ValueError."""
    packed = parse_address(text)
    return Address(packed[12:]) if is_mapped(packed) else packed


def addresses(
    field: str,
    texts: Iterable[tuple[int, str]],
    families: tuple[Family, ...],
    problems: FieldProblems,
) -> tuple[Address, ...]:
    """Convert the (index, text) pairs of a field, without duplicates.

    Empty `families` allow both. `field` has braces for the index.
    """
    found: dict[Address, None] = {}
    for index, text in texts:
        try:
            packed = address(text)
        except ValueError as error:
            problems.add(field.format(index), f"{error}; ignored")
            continue
        reason = special(packed)
        if not reason and (not families or family_of(packed) in families):
            found[packed] = None
        elif not problems.has_room:
            # A Service may have tens of thousands, and a text for each would take most of the time.
            problems.count()
        elif reason:
            message = f"{text} is {reason}, which no Service can have; ignored"
            problems.add(field.format(index), message)
        else:
            labels = " and ".join(family.label for family in families)
            message = f"{text} has incorrect IP version: this Service is {labels}; ignored"
            problems.add(field.format(index), message)
    return tuple(found)


def network(text: str) -> Network:
    """Parse a CIDR; an IPv4-mapped IPv6 one is IPv4. Raises ValueError."""
    value = parse_network(text)
    if value.prefix >= 96 and is_mapped(value.address):
        return Network(Address(value.address[12:]), value.prefix - 96)
    return value


def port(value: int | None, field: str, problems: FieldProblems) -> Port:
    """Return a valid port; an invalid one is added to the problems and returned as 0."""
    if value is not None and 0 < value < 65536:
        return Port(value)
    problems.add(field, f"{value} is not a port (1 to 65535); ignored")
    return Port(0)


def known_protocol(text: str | None) -> Protocol | None:
    """Return a protocol (default TCP), None for an unknown one."""
    return _PROTOCOLS.get(text or "TCP")


def protocol(text: str | None, field: str, problems: FieldProblems) -> Protocol | None:
    """Return a protocol (default TCP); an unknown one is a problem and returned as None."""
    found = known_protocol(text)
    if found is None:
        problems.add(field, f"{text!r} is not one of TCP, UDP and SCTP; this port is ignored")
    return found


def policy(text: str | None, field: str, problems: FieldProblems) -> TrafficPolicy:
    """Return a traffic policy (default Cluster); an unknown one is a problem."""
    found = _POLICIES.get(text or "Cluster")
    if found is None:
        problems.add(field, f"{text!r} is neither Cluster nor Local; Cluster is used")
        return TrafficPolicy.CLUSTER
    return found


def families(labels: Iterable[str]) -> tuple[Family, ...]:
    """Convert spec.ipFamilies; unknown names are ignored."""
    return tuple(dict.fromkeys(_FAMILIES[label] for label in labels if label in _FAMILIES))


def name_of(meta: wire.Meta) -> ObjectName:
    """Return the name of an object; namespaces are interned because they are few."""
    return ObjectName(intern(meta.namespace or ""), meta.name)


def is_name(text: str) -> bool:
    """Return whether a text can name an object in log lines, paths and Events.

    The API server allows less; its rules differ by kind and by version.
    """
    return (
        0 < len(text) <= LONGEST_NAME and text.isascii() and text.isprintable() and "/" not in text
    )


def is_namespace(text: str) -> bool:
    """Return whether a text can name a namespace, as `is_name`; they are few."""
    if text in _known_namespaces:
        return True
    if not is_name(text):
        return False
    if len(_known_namespaces) >= _MOST_NAMESPACES:
        _known_namespaces.clear()
    _known_namespaces.add(text)
    return True


def not_proxied_label(labels: wire.Labels | None) -> str:
    """Return why the labels of an object exclude it from pyproxy; empty if they do not.

    Lists and watches select by the same two labels; this check serves a folder of manifests, which
    has no selectors.
    """
    if labels is None:
        return ""
    if labels.proxy_name is not UNSET:
        return "proxied by another program: label service.kubernetes.io/service-proxy-name"
    if labels.headless is not UNSET:
        return "headless: label service.kubernetes.io/headless"
    return ""
