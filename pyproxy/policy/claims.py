"""The claims of a Service to frontends, and the precedence between claims of several Services."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final, TypeVar

import msgspec

from pyproxy.model.address import Address, Backend, Family, Protocol, family_of
from pyproxy.model.objects import ObjectName, Service
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting


class Precedence(enum.IntEnum):
    """The kinds of claims, the strongest first.

    The API server allocates the first three, and a controller writes the fourth. The fifth are the
    endpoints of the API server. The last are the free choice of anyone who may write a Service.
    """

    CLUSTER_IP = 0
    HEALTH_CHECK = 1
    NODE_PORT = 2
    LOAD_BALANCER = 3
    API_SERVER = 4
    EXTERNAL_IP = 5


B = TypeVar("B", bound=bytes)

# Global names and plain integers, because look-ups on an enum and the hash of a member are slow
# Python code, which would dominate the cost of the first sync.
_CLUSTER_SCOPE: Final = Scope.CLUSTER_IP
_NODE_PORT_SCOPE: Final = Scope.NODE_PORT
_LOAD_BALANCER_SCOPE: Final = Scope.LOAD_BALANCER
_CLUSTER_IP: Final = int(Precedence.CLUSTER_IP)
_HEALTH_CHECK: Final = int(Precedence.HEALTH_CHECK)
_NODE_PORT: Final = int(Precedence.NODE_PORT)
_LOAD_BALANCER: Final = int(Precedence.LOAD_BALANCER)
_API_SERVER: Final = int(Precedence.API_SERVER)
_EXTERNAL_IP: Final = int(Precedence.EXTERNAL_IP)

_NODE_PORT_KEY_SIZE = 4
"""Bytes of a key before its address: IP version, protocol and port."""

# One byte each for the IP version (4, 6) and the protocol number (6, 17, 132).
_KEY_PREFIXES = {pair: bytes(pair) for pair in itertools.product(Family, Protocol)}


class Claimant(msgspec.Struct, frozen=True, order=True, gc=False):
    """A Service in the order of precedence; times are RFC 3339 in UTC, so they sort as text."""

    precedence: int
    created: str
    name: ObjectName


class Claims(msgspec.Struct, frozen=True, gc=False):
    """The claims of one Service.

    `keys` are those of its frontends by claimant, each key once, in the strongest claim. A
    node port and a health-check node port have one key for all addresses of the node
    (`node_port_key`). The `cluster_ips` belong to it with all ports. `addresses` are those of its
    external IPs and load balancers. `unique` is false if two frontends have one key. `on_node` are
    the keys that a node port may precede: those on addresses of the node.
    """

    name: ObjectName
    keys: tuple[tuple[Claimant, tuple[bytes, ...]], ...]
    cluster_ips: tuple[Address, ...]
    addresses: tuple[Address, ...]
    unique: bool
    on_node: frozenset[bytes] = frozenset()

    @property
    def holder(self) -> Claimant:
        """The claimant of the cluster IPs; only if there are some."""
        return self.keys[0][0]

    def without(self, other: Claims) -> Claims:
        """Return these claims without those that another version of the Service has too."""
        kept = {claimant: frozenset(keys) for claimant, keys in other.keys}
        cluster_ips = self.cluster_ips
        # A Service that was deleted and made again in one sync has another place in every queue.
        if cluster_ips and other.cluster_ips and self.holder == other.holder:
            cluster_ips = _not_in(cluster_ips, other.cluster_ips)
        return Claims(
            self.name,
            tuple(
                (claimant, _not_in(keys, kept.get(claimant, ()))) for claimant, keys in self.keys
            ),
            cluster_ips,
            _not_in(self.addresses, frozenset(other.addresses)),
            self.unique,
            self.on_node - other.on_node,
        )


class ClusterClaim(msgspec.Struct, frozen=True, gc=False):
    """The claims of a Service whose only frontend is a cluster IP, as those of most Services.

    A first sync makes tens of thousands, so these are fewer objects than `Claims`.
    """

    claimant: Claimant
    key: bytes
    address: Address

    def claims(self) -> Claims:
        """Return the same claims in the form of those of all other Services."""
        claimant = self.claimant
        return Claims(claimant.name, ((claimant, (self.key,)),), (self.address,), (), unique=True)


def _not_in(items: Iterable[B], others: Collection[B]) -> tuple[B, ...]:
    return tuple(each for each in items if each not in others)


def precedence_of(frontend: Frontend) -> int:
    """Return the kind of claim of a Service that has this frontend, a value of Precedence."""
    scope = frontend.scope
    if scope is _CLUSTER_SCOPE:
        return _CLUSTER_IP
    if scope is _NODE_PORT_SCOPE:
        return _NODE_PORT
    return _LOAD_BALANCER if scope is _LOAD_BALANCER_SCOPE else _EXTERNAL_IP


def key_of(port: PortRouting, frontend: Frontend) -> bytes:
    """Return the key of a frontend, which two Services may claim."""
    return _key_prefix(port) + frontend.port.to_bytes(2, "big") + frontend.address


def node_port_key(key: bytes) -> bytes:
    """Return the key of the node port that an address's frontend may be a part of."""
    return key[:_NODE_PORT_KEY_SIZE]


