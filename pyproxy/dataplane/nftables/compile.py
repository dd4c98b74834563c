"""The elements that the table should hold, compiled from routings: values in, values out."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import chain, count
from typing import Final, assert_never

import msgspec

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.rows import (
    PORT_PADDING,
    SharedRow,
    frontend_key,
    joined_ranges,
    node_rows,
    service_comment,
)
from pyproxy.dataplane.nft.schema import Rows, Table
from pyproxy.dataplane.nftables import chains, schema
from pyproxy.dataplane.nftables.affinity import learning_chains
from pyproxy.dataplane.nftables.schema import NODE_PORT_KEY
from pyproxy.model.address import Backend, Family, Protocol, family_of
from pyproxy.netlink.elements import DROP, Tag
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use

# numgen leaves its number in host byte order.
_INDEX = struct.Struct("=I")
# Lookups of enum members and of set names take longer than packing a row, so both are made once.
_CLUSTER: Final = Use.CLUSTER
_LOCAL: Final = Use.LOCAL
_SPLIT: Final = Use.SPLIT
_CLUSTER_IP: Final = Scope.CLUSTER_IP
_ADDRESS_OFFLOAD = schema.OFFLOAD_SERVICES, schema.DRAINING_ENDPOINTS
_NODE_OFFLOAD = schema.OFFLOAD_NODE_PORTS, schema.NODE_PORT_DRAINING_ENDPOINTS
_SERVES = (_CLUSTER, _LOCAL, _SPLIT)
_SERVICES = {family: schema.SERVICES.of(family) for family in Family}
_NODE_PORTS = {family: schema.NODE_PORTS.of(family) for family in Family}
_NODE_PORT_ENDPOINTS = {family: schema.NODE_PORT_ENDPOINTS.of(family) for family in Family}
_ADDRESS_AFFINITY = schema.AFFINITY_FRONTENDS, schema.AFFINITY_ENDPOINTS
_NODE_AFFINITY = schema.NODE_PORT_AFFINITY, schema.NODE_PORT_AFFINITY_ENDPOINTS
_ADDRESS_KINDS = schema.INTERNAL_SERVICES, schema.EXTERNAL_SERVICES
_NODE_KINDS = schema.INTERNAL_NODE_PORTS, schema.EXTERNAL_NODE_PORTS
_ENDPOINTS = {family: schema.ENDPOINTS.of(family) for family in Family}
_CLUSTER_IPS = {family: nft.CLUSTER_IPS.of(family) for family in Family}
_HAIRPIN = {family: nft.HAIRPIN.of(family) for family in Family}

_CLUSTER_SLOTS: Final = chains.CLUSTER
_NO_LEARNING: Mapping[Family, str] = {}
_FIRST = {chains.CLUSTER: 0, chains.LOCAL: chains.LOCAL_OFFSET}
_FEW = {which: [_INDEX.pack(first + n) for n in range(32)] for which, first in _FIRST.items()}


# nft_flow_offload_eval passes all other protocols by.
OFFLOADED: Final = (Protocol.TCP, Protocol.UDP)
"""The protocols of connections that the kernel can offload."""


class Boundary(msgspec.Struct, frozen=True):
    """A place between two Services: the Services before it, and the rows of each set before it."""

    services: int
    sizes: Mapping[str, int]


class Compiled(msgspec.Struct, frozen=True):
    """The rows of all Services and of the node.

    `shared` counts the users of each shared row. Rows are in the order of their Services, a shared
    row with its first user. At a boundary the table can be cut into batches, because each Service
    has all its rows, and those that it shares, before or behind it. The last boundary is the end.
    """

    table: Table
    shared: Counter[SharedRow]
    boundaries: Sequence[Boundary]


def compile_all(
    routings: Collection[ServiceRouting], node: NodeRouting, rows_per_batch: int
) -> Compiled:
    """Compile all Services and the node, with a boundary about every `rows_per_batch` rows."""
    table = node_table(node)
    boundaries: list[Boundary] = []
    number = size = boundary_at = 0
    for number, routing in enumerate(routings, 1):
        add_service(routing, table)
        for set_name, key in shared_rows(routing):
            table.setdefault(set_name, {})[key] = b""
        size = sum(map(len, table.values()))
        if size - boundary_at >= rows_per_batch:
            boundaries.append(_boundary(number, table))
            boundary_at = size
    if size > boundary_at or not boundaries:
        boundaries.append(_boundary(number, table))
    # The counts outlive the rows. Made among the rows, they would keep the allocator from
    # returning the rows' memory.
    shared = Counter(row for routing in routings for row in shared_rows(routing))
    return Compiled(table, shared, boundaries)


def node_table(node: NodeRouting) -> Table:
    """Return the rows of the node: its pods' networks, and the addresses of node ports."""
    table = node_rows(node.pod_networks)
    for address in node.node_port_addresses:
        table.setdefault(schema.NODE_PORT_ADDRESSES.of(family_of(address)), {})[address] = b""
    return table


