"""The sets and maps of the table, once for its text, its codec and its listing."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from functools import cache

import msgspec

from pyproxy.model.address import Family
from pyproxy.netlink.elements import Shape, Value

TABLE = "pyproxy"

Rows = dict[bytes, Value]
Table = dict[str, Rows]
"""The elements of every set that we fill, by the set's name."""


class Field(enum.Enum):
    """A field of a key or of data, by nft's expression for it; {ip} stands for ip or ip6."""

    SADDR = "{ip} saddr"
    DADDR = "{ip} daddr"
    PROTOCOL = "meta l4proto"
    PORT = "th dport"
    INDEX = "numgen random mod 65536"
    VERDICT = "verdict"
    MARK = "meta mark"

    def text(self, family: Family) -> str:
        """Write the field as a rule or a set's declaration does."""
        return self.value.format(ip="ip" if family is Family.IPV4 else "ip6")

    def size(self, family: Family) -> int:
        """Give the bytes that the field takes in a key: all are padded to 4."""
        return family.bits // 8 if self in (Field.SADDR, Field.DADDR) else 4


FRONTEND = (Field.DADDR, Field.PROTOCOL, Field.PORT)
BACKEND = (Field.DADDR, Field.PORT)


@cache
def _names(kind: str) -> Mapping[Family, str]:
    # The rows that are remembered share them, however many they are.
    return {family: f"{kind}{family:d}" for family in Family}


class SetKind(msgspec.Struct, frozen=True):
    """One set or map that exists for each family, under `name` followed by 4 or 6.

    `learned` is how many elements a map that packets fill may have; 0 for all that we fill.
    """

    name: str
    about: str
    key: tuple[Field, ...]
    data: tuple[Field, ...] = ()
    shape: Shape = Shape.EXACT
    learned: int = 0

    def of(self, family: Family) -> str:
        """Name the set of one family."""
        return _names(self.name)[family]

    def key_text(self, family: Family) -> str:
        """Write the key as the expression that looks it up."""
        return " . ".join(field.text(family) for field in self.key)

    def data_text(self, family: Family) -> str:
        """Write the data's type, empty for a set."""
        return " . ".join(field.text(family) for field in self.data)

    def key_size(self, family: Family) -> int:
        """Give the bytes of a key; a range has two."""
        size = sum(field.size(family) for field in self.key)
        return size if self.shape is Shape.EXACT else 2 * size


PODS = SetKind("pods", "who is a pod", (Field.SADDR,), shape=Shape.RANGE)
CLUSTER_IPS = SetKind("cluster-ips", "addresses that are ours alone", (Field.DADDR,))
HAIRPIN = SetKind("hairpin", "endpoints that may reach themselves", (Field.SADDR, Field.DADDR))
SERVICES = SetKind("services", "where a frontend's connections go", FRONTEND, (Field.VERDICT,))
ENDPOINTS = SetKind(
    "endpoints", "a frontend's endpoints, numbered", (*FRONTEND, Field.INDEX), BACKEND
)
INTERNAL_SERVICES = SetKind(
    "internal-services", "policy Local: pods and the node itself", FRONTEND, (Field.VERDICT,)
)
EXTERNAL_SERVICES = SetKind(
    "external-services", "policy Local: everybody else", FRONTEND, (Field.VERDICT,)
)
NO_ENDPOINT_SERVICES = SetKind("no-endpoint-services", "frontends without an endpoint", FRONTEND)
SOURCE_RANGE_FRONTENDS = SetKind("source-range-frontends", "frontends with source ranges", FRONTEND)
SOURCES = SetKind(
    "sources",
    "whom guarded frontends let in",
    (*FRONTEND, Field.SADDR),
    shape=Shape.CONCATENATED_RANGE,
)
AFFINITY_FRONTENDS = SetKind(
    "affinity-frontends", "frontends with session affinity", FRONTEND, (Field.VERDICT,)
)
AFFINITY_ENDPOINTS = SetKind(
    "affinity-endpoints", "endpoints that clients may come back to", (*FRONTEND, *BACKEND)
)
AFFINITY = SetKind(
    "affinity",
    "which endpoint a client had",
    (Field.SADDR, *FRONTEND),
    BACKEND,
    learned=1 << 18,
)

SETS = (
    PODS,
    CLUSTER_IPS,
    HAIRPIN,
    SERVICES,
    ENDPOINTS,
    INTERNAL_SERVICES,
    EXTERNAL_SERVICES,
    NO_ENDPOINT_SERVICES,
    SOURCE_RANGE_FRONTENDS,
    SOURCES,
    AFFINITY_FRONTENDS,
    AFFINITY_ENDPOINTS,
    AFFINITY,
)

COUNTED = (SERVICES, ENDPOINTS)
"""The maps whose elements count connections where that is asked for: each new one looks them up
once, and no packet after it."""

Kinds = Mapping[str, tuple[SetKind, Family]]

BY_NAME: Kinds = {kind.of(family): (kind, family) for kind in SETS for family in Family}
"""Set kind and family by the name that the kernel knows."""
