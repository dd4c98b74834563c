"""Addresses that no Service and no endpoint can have.

The API server's validation rejects some of them today (ValidateNonSpecialIP: unspecified, loopback,
link-local). Objects from before it, EndpointSlices by hand, `status.loadBalancer` and manifests may
have any. Most are delivered to the node itself or to no host at all. A Service on a loopback
address would take over connections of the node to itself, and an endpoint there would be the node.

Left out on purpose, because clusters use them: 240.0.0.0/4 except the broadcast address (pods on
GKE and EKS), site-local fec0::/10, and 64:ff9b::/96 (NAT64).
"""

from __future__ import annotations

from pyproxy.model.address import Address, Family, Network, parse_network

TABLE: tuple[tuple[str, str, str], ...] = (
    ("0.0.0.0/32", "the unspecified address", "RFC 1122, 3.2.1.3"),
    ("0.0.0.0/8", "an address of 0.0.0.0/8 (this network)", "RFC 1122, 3.2.1.3; RFC 6890"),
    ("127.0.0.0/8", "a loopback address", "RFC 1122, 3.2.1.3; RFC 6890"),
    ("169.254.0.0/16", "a link-local address", "RFC 3927; RFC 6890"),
    ("224.0.0.0/4", "a multicast address", "RFC 5771"),
    ("255.255.255.255/32", "the broadcast address", "RFC 919; RFC 8190"),
    ("::/128", "the unspecified address", "RFC 4291, 2.5.2"),
    ("::1/128", "a loopback address", "RFC 4291, 2.5.3"),
    ("::/96", "an IPv4-compatible address", "RFC 4291, 2.5.5.1"),
    ("::ffff:0:0/96", "an IPv4-mapped address", "RFC 4291, 2.5.5.2"),
    ("fe80::/10", "a link-local address", "RFC 4291, 2.5.6"),
    ("ff00::/8", "a multicast address", "RFC 4291, 2.7"),
)
"""Networks, the noun for one of their addresses, and the source; the first that contains counts.

`source.fields.address` reads an IPv4-mapped address of the API as IPv4, as Go does.
"""

_Ranges = tuple[tuple[Network, str], ...]


def _by_first_byte() -> dict[int, _Ranges]:
    found: dict[int, _Ranges] = {}
    for text, noun, _ in TABLE:
        network = parse_network(text)
        for first in range(network.address[0], network.last[0] + 1):
            found[first] = (*found.get(first, ()), (network, noun))
    return found


_BY_FIRST_BYTE = _by_first_byte()

UNUSUAL_FIRST_BYTES = {
    family: frozenset(
        first
        for first, ranges in _BY_FIRST_BYTE.items()
        if any(network.family is family for network, _ in ranges)
    )
    for family in Family
}
"""The first bytes of each family's addresses that `special` may name."""


def special(address: Address) -> str:
    """Return why no Service and no endpoint can have this address; empty if they can."""
    # Nearly all addresses return here, after one lookup. A network contains its own family only.
    for network, noun in _BY_FIRST_BYTE.get(address[0], ()):
        if address in network:
            return noun
    return ""
