"""Addresses, networks, ports and protocols in the format of the kernel.

An address is its packed bytes in network order: its length is that of its family, and set elements
contain the same bytes without a conversion.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Final, NewType, cast

import msgspec

Address = NewType("Address", bytes)
"""4 or 16 bytes, network order."""

Port = NewType("Port", int)
"""1 to 65535; 0 if a field is not set."""

Mark = NewType("Mark", int)
"""A packet mark (skb mark), 32 bits."""

Backend = NewType("Backend", bytes)
"""An endpoint's address and its port (2 bytes, network order): 6 or 18 bytes."""


class Family(enum.IntEnum):
    """An IP family, by its version number."""

    IPV4 = 4
    IPV6 = 6

    @property
    def label(self) -> str:
        """The name that the Kubernetes API and kube-proxy's metrics use."""
        return "IPv4" if self is Family.IPV4 else "IPv6"

    @property
    def bits(self) -> int:
        """The width of an address."""
        return 32 if self is Family.IPV4 else 128


FAMILIES = frozenset(Family)


class Protocol(enum.IntEnum):
    """A transport protocol, by its IP protocol number."""

    TCP = 6
    UDP = 17
    SCTP = 132


class Network(msgspec.Struct, frozen=True, order=True):
    """A CIDR: its first address and the length of its prefix."""

    address: Address
    prefix: int

    @property
    def family(self) -> Family:
        """The family of the network's addresses."""
        return family_of(self.address)

    @property
    def last(self) -> Address:
        """The highest address in the network."""
        size = len(self.address)
        host = (1 << (size * 8 - self.prefix)) - 1
        return Address((int.from_bytes(self.address, "big") | host).to_bytes(size, "big"))

    def __contains__(self, address: Address) -> bool:
        # Bytes in network order compare like the numbers that they encode.
        return len(address) == len(self.address) and self.address <= address <= self.last

    def overlaps(self, other: Network) -> bool:
        """Return whether the two networks have an address in common."""
        return other.address in self or self.address in other

    def __str__(self) -> str:
        return f"{address_text(self.address)}/{self.prefix}"


# A cast instead of Address(...), which would cost a call for each address.
_pack = cast("Callable[[int, str], Address]", inet_pton)
# Global names, because an attribute lookup on an enum is slow.
_IPV4: Final = Family.IPV4
_IPV6: Final = Family.IPV6


def parse_address(text: str) -> Address:
    """Parse an address of the API.

    IPv4 parts with leading zeros are decimal, as in Kubernetes for objects from before its
    validation became strict. Raises ValueError.
    """
    try:
        return _pack(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError, UnicodeEncodeError):
        # inet_pton rejects leading zeros, which Go's ParseIPSloppy of Kubernetes reads as decimal.
        parts = text.split(".")
        if len(parts) == 4 and all(p.isascii() and p.isdigit() and int(p) < 256 for p in parts):
            return Address(bytes(map(int, parts)))
    raise ValueError(f"{text!r} is not an IP address")


def parse_network(text: str) -> Network:
    """Parse a CIDR; spaces around it and host bits are allowed. Raises ValueError."""
    base, slash, length = text.strip().partition("/")
    if not (slash and length.isascii() and length.isdigit()):
        raise ValueError(f"{text!r} is not a CIDR")
    address = parse_address(base)
    prefix, width = int(length), len(address) * 8
    if prefix > width:
        raise ValueError(f"{text!r} is not a CIDR: its prefix is longer than {width}")
    mask = ((1 << prefix) - 1) << (width - prefix)
    first = int.from_bytes(address, "big") & mask
    return Network(Address(first.to_bytes(width // 8, "big")), prefix)


_MAPPED: Final = bytes(10) + b"\xff\xff"


def is_mapped(address: Address) -> bool:
    """Return whether an IPv6 address stands for an IPv4 address (RFC 4291, 2.5.5.2)."""
    return len(address) == 16 and address.startswith(_MAPPED)


def address_text(address: Address) -> str:
    """Format an address as text."""
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


def family_of(address: Address) -> Family:
    """Return the family of an address, by its length."""
    return _IPV4 if len(address) == 4 else _IPV6


def backend(address: Address, port: Port) -> Backend:
    """Return an endpoint's address and port as one value."""
    return Backend(address + port.to_bytes(2, "big"))


def backend_text(value: Backend) -> str:
    """Format a backend as `10.244.1.5:8080` or `[fd10::5]:8080`."""
    text, port = address_text(Address(value[:-2])), int.from_bytes(value[-2:], "big")
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
