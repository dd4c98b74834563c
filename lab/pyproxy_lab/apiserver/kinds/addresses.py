"""Checks of addresses in API objects, in the API server's words."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterator

from pyproxy_lab.apiserver.status import FieldError, invalid_value

# Addresses of endpoints come again and again, with each change of their slice.
_parsed = functools.lru_cache(maxsize=1 << 17)(ipaddress.ip_address)
_FAMILIES = {4: "IPv4", 6: "IPv6"}


def address_family(text: str) -> str:
    """Return `IPv4` or `IPv6`, or an empty string if the text is not an address."""
    try:
        return _FAMILIES[_parsed(text).version]
    except ValueError:
        return ""


def address_errors(text: str, field: str) -> list[FieldError]:
    """Check that a text is an address."""
    if address_family(text):
        return []
    detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
    return [invalid_value(field, text, detail)]


def network_errors(text: str, field: str) -> list[FieldError]:
    """Check that a text is a CIDR; host bits and stray spaces are allowed, as in old objects."""
    try:
        if "/" in text:
            ipaddress.ip_network(text.strip(), strict=False)
            return []
    except ValueError:
        pass
    detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
    return [invalid_value(field, text, detail)]


def non_special_errors(text: str, field: str) -> Iterator[FieldError]:
    """Refuse addresses that mean something to the host that sees them."""
    if not address_family(text):
        return
    address = _parsed(text)
    if address.is_unspecified:
        yield invalid_value(field, text, f"may not be unspecified ({text})")
    if address.is_loopback:
        yield invalid_value(field, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
    if address.is_link_local:
        yield invalid_value(
            field, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
        )
    if address.is_multicast and _link_local_multicast(address):
        yield invalid_value(
            field, text, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
        )


def _link_local_multicast(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if address.version == 4:
        return address.packed[:3] == b"\xe0\x00\x00"
    return address.packed[0] == 0xFF and address.packed[1] & 0x0F == 2
