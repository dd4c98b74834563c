"""The HTTP proxy on the way to a server, as Go's programs choose it from the environment.

Facts: golang.org/x/net/http/httpproxy. Upper-case variables precede lower-case ones. HTTPS_PROXY is
for https URLs and HTTP_PROXY for http URLs; ALL_PROXY has no effect. localhost and loopback
addresses never go through a proxy. NO_PROXY is a list of addresses, CIDRs, and domains, each of the
first and the last with a port if wanted; `example.com` includes its subdomains, and `.example.com`
is only these.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def proxy_for(url: str, environ: Mapping[str, str]) -> str:
    """Return the URL of the proxy for a server's URL; empty for none."""
    parts = urlsplit(url)
    proxy = _variable(environ, f"{parts.scheme.upper()}_PROXY")
    host = (parts.hostname or "").strip()
    if not proxy or not host or host == "localhost":
        return ""
    address = _address(host)
    if address is not None and address.is_loopback:
        return ""
    port = str(parts.port or _DEFAULT_PORTS.get(parts.scheme, ""))
    entries = _variable(environ, "NO_PROXY").lower().split(",")
    if any(_matches(entry.strip(), host, address, port) for entry in entries):
        return ""
    # As in Go, a proxy without a scheme is an HTTP proxy.
    return proxy if "://" in proxy else f"http://{proxy}"


def _variable(environ: Mapping[str, str], name: str) -> str:
    # Programs that run as CGI scripts get the header Proxy of a request in HTTP_PROXY.
    if name == "HTTP_PROXY" and environ.get("REQUEST_METHOD"):
        return ""
    return environ.get(name) or environ.get(name.lower()) or ""


def _matches(entry: str, host: str, address: _IP | None, port: str) -> bool:
    """Return whether an entry of NO_PROXY excludes a host, or its address if it is one."""
    if entry == "*":
        return True
    network = _network(entry)
    if network is not None:
        return address is not None and address in network
    name, its_port = _split_port(entry)
    return bool(name) and its_port in ("", port) and _matches_host(name, host, address)


def _matches_host(name: str, host: str, address: _IP | None) -> bool:
    own = _address(name)
    if own is not None or address is not None:
        return own == address
    suffix = name[1:] if name.startswith("*.") else name
    if suffix.startswith("."):
        return host.endswith(suffix)
    return host == suffix or host.endswith(f".{suffix}")


def _split_port(entry: str) -> tuple[str, str]:
    """Split as net.SplitHostPort does; brackets without a port stay a part of the name."""
    if entry.startswith("["):
        name, colon, port = entry[1:].partition("]:")
        return (name, port) if colon else (entry, "")
    if entry.count(":") == 1:
        name, _, port = entry.partition(":")
        return name, port
    return entry, ""


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    # ipaddress reads a netmask and a wildcard mask too, which Go does not.
    if not text.rpartition("/")[2].isdecimal() or "/" not in text:
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _address(text: str) -> _IP | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    # Go compares an IPv4-mapped address as the IPv4 address.
    return (found.version == 6 and found.ipv4_mapped) or found