def _boundary(services: int, table: Table) -> Boundary:
    return Boundary(services, {name: len(rows) for name, rows in table.items()})


def add_service(routing: ServiceRouting, table: Table) -> None:
    """Add the rows that belong to one Service alone."""
    learning = learning_chains(routing) if routing.affinity_timeout else _NO_LEARNING
    for port in routing.ports:
        comment = service_comment(routing.name, port.name)
        learn = learning.get(port.family, "")
        is_plain = not (learn or routing.offload)
        for frontend in port.frontends:
            if is_plain and frontend.scope is _CLUSTER_IP and frontend.use is _CLUSTER:
                _add_cluster_ip(port, frontend, comment, table)
            else:
                _add_frontend(routing, port, frontend, comment, learn, table)


def shared_rows(routing: ServiceRouting) -> list[SharedRow]:
    """Return the rows that other Services may need as well, once for each port that needs them."""
    rows: list[SharedRow] = []
    for port in routing.ports:
        if port.hairpin:
            rows += hairpin_rows(port)
        cluster_ips = _CLUSTER_IPS[port.family]
        for frontend in port.frontends:
            if frontend.scope is _CLUSTER_IP:
                rows.append((cluster_ips, frontend.address))
    return rows


def hairpin_rows(port: PortRouting) -> list[SharedRow]:
    """Return the rows of the endpoints of a port that may reach themselves."""
    hairpin = _HAIRPIN[port.family]
    # The key is source and destination: the address twice, without the port.
    return [(hairpin, backend[:-2] * 2) for backend in port.hairpin]


def _add_cluster_ip(port: PortRouting, frontend: Frontend, comment: str, table: Table) -> None:
    """Add the rows of a cluster IP without session affinity or offload, as most frontends are."""
    family, backends = port.family, port.cluster
    key = frontend_key(frontend.address, port.protocol, frontend.port)
    tag = Tag(picking_cluster_ip(family, len(backends)), comment)
    table.setdefault(_SERVICES[family], {})[key] = tag
    _add_endpoints(table, family, key, _CLUSTER_SLOTS, backends)


def _add_frontend(
    routing: ServiceRouting,
    port: PortRouting,
    frontend: Frontend,
    comment: str,
    learning: str,
    table: Table,
) -> None:
    family, use = port.family, frontend.use
    key = frontend_key(frontend.address, port.protocol, frontend.port)
    node = not frontend.address
    services = _NODE_PORTS[family] if node else _SERVICES[family]
    affinity = bool(learning) and use in _SERVES
    backends: tuple[Backend, ...] = ()
    targets: list[tuple[str, str]] = []
    if use is _CLUSTER:
        # The cluster policy masquerades clients of all scopes but ClusterIP, so that replies of
        # endpoints on other nodes come back through this node.
        backends, masquerade = port.cluster, frontend.scope is not _CLUSTER_IP
        _add_endpoints(table, family, key, _CLUSTER_SLOTS, backends)
        target = _picking(_CLUSTER_SLOTS, family, len(backends), masquerade, affinity, node)
    elif use is _LOCAL:
        # The slots of CLUSTER, whose chains exist: only SPLIT needs slots for a second list.
        backends = port.local
        _add_endpoints(table, family, key, _CLUSTER_SLOTS, backends)
        target = _picking(_CLUSTER_SLOTS, family, len(backends), False, affinity, node)
    elif use is _SPLIT:
        backends = port.cluster + port.local
        target, targets = _split(port, key, affinity, table, node)
    elif use is Use.REJECT:
        kind = schema.NO_ENDPOINT_NODE_PORTS if node else nft.NO_ENDPOINT_SERVICES
        services, target = kind.of(family), ""
    elif use is Use.DROP:
        target = DROP
    else:
        assert_never(use)
    table.setdefault(services, {})[key] = Tag(target, comment)
    if routing.offload and backends and port.protocol in OFFLOADED:
        kinds = _NODE_OFFLOAD if node else _ADDRESS_OFFLOAD
        table.setdefault(kinds[0].of(family), {})[key] = b""
        for backend in port.draining + port.fallback:
            table.setdefault(kinds[1].of(family), {})[key + backend + PORT_PADDING] = b""
    if affinity:
        kinds = _NODE_AFFINITY if node else _ADDRESS_AFFINITY
        targets.append((kinds[0].of(family), chains.for_node_port(learning) if node else learning))
        returned_to = table.setdefault(kinds[1].of(family), {})
        returned_to.update((key + backend + PORT_PADDING, b"") for backend in backends)
    # `spec.loadBalancerSourceRanges` restricts load balancer addresses alone. Without a range of
    # this family, the frontend admits no client.
    if routing.source_ranges and frontend.scope is Scope.LOAD_BALANCER:
        targets.append((nft.SOURCE_RANGE_FRONTENDS.of(family), ""))
        sources = table.setdefault(nft.SOURCES.of(family), {})
        for low, high in joined_ranges(routing.source_ranges, family):
            # The frontend's fields have equal bounds: only the source is a range.
            sources[key + low + key + high] = b""
    for set_name, target in targets:
        table.setdefault(set_name, {})[key] = Tag(target, comment)


