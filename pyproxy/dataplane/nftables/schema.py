"""The sets and maps of table `inet pyproxy`."""

from __future__ import annotations

from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.schema import BACKEND, FRONTEND, Field, SetKind, by_name

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

SETS = (
    nft.PODS,
    nft.CLUSTER_IPS,
    nft.HAIRPIN,
    SERVICES,
    ENDPOINTS,
    INTERNAL_SERVICES,
    EXTERNAL_SERVICES,
    nft.NO_ENDPOINT_SERVICES,
    nft.SOURCE_RANGE_FRONTENDS,
    nft.SOURCES,
    AFFINITY_FRONTENDS,
    AFFINITY_ENDPOINTS,
    AFFINITY,
    AFFINITY_FRESH,
    AFFINITY_LIMITS,
    AFFINITY_REFUSED,
)

COUNTED = (SERVICES, ENDPOINTS)
"""The maps whose elements count connections with --endpoint-counters: the first packet of each
connection looks them up once, later packets never do."""

BY_NAME = by_name(SETS)
"""Set kind and family by the set's name in the kernel."""
