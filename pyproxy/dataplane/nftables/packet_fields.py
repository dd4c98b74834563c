"""Expressions that load a packet's addresses and its connection's frontend, in either family."""

from __future__ import annotations

from pyproxy.model.address import Family
from pyproxy.netlink import rules

# NFPROTO_IPV4 and NFPROTO_IPV6, as meta nfproto and nat have them.
NFPROTO = {Family.IPV4: 2, Family.IPV6: 10}
# Offsets in the IPv4 and IPv6 headers.
SADDR_OFFSET = {Family.IPV4: 12, Family.IPV6: 8}
DADDR_OFFSET = {Family.IPV4: 16, Family.IPV6: 24}
ORIGINAL_DADDR = {Family.IPV4: rules.CT_DST_IP, Family.IPV6: rules.CT_DST_IP6}


def original_frontend(family: Family, register: int) -> list[bytes]:
    """Load the frontend that the client asked for, from conntrack, as a key of frontends."""
    return [
        rules.load_original(ORIGINAL_DADDR[family], register),
        rules.load_meta(rules.META_L4PROTO, register + words(family)),
        rules.load_original(rules.CT_PROTO_DST, register + words(family) + 1),
    ]


def is_of(family: Family) -> list[bytes]:
    """Match packets of a family; uses the first register."""
    # A table of family inet has packets of both protocols.
    return [
        rules.load_meta(rules.META_NFPROTO, rules.REGISTER),
        rules.equal(rules.REGISTER, bytes((NFPROTO[family],))),
    ]


def load_address(family: Family, offsets: dict[Family, int], register: int) -> bytes:
    """Load an address of the packet's header; `offsets` are SADDR_OFFSET or DADDR_OFFSET."""
    size = words(family) * 4
    return rules.load_payload(rules.NETWORK_HEADER, offsets[family], size, register)


def words(family: Family) -> int:
    """Return the number of registers that an address takes."""
    return family.bits // 32
