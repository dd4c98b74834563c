"""From policy's answer to the elements that the table should hold: values in, values out."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, count
from typing import Final, assert_never

from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.rows import (
    PORT_PADDING,
    SharedRow,
    frontend_key,
    joined_ranges,
    service_comment,
)
from pyproxy.dataplane.nft.schema import Rows, Table
from pyproxy.dataplane.nftables import chains, schema
from pyproxy.model.address import Backend, Family
from pyproxy.netlink.elements import DROP, Tag
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use

_INDEX = struct.Struct("=I")
# A member that is looked up in its enum takes longer than to pack a row.
_CLUSTER: Final = Use.CLUSTER
_LOCAL: Final = Use.LOCAL
_SPLIT: Final = Use.SPLIT
_CLUSTER_IP: Final = Scope.CLUSTER_IP
_SERVES = (_CLUSTER, _LOCAL, _SPLIT)

# So does the name of a set that is asked of its kind.
_SERVICES = {family: schema.SERVICES.of(family) for family in Family}
_ENDPOINTS = {family: schema.ENDPOINTS.of(family) for family in Family}
_CLUSTER_IPS = {family: nft.CLUSTER_IPS.of(family) for family in Family}
_HAIRPIN = {family: nft.HAIRPIN.of(family) for family in Family}

_BESIDE_ADDRESS = 8
"""Bytes of a frontend's key that are its protocol and its port."""

_FIRST = {chains.CLUSTER: 0, chains.LOCAL: chains.LOCAL_OFFSET}
_FEW = {which: [_INDEX.pack(first + n) for n in range(32)] for which, first in _FIRST.items()}


def add_service(routing: ServiceRouting, table: Table) -> None:
    """Add the rows that belong to one Service alone."""
    for port in routing.ports:
        comment = service_comment(routing.name, port.name)
        for frontend in port.frontends:
            _add_frontend(routing, port, frontend, comment, table)


def shared_rows(routing: ServiceRouting) -> Iterator[SharedRow]:
    """Give the rows that other Services may want as well, once for each port that wants them."""
    for port in routing.ports:
        hairpin = _HAIRPIN[port.family]
        for backend in port.hairpin:
            yield hairpin, backend[:-2] * 2
        cluster_ips = _CLUSTER_IPS[port.family]
        for frontend in port.frontends:
            if frontend.scope is _CLUSTER_IP:
                yield cluster_ips, frontend.address


def _add_frontend(
    routing: ServiceRouting, port: PortRouting, frontend: Frontend, comment: str, table: Table
) -> None:
    family, use = port.family, frontend.use
    key = frontend_key(frontend.address, port.protocol, frontend.port)
    sticky = routing.affinity_timeout > 0 and use in _SERVES
    backends: tuple[Backend, ...] = ()
    if use is _CLUSTER:
        backends, outside = port.cluster, frontend.scope is not _CLUSTER_IP
        _number(table, family, key, chains.CLUSTER, backends)
        picking = _picking(chains.CLUSTER, family, len(backends), outside, sticky)
        targets = [(_SERVICES[family], picking)]
    elif use is _LOCAL:
        backends = port.local
        _number(table, family, key, chains.CLUSTER, backends)
        picking = _picking(chains.CLUSTER, family, len(backends), False, sticky)
        targets = [(_SERVICES[family], picking)]
    elif use is _SPLIT:
        backends = port.cluster + port.local
        targets = _split(port, key, sticky, table)
    elif use is Use.REJECT:
        targets = [(nft.NO_ENDPOINT_SERVICES.of(family), "")]
    elif use is Use.DROP:
        targets = [(_SERVICES[family], DROP)]
    else:
        assert_never(use)
    if sticky:
        learning = chains.learning(family, routing.affinity_timeout)
        targets.append((schema.AFFINITY_FRONTENDS.of(family), learning))
        returned_to = table.setdefault(schema.AFFINITY_ENDPOINTS.of(family), {})
        returned_to.update((key + backend + PORT_PADDING, b"") for backend in backends)
    if routing.source_ranges and frontend.scope is Scope.LOAD_BALANCER:
        targets.append((nft.SOURCE_RANGE_FRONTENDS.of(family), ""))
        sources = table.setdefault(nft.SOURCES.of(family), {})
        for low, high in joined_ranges(routing.source_ranges, family):
            sources[key + low + key + high] = b""
    for set_name, target in targets:
        table.setdefault(set_name, {})[key] = Tag(target, comment)


def _split(port: PortRouting, key: bytes, sticky: bool, table: Table) -> list[tuple[str, str]]:
    """Number both kinds of endpoints; each set that the frontend is in, and where that sends it."""
    family = port.family
    targets = [(_SERVICES[family], f"split{int(family)}")]
    outsiders = DROP
    if port.cluster:
        _number(table, family, key, chains.CLUSTER, port.cluster)
        insiders = _picking(chains.CLUSTER, family, len(port.cluster), False, sticky)
        targets.append((schema.INTERNAL_SERVICES.of(family), insiders))
    if port.local:
        _number(table, family, key, chains.LOCAL, port.local)
        outsiders = _picking(chains.LOCAL, family, len(port.local), False, sticky)
    return [*targets, (schema.EXTERNAL_SERVICES.of(family), outsiders)]


def _number(
    table: Table, family: Family, key: bytes, which: str, backends: tuple[Backend, ...]
) -> None:
    endpoints = table.setdefault(_ENDPOINTS[family], {})
    for index, backend in zip(_indices(which, len(backends)), backends, strict=False):
        endpoints[key + index] = backend + PORT_PADDING


@lru_cache(1024)
def _picking(which: str, family: Family, count: int, masquerade: bool, sticky: bool) -> str:
    """Name the chain that picks one of so many; the arguments by place, for that is quicker."""
    size = chains.endpoint_class(count)
    return chains.picking(which, family, size, masquerade=masquerade, sticky=sticky)


def _indices(which: str, count: int) -> Sequence[bytes]:
    """Give the last fields of the keys of CLUSTER's or LOCAL's first `count` endpoints, or more."""
    few = _FEW[which]
    if count <= len(few):
        return few
    first = _FIRST[which]
    return [_INDEX.pack(index) for index in range(first, first + count)]


def slots_of(rows: Rows, frontend: bytes, which: str) -> tuple[Backend, ...]:
    """Read back which slots CLUSTER's or LOCAL's endpoints of a frontend have.

    Those that lie behind a gap, which nobody of us wrote, are left out.
    """
    found: list[Backend] = []
    size = len(frontend) - _BESIDE_ADDRESS + 2
    further = map(_INDEX.pack, count(_FIRST[which] + len(_FEW[which])))
    for index in chain(_FEW[which], further):
        value = rows.get(frontend + index)
        if not isinstance(value, bytes):
            break
        found.append(Backend(value[:size]))
    return tuple(found)
