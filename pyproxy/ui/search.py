"""Searching Services, in pages."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping

import msgspec

from pyproxy.inspect.snapshot import Snapshot
from pyproxy.model.address import address_text
from pyproxy.model.objects import Kind, ObjectName, Service
from pyproxy.policy.routing import ServiceRouting

PAGE_SIZE = 50
"""Services on one page."""

_MAX_LENGTH, _MAX_WORDS = 256, 16
"""Bounds of a search, which compares each word with each Service."""


class Filter(enum.Enum):
    """A filter on Services; the values are those in the URL."""

    ALL = ""
    NO_ENDPOINTS = "no-endpoints"
    INVALID = "invalid"


class SearchQuery(msgspec.Struct, frozen=True):
    """Words that a Service must all contain, a filter, and the page number from 1."""

    q: str = ""
    filter: Filter = Filter.ALL
    page: int = 1


class ServiceRow(msgspec.Struct, frozen=True):
    """A Service in the list.

    `unserved` is true if a port has no endpoint, `invalid` is the number of invalid fields.
    """

    name: ObjectName
    addresses: tuple[str, ...]
    ports: tuple[str, ...]
    endpoints: int
    unserved: bool
    invalid: int


class SearchResult(msgspec.Struct, frozen=True):
    """One page of the `total` Services that match, sorted by name."""

    rows: tuple[ServiceRow, ...]
    total: int
    page: int
    pages: int


def search(snapshot: Snapshot, query: SearchQuery) -> SearchResult:
    """Return one page of matching Services; a page number above the last means the last."""
    words = list(dict.fromkeys(query.q[:_MAX_LENGTH].lower().split()))[:_MAX_WORDS]
    invalid = _invalid_fields(snapshot)
    matching = [
        name
        for name in snapshot.services
        if _passes(query.filter, name, snapshot, invalid)
        and _has_words(name, snapshot.services[name], words)
    ]
    matching.sort(key=lambda name: (name.namespace, name.name))
    # At least one page, because an empty result is a page too.
    pages = max(1, -(-len(matching) // PAGE_SIZE))
    page = min(max(query.page, 1), pages)
    shown = matching[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
    rows = tuple(_row(snapshot, name, invalid.get(str(name), 0)) for name in shown)
    return SearchResult(rows, len(matching), page, pages)


def _has_words(name: ObjectName, service: Service, words: list[str]) -> bool:
    if not words:
        return True
    text = " ".join((str(name), *_addresses(service), *_ports(service))).lower()
    return all(word in text for word in words)


def _passes(
    filter_: Filter, name: ObjectName, snapshot: Snapshot, invalid: Mapping[str, int]
) -> bool:
    match filter_:
        case Filter.ALL:
            return True
        case Filter.NO_ENDPOINTS:
            return _is_unserved(snapshot.routings.get(name))
        case Filter.INVALID:
            return str(name) in invalid


def _row(snapshot: Snapshot, name: ObjectName, invalid: int) -> ServiceRow:
    service, routing = snapshot.services[name], snapshot.routings.get(name)
    backends = {
        backend
        for port in (routing.ports if routing else ())
        for backend in (*port.cluster, *port.local)
    }
    return ServiceRow(
        name,
        tuple(_addresses(service)),
        tuple(_ports(service)),
        len(backends),
        _is_unserved(routing),
        invalid,
    )


def _is_unserved(routing: ServiceRouting | None) -> bool:
    return routing is None or any(not (port.cluster or port.local) for port in routing.ports)


def _addresses(service: Service) -> Iterator[str]:
    yield from map(address_text, service.cluster_ips)
    yield from map(address_text, service.external_ips)
    yield from map(address_text, service.load_balancer_ips)


def _ports(service: Service) -> Iterator[str]:
    for port in service.ports:
        node_port = f" (node port {port.node_port})" if port.node_port else ""
        yield f"{port.port}/{port.protocol.name}{node_port}"


def _invalid_fields(snapshot: Snapshot) -> dict[str, int]:
    counts: dict[str, int] = {}
    for problem in snapshot.problems:
        if problem.kind == Kind.SERVICE.value:
            counts[problem.name] = counts.get(problem.name, 0) + 1
    return counts
