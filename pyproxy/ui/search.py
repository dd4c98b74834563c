"""Which Services a reader means, page by page."""

from __future__ import annotations

import enum
from collections.abc import Iterator

import msgspec

from pyproxy.inspect.snapshot import Snapshot
from pyproxy.model.address import address_text
from pyproxy.model.objects import Kind, ObjectName, Service
from pyproxy.policy.routing import ServiceRouting

PAGE = 50
"""Services on one page."""


class Only(enum.Enum):
    """Which Services are shown; the values are what the query says."""

    ALL = ""
    SILENT = "silent"
    PROBLEMS = "problems"


class Query(msgspec.Struct, frozen=True):
    """What a reader asks for: words that a Service must all have, a filter, and a page from 1."""

    q: str = ""
    only: Only = Only.ALL
    page: int = 1


class Line(msgspec.Struct, frozen=True):
    """A Service in the list; `silent` says that some port of it leads to no endpoint."""

    name: ObjectName
    addresses: tuple[str, ...]
    ports: tuple[str, ...]
    endpoints: int
    silent: bool
    problems: int


class Found(msgspec.Struct, frozen=True):
    """One page of Services, by name, of `total` that were found."""

    lines: tuple[Line, ...]
    total: int
    page: int
    pages: int


def search(snapshot: Snapshot, query: Query) -> Found:
    """Find Services; a page beyond the last is the last."""
    words = query.q.lower().split()
    wrong = _problems(snapshot)
    chosen = [
        name
        for name in sorted(snapshot.services)
        if _is_meant(name, snapshot.services[name], words)
        and _is_shown(query.only, snapshot.routings.get(name), wrong.get(str(name), 0))
    ]
    pages = max(1, -(-len(chosen) // PAGE))
    page = min(max(query.page, 1), pages)
    shown = chosen[(page - 1) * PAGE : page * PAGE]
    lines = tuple(_line(snapshot, name, wrong.get(str(name), 0)) for name in shown)
    return Found(lines, len(chosen), page, pages)


def _is_meant(name: ObjectName, service: Service, words: list[str]) -> bool:
    text = " ".join((str(name), *_addresses(service), *_ports(service))).lower()
    return all(word in text for word in words)


def _is_shown(only: Only, routing: ServiceRouting | None, problems: int) -> bool:
    match only:
        case Only.ALL:
            return True
        case Only.SILENT:
            return _is_silent(routing)
        case Only.PROBLEMS:
            return problems > 0


def _line(snapshot: Snapshot, name: ObjectName, problems: int) -> Line:
    service, routing = snapshot.services[name], snapshot.routings.get(name)
    backends = {
        backend
        for port in (routing.ports if routing else ())
        for backend in (*port.cluster, *port.local)
    }
    return Line(
        name,
        tuple(_addresses(service)),
        tuple(_ports(service)),
        len(backends),
        _is_silent(routing),
        problems,
    )


def _is_silent(routing: ServiceRouting | None) -> bool:
    return routing is None or any(not (port.cluster or port.local) for port in routing.ports)


def _addresses(service: Service) -> Iterator[str]:
    yield from map(address_text, service.cluster_ips)
    yield from map(address_text, service.external_ips)
    yield from map(address_text, service.load_balancer_ips)


def _ports(service: Service) -> Iterator[str]:
    for port in service.ports:
        node_port = f" (node port {port.node_port})" if port.node_port else ""
        yield f"{port.port}/{port.protocol.name}{node_port}"


def _problems(snapshot: Snapshot) -> dict[str, int]:
    counts: dict[str, int] = {}
    for problem in snapshot.problems:
        if problem.kind == Kind.SERVICE.value:
            counts[problem.name] = counts.get(problem.name, 0) + 1
    return counts
