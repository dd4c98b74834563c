"""Sets and maps of a table: their fields, their declarations, and those that both modes have."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from functools import cache

import msgspec

from pyproxy.model.address import Family
from pyproxy.netlink.elements import Shape, Value

Rows = dict[bytes, Value]
Table = dict[str, Rows]
"""The elements of each set that pyproxy fills, by the set's name."""


class Field(enum.Enum):
    """A field of a key or of data, as an nft expression; {ip} stands for ip or ip6."""

    SADDR = "{ip} saddr"
    DADDR = "{ip} daddr"
    # Not `ip6 nexthdr`: IPv6 extension headers may precede the transport header.
    PROTOCOL = "meta l4proto"
    # The port is at the same offset in TCP, UDP and SCTP.
    PORT = "th dport"
    # A declaration uses the type alone, a 32-bit integer: slot numbers may exceed 65535.
    INDEX = "numgen random mod 65536"
    VERDICT = "verdict"
    MARK = "meta mark"

    def text(self, family: Family) -> str:
        """Return the expression for one family."""
        return self.value.format(ip="ip" if family is Family.IPV4 else "ip6")

    def size(self, family: Family) -> int:
        """Return the bytes that the field takes in a key."""
        # nf_tables pads each field of a concatenation to 4 bytes.
        return family.bits // 8 if self in (Field.SADDR, Field.DADDR) else 4


FRONTEND = (Field.DADDR, Field.PROTOCOL, Field.PORT)
BACKEND = (Field.DADDR, Field.PORT)


@cache
def _names(kind: str) -> Mapping[Family, str]:
    # Remembered rows share these strings: one object per name, not one per row.
    return {family: f"{kind}{family:d}" for family in Family}


class SetKind(msgspec.Struct, frozen=True):
    """One set or map that exists once per family, under `name` followed by 4 or 6.

    `about` is its comment in the kernel. `learned` is the element limit of a map that packets
    fill; 0 for the sets that pyproxy fills.
    """

    name: str
    about: str
    key: tuple[Field, ...]
    data: tuple[Field, ...] = ()
    shape: Shape = Shape.EXACT
    learned: int = 0

    def of(self, family: Family) -> str:
        """Return the name of the set of one family."""
        return _names(self.name)[family]

    def key_text(self, family: Family) -> str:
        """Return the key as the expression that looks it up."""
        return " . ".join(field.text(family) for field in self.key)

    def data_text(self, family: Family) -> str:
        """Return the data's type; empty for a set."""
        return " . ".join(field.text(family) for field in self.data)

    def key_size(self, family: Family) -> int:
        """Return the bytes of a key; a range has two keys."""
        size = sum(field.size(family) for field in self.key)
        return size if self.shape is Shape.EXACT else 2 * size

    def lookup(self, family: Family, *, negate: bool = False) -> str:
        """Return the match expression of a rule that looks the packet up here.

        A lookup in concatenated ranges matches packets that conntrack follows, and no others.
        """
        verdicts = "vmap " if self.data == (Field.VERDICT,) else ""
        key = self.key_text(family)
        if self.shape is Shape.CONCATENATED_RANGE:
            # nft 1.0 converts the byte order of a protocol from `meta` before it looks for ranges.
            # Linux 7 refuses two-byte conversions of one byte. Conntrack's protocol needs none.
            key = key.replace(Field.PROTOCOL.value, "ct protocol")
        return f"{key} {'!= ' * negate}{verdicts}@{self.of(family)}"

    def declaration(self, family: Family, *, counts: bool = False) -> str:
        """Return the line that declares the set in a table; with `counts`, elements count packets.

        Sets are declared by `typeof`: nft 1.0.6 crashes when it lists untyped keys.
        """
        data = self.data_text(family)
        word, typeof = ("map", f"{self.key_text(family)} : {data}") if data else ("set", "")
        flags = "" if self.shape is Shape.EXACT else " flags interval;"
        if self.learned:
            # A rule's `update` needs the flag dynamic, and its timeout the flag timeout.
            flags = f" size {self.learned}; flags dynamic,timeout;"
        if counts:
            # Each element gets a counter of its own, which the lookup that finds it increments.
            flags += " counter;"
        return (
            f"\t{word} {self.of(family)} {{ typeof {typeof or self.key_text(family)};{flags} "
            f'comment "{self.about}"; }}'
        )


Kinds = Mapping[str, tuple[SetKind, Family]]
"""Set kind and family by the set's name in the kernel."""


def by_name(kinds: Iterable[SetKind]) -> Kinds:
    """Return the kinds by the names of their sets, one for each family."""
    return {kind.of(family): (kind, family) for kind in kinds for family in Family}


PODS = SetKind("pods", "pod networks", (Field.SADDR,), shape=Shape.RANGE)
CLUSTER_IPS = SetKind("cluster-ips", "cluster IPs, with any port", (Field.DADDR,))
HAIRPIN = SetKind("hairpin", "endpoints that may reach themselves", (Field.SADDR, Field.DADDR))
NO_ENDPOINT_SERVICES = SetKind("no-endpoint-services", "frontends without an endpoint", FRONTEND)
SOURCE_RANGE_FRONTENDS = SetKind("source-range-frontends", "frontends with source ranges", FRONTEND)
# The kernel has sets with ranges in a concatenation since Linux 5.6 (nft_set_pipapo).
SOURCES = SetKind(
    "sources",
    "sources that such a frontend admits",
    (*FRONTEND, Field.SADDR),
    shape=Shape.CONCATENATED_RANGE,
)
