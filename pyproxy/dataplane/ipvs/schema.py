"""The kernel objects of ipvs mode: IPVS's tables, a device, and the sets of a table of rules."""

from __future__ import annotations

from typing import Any

from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.schema import FRONTEND, Field, SetKind, by_name
from pyproxy.model.address import Backend, Mark, Protocol
from pyproxy.netlink.ipvs import Server, Virtual

TABLE = "pyproxy-ipvs"
DEVICE = "kube-ipvs0"
ALIAS = "pyproxy"
"""The device's alias. kube-proxy's device has the same name and no alias."""

VIRTUALS = "virtual services"
"""The table of virtual services: `Virtual` to `Scheduling`."""

SERVERS = "real servers"
"""The table of real servers: `ServerKey` to a weight, or to `OTHER_METHOD`."""

OTHER_METHOD = -1
"""Stands for the weight of a server that another program has changed to be not masqueraded."""

ADDRESSES_ON_DEVICE = "addresses"
"""The table of service addresses on the device."""

ServerKey = tuple[Virtual, Backend]

Rows = dict[Any, Any]
Table = dict[str, Rows]
"""All of our rows in the kernel: the three tables above, and the elements of every set."""

MARK_SPACE = Mark(0x50000000)
MARK_MASK = Mark(0xFF000000)
"""Our marks: the highest byte is `P`, and the rest identifies a virtual service."""

PODS = nft.PODS
CLUSTER_IPS = nft.CLUSTER_IPS
NO_ENDPOINT_SERVICES = nft.NO_ENDPOINT_SERVICES
HAIRPIN = nft.HAIRPIN
SOURCE_RANGE_FRONTENDS = nft.SOURCE_RANGE_FRONTENDS
SOURCES = nft.SOURCES
ADDRESSES = SetKind("addresses", "service addresses on kube-ipvs0", (Field.DADDR,))
FRONTENDS = SetKind("frontends", "virtual services of ours", FRONTEND)
CLAIMS = SetKind("claims", "virtual services being added or removed", FRONTEND)
MASQUERADED = SetKind("masqueraded", "external frontends, policy Cluster", FRONTEND)
INTERNAL_SERVICES = SetKind(
    "internal-services", "policy Local: pods and the node itself", FRONTEND, (Field.MARK,)
)
HEALTH_CHECKS = SetKind(
    "health-checks", "health-check node ports at load balancer addresses", FRONTEND
)
DROPPED = SetKind("dropped", "policy Local without an endpoint on this node", FRONTEND)

SETS = (
    PODS,
    CLUSTER_IPS,
    ADDRESSES,
    FRONTENDS,
    CLAIMS,
    MASQUERADED,
    INTERNAL_SERVICES,
    DROPPED,
    HEALTH_CHECKS,
    NO_ENDPOINT_SERVICES,
    HAIRPIN,
    SOURCE_RANGE_FRONTENDS,
    SOURCES,
)

BY_NAME = by_name(SETS)
"""Set kind and family by the name that the kernel knows."""

# A virtual service by mark has no protocol in the kernel, but only TCP drains: the mark's lowest
# two bits have it. Four entries, so that any two bits decode.
_PROTOCOLS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP, Protocol.SCTP)


def mark_of(number: int, protocol: Protocol) -> Mark:
    """Return the mark of a virtual service by its number, below 2**22, and its protocol."""
    return Mark(MARK_SPACE | number << 2 | _PROTOCOLS.index(protocol))


def mark_number(mark: int) -> int:
    """Return the number in one of our marks."""
    return (mark & ~MARK_MASK) >> 2


def is_our_mark(mark: int) -> bool:
    """Return whether a mark is one of ours."""
    return mark & MARK_MASK == MARK_SPACE


def protocol_of(virtual: Virtual) -> int:
    """Return a virtual service's protocol, also of one by a mark of ours."""
    return _PROTOCOLS[virtual.mark & 3] if virtual.mark else virtual.protocol


def weight_of(server: Server) -> int:
    """Return the value of a real server's row."""
    return server.weight if server.masqueraded else OTHER_METHOD
