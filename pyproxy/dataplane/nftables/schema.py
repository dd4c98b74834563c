"""The sets and maps of table `inet pyproxy`."""

from __future__ import annotations

from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.schema import BACKEND, FRONTEND, Field, SetKind, by_name
from pyproxy.model.address import Family

TABLE = "pyproxy"

SERVICES = SetKind("services", "chain that serves a frontend", FRONTEND, (Field.VERDICT,))
# Data and not verdicts: a changed verdict makes the kernel walk all verdict maps, and a changed
# endpoint must not.
ENDPOINTS = SetKind(
    "endpoints", "endpoints of a frontend, numbered", (*FRONTEND, Field.INDEX), BACKEND
)
INTERNAL_SERVICES = SetKind(
    "internal-services", "policy Local: from pods and this node", FRONTEND, (Field.VERDICT,)
)
EXTERNAL_SERVICES = SetKind(
    "external-services", "policy Local: from elsewhere", FRONTEND, (Field.VERDICT,)
)
NODE_PORT = (Field.PROTOCOL, Field.PORT)
NODE_PORT_ADDRESSES = SetKind("node-port-addresses", "addresses of node ports", (Field.DADDR,))
NODE_PORTS = SetKind("node-ports", "chain that serves a node port", NODE_PORT, (Field.VERDICT,))
INTERNAL_NODE_PORTS = SetKind(
    "internal-node-ports", "policy Local: from pods and this node", NODE_PORT, (Field.VERDICT,)
)
EXTERNAL_NODE_PORTS = SetKind(
    "external-node-ports", "policy Local: from elsewhere", NODE_PORT, (Field.VERDICT,)
)
NO_ENDPOINT_NODE_PORTS = SetKind(
    "no-endpoint-node-ports", "node ports without an endpoint", NODE_PORT
)
NODE_PORT_ENDPOINTS = SetKind(
    "node-port-endpoints", "endpoints of a node port, numbered", (*NODE_PORT, Field.INDEX), BACKEND
)
NODE_PORT_AFFINITY = SetKind(
    "node-port-affinity", "node ports with session affinity", NODE_PORT, (Field.VERDICT,)
)
NODE_PORT_AFFINITY_ENDPOINTS = SetKind(
    "node-port-affinity-endpoints",
    "endpoints that clients may come back to",
    (*NODE_PORT, *BACKEND),
)
NODE_PORT_AFFINITY_LIMITS = SetKind(
    "node-port-affinity-limits",
    "rate of learning of a node port and timeout",
    (*NODE_PORT, Field.MARK),
    learned=1 << 16,
)
AFFINITY_FRONTENDS = SetKind(
    "affinity-frontends", "frontends with session affinity", FRONTEND, (Field.VERDICT,)
)
AFFINITY_ENDPOINTS = SetKind(
    "affinity-endpoints", "endpoints that clients may come back to", (*FRONTEND, *BACKEND)
)
# Bounded, because any client can add elements, and each frontend has a share (`chains.share_of`).
# When it is full, `update` fails and the packet passes on: new clients have no affinity.
AFFINITY = SetKind(
    "affinity",
    "endpoint that a client had",
    (Field.SADDR, *FRONTEND),
    BACKEND,
    learned=1 << 18,
)

AFFINITY_FRESH = SetKind(
    "affinity-fresh",
    "clients whose timeout need not be restarted yet",
    (Field.SADDR, *FRONTEND),
    learned=1 << 17,
)
AFFINITY_LIMITS = SetKind(
    "affinity-limits",
    "rate of learning of a frontend and timeout",
    (*FRONTEND, Field.MARK),
    learned=1 << 16,
)
AFFINITY_REFUSED = SetKind(
    "affinity-refused",
    "frontends whose new clients were not learned of late",
    FRONTEND,
    learned=1 << 14,
)

OFFLOAD_SERVICES = SetKind("offload-services", "frontends of the fast path", FRONTEND)
OFFLOAD_NODE_PORTS = SetKind("offload-node-ports", "node ports of the fast path", NODE_PORT)
# By frontend, so that a slice that names another Service's endpoints concerns its own alone.
DRAINING_ENDPOINTS = SetKind(
    "draining-endpoints", "endpoints that terminate", (*FRONTEND, *BACKEND)
)
NODE_PORT_DRAINING_ENDPOINTS = SetKind(
    "node-port-draining-endpoints", "endpoints that terminate", (*NODE_PORT, *BACKEND)
)

OFFLOAD = (
    OFFLOAD_SERVICES,
    OFFLOAD_NODE_PORTS,
    DRAINING_ENDPOINTS,
    NODE_PORT_DRAINING_ENDPOINTS,
)
"""The sets that exist with --flow-offload only."""

SETS = (
    nft.PODS,
    nft.CLUSTER_IPS,
    nft.HAIRPIN,
    SERVICES,
    ENDPOINTS,
    INTERNAL_SERVICES,
    EXTERNAL_SERVICES,
    nft.NO_ENDPOINT_SERVICES,
    NODE_PORT_ADDRESSES,
    NODE_PORTS,
    INTERNAL_NODE_PORTS,
    EXTERNAL_NODE_PORTS,
    NO_ENDPOINT_NODE_PORTS,
    NODE_PORT_ENDPOINTS,
    NODE_PORT_AFFINITY,
    NODE_PORT_AFFINITY_ENDPOINTS,
    NODE_PORT_AFFINITY_LIMITS,
    nft.SOURCE_RANGE_FRONTENDS,
    nft.SOURCES,
    AFFINITY_FRONTENDS,
    AFFINITY_ENDPOINTS,
    AFFINITY,
    AFFINITY_FRESH,
    AFFINITY_LIMITS,
    AFFINITY_REFUSED,
    *OFFLOAD,
)

COUNTED = (SERVICES, ENDPOINTS, NODE_PORTS, NODE_PORT_ENDPOINTS)
"""The maps whose elements count connections with --endpoint-counters: the first packet of each
connection looks them up once, later packets never do."""

NODE_PORT_KEY = sum(field.size(Family.IPV4) for field in NODE_PORT)
"""Bytes of a node port's key: `frontend_key` of an empty address."""

INDEX_SIZE = Field.INDEX.size(Family.IPV4)
"""Bytes of a slot's number, at the end of an endpoint's key."""


def owner_key(key: bytes, family: Family) -> bytes:
    """Return a key that tells frontends of both families apart, given `frontend_key`."""
    return bytes((family,)) + key if len(key) == NODE_PORT_KEY else key


def node_port_owner(frontend: bytes, family: Family) -> bytes:
    """Return `owner_key` of the node port with a frontend's protocol and port."""
    return owner_key(frontend[-NODE_PORT_KEY:], family)


BY_NAME = by_name(SETS)
"""Set kind and family by the set's name in the kernel."""