def claim_key_of(port: PortRouting, frontend: Frontend) -> bytes:
    """Return the key under which a Service claims a frontend."""
    key = key_of(port, frontend)
    return node_port_key(key) if frontend.scope is _NODE_PORT_SCOPE else key


def claims_of(
    service: Service,
    routing: ServiceRouting,
    node_addresses: Collection[Address] = (),
    api_servers: Collection[Backend] = (),
) -> Claims:
    """Return the claims of a Service whose frontends are those of a routing.

    The node listens for the Service's health-check node port on `node_addresses`. `api_servers` are
    the endpoints of the API server if this is its Service. Look-ups in `node_addresses` must be
    fast.
    """
    if not (service.health_check_port or api_servers):
        only_cluster = _cluster_claims(service, routing)
        if only_cluster is not None:
            return only_cluster
    on_node: set[bytes] = set()
    cluster_ips: dict[Address, None] = {}
    groups: dict[int, list[bytes]] = {}
    addresses: dict[Address, None] = {}
    for port in routing.ports:
        prefix = _key_prefix(port)
        node_port = b""
        for each in port.frontends:
            address = each.address
            key = prefix + each.port.to_bytes(2, "big") + address
            kind = precedence_of(each)
            if kind is _CLUSTER_IP:
                cluster_ips[address] = None
            elif kind is _NODE_PORT:
                key = node_port_key(key)
                # A divided node port has one frontend for each address.
                if key == node_port:
                    continue
                node_port = key
            else:
                addresses[address] = None
                if address in node_addresses:
                    on_node.add(key)
            groups.setdefault(kind, []).append(key)
    if service.health_check_port:
        families = {family_of(address) for address in node_addresses}
        groups[_HEALTH_CHECK] = [
            _health_check_key(service, family) for family in service.families if family in families
        ]
    if api_servers:
        groups[_API_SERVER] = [_api_server_key(backend) for backend in api_servers]
    name, created = service.name, service.created
    ordered, unique = _each_once(groups)
    keys = tuple((Claimant(kind, created, name), tuple(keys)) for kind, keys in ordered if keys)
    return Claims(name, keys, tuple(cluster_ips), tuple(addresses), unique, frozenset(on_node))


def cluster_claim(service: Service, port: PortRouting) -> ClusterClaim:
    """Return the claims of a Service whose only frontend is that of a port, a cluster IP."""
    (only,) = port.frontends
    return ClusterClaim(
        Claimant(_CLUSTER_IP, service.created, service.name),
        _port_key(port.family, port.protocol, only.port) + only.address,
        only.address,
    )


def _cluster_claims(service: Service, routing: ServiceRouting) -> Claims | None:
    """Return the claims of a Service that has cluster IPs only, as most have.

    Return None if it has another frontend, or one key twice.
    """
    name = service.name
    keys: list[bytes] = []
    addresses: list[Address] = []
    for port in routing.ports:
        for each in port.frontends:
            if each.scope is not _CLUSTER_SCOPE:
                return None
            address = each.address
            keys.append(_port_key(port.family, port.protocol, each.port) + address)
            addresses.append(address)
    if len(set(keys)) < len(keys):
        return None
    groups = ((Claimant(_CLUSTER_IP, service.created, name), tuple(keys)),) if keys else ()
    return Claims(name, groups, tuple(dict.fromkeys(addresses)), (), unique=True)


def _each_once(groups: dict[int, list[bytes]]) -> tuple[list[tuple[int, list[bytes]]], bool]:
    """Return the groups, strongest first, with each key in the strongest one, and if none repeats.

    A Service may have one node address and port twice: as a node port, and as an external IP.
    """
    in_order = sorted(groups.items())
    keys = [key for _, group in in_order for key in group]
    if len(set(keys)) == len(keys):
        return in_order, True
    seen: set[bytes] = set()
    found: list[tuple[int, list[bytes]]] = []
    for kind, group in in_order:
        new = [key for key in dict.fromkeys(group) if key not in seen]
        seen.update(new)
        found.append((kind, new))
    return found, False


def _key_prefix(port: PortRouting) -> bytes:
    # An unexpanded node port has no address whose length would show the family.
    return _KEY_PREFIXES[port.family, port.protocol]


@lru_cache(1024)
def _port_key(family: Family, protocol: Protocol, port: int) -> bytes:
    # A cluster has few of these, and packing one takes longer than finding it.
    return _KEY_PREFIXES[family, protocol] + port.to_bytes(2, "big")


def _health_check_key(service: Service, family: Family) -> bytes:
    prefix = _KEY_PREFIXES[family, Protocol.TCP]
    return prefix + service.health_check_port.to_bytes(2, "big")


def _api_server_key(backend: Backend) -> bytes:
    address = Address(backend[:-2])
    return _KEY_PREFIXES[family_of(address), Protocol.TCP] + backend[-2:] + address