def _split(
    port: PortRouting, key: bytes, affinity: bool, table: Table, node: bool
) -> tuple[str, list[tuple[str, str]]]:
    """Add both lists of endpoints; return the frontend's verdict, and others by their sets."""
    family = port.family
    internal_kind, external_kind = _NODE_KINDS if node else _ADDRESS_KINDS
    targets: list[tuple[str, str]] = []
    # Dropped, not rejected, without a local endpoint: a load balancer must see no reply.
    external = DROP
    if port.cluster:
        _add_endpoints(table, family, key, chains.CLUSTER, port.cluster)
        internal = _picking(chains.CLUSTER, family, len(port.cluster), False, affinity, node)
        targets.append((internal_kind.of(family), internal))
    if port.local:
        _add_endpoints(table, family, key, chains.LOCAL, port.local)
        external = _picking(chains.LOCAL, family, len(port.local), False, affinity, node)
    targets.append((external_kind.of(family), external))
    return f"split{'-node' * node}{int(family)}", targets


def _add_endpoints(
    table: Table, family: Family, key: bytes, which: str, backends: tuple[Backend, ...]
) -> None:
    names = _NODE_PORT_ENDPOINTS if len(key) == NODE_PORT_KEY else _ENDPOINTS
    endpoints = table.setdefault(names[family], {})
    if len(backends) == 1:
        endpoints[key + _FEW[which][0]] = backends[0] + PORT_PADDING
        return
    # `slot_numbers` may return more numbers than there are endpoints.
    for index, backend in zip(slot_numbers(which, len(backends)), backends, strict=False):
        endpoints[key + index] = backend + PORT_PADDING


@lru_cache(1024)
def _picking(
    which: str, family: Family, count: int, masquerade: bool, affinity: bool, node: bool
) -> str:
    """Return the name of the chain that picks; positional arguments make the cache quicker."""
    size = chains.endpoint_class(count)
    return chains.picking(which, family, size, masquerade=masquerade, affinity=affinity, node=node)


@lru_cache(1024)
def picking_cluster_ip(family: Family, count: int) -> str:
    """Return the name of the chain that serves a cluster IP with so many endpoints."""
    # Two arguments, because a look-up compares each of them.
    return _picking(_CLUSTER_SLOTS, family, count, False, False, False)


def slot_numbers(which: str, count: int) -> Sequence[bytes]:
    """Return at least `count` slot numbers of CLUSTER's or LOCAL's endpoints, packed."""
    few = _FEW[which]
    if count <= len(few):
        return few
    first = _FIRST[which]
    return [_INDEX.pack(index) for index in range(first, first + count)]


def slots_of(rows: Rows, frontend: bytes, which: str, family: Family) -> tuple[Backend, ...]:
    """Read back the slots of CLUSTER's or LOCAL's endpoints of a frontend, up to the first gap.

    pyproxy leaves no gaps, so elements behind one are another program's.
    """
    found: list[Backend] = []
    size = family.bits // 8 + 2
    further = map(_INDEX.pack, count(_FIRST[which] + len(_FEW[which])))
    for index in chain(_FEW[which], further):
        value = rows.get(frontend + index)
        if not isinstance(value, bytes):
            break
        found.append(Backend(value[:size]))
    return tuple(found)
