"""Rows that both modes compile in the same way: values in, values out."""

from __future__ import annotations

import string
from collections.abc import Iterable
from functools import lru_cache

from pyproxy.dataplane.nft.schema import PODS, Table
from pyproxy.model.address import Address, Family, Network, Protocol
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import COMMENT_LIMIT

SharedRow = tuple[str, bytes]
"""A set's name and a key that several Services may need."""

PORT_PADDING = b"\0\0"
"""The bytes that pad a port to the 4 bytes of a key's field.

The kernel clears a 4-byte register before it loads fewer bytes, so padding is zero in lookups."""

_SAFE = frozenset(b"./:_-" + string.ascii_letters.encode() + string.digits.encode())
_MASKED = bytes(byte if byte in _SAFE else ord("?") for byte in range(256))
# A 1-byte value is the first byte of its register on every machine, whatever its byte order.
_PROTOCOLS = {protocol: bytes((protocol, 0, 0, 0)) for protocol in Protocol}


def frontend_key(address: Address, protocol: Protocol, port: int) -> bytes:
    """Pack a frontend as a key: destination, protocol and port, each padded to 4 bytes."""
    return address + _protocol_port(protocol, port)


@lru_cache(1024)
def _protocol_port(protocol: Protocol, port: int) -> bytes:
    # A cluster has few pairs of these, and packing one takes longer than finding it.
    return _PROTOCOLS[protocol] + port.to_bytes(2, "big") + PORT_PADDING


def node_rows(pod_networks: Iterable[Network]) -> Table:
    """Return the rows of the pod networks; networks that overlap or touch are joined."""
    networks = tuple(pod_networks)
    ranges = {family: joined_ranges(networks, family) for family in Family}
    return {
        PODS.of(family): {low + high: b"" for low, high in found}
        for family, found in ranges.items()
        if found
    }


def joined_ranges(networks: Iterable[Network], family: Family) -> list[tuple[bytes, bytes]]:
    """Return the lowest and highest addresses of one family's networks, joined where they touch."""
    # The kernel rejects ranges that overlap. Addresses in network order sort as numbers.
    joined: list[tuple[bytes, bytes]] = []
    for first, last in sorted((n.address, n.last) for n in networks if n.family is family):
        if joined and int.from_bytes(first, "big") <= int.from_bytes(joined[-1][1], "big") + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined


def service_comment(name: ObjectName, port: str) -> str:
    """Return an element's comment: Service and port, shortened, unsafe characters masked."""
    return packed_comment(name, port).decode("ascii")


def packed_comment(name: ObjectName, port: str) -> bytes:
    """Return the bytes of `service_comment`."""
    # A quote or a line feed in a comment would make nft's own listing of the table unloadable.
    # Not str(name), which would be a call of its own for each port.
    text = f"{name.namespace}/{name.name}:{port}" if port else str(name)
    # A table of bytes takes a third of a regular expression's time.
    return text.encode("ascii", "replace").translate(_MASKED)[:COMMENT_LIMIT]
