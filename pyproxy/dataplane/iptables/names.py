"""What the chains are called: kube-proxy's names where it has such a chain.

Facts: pkg/proxy/iptables/proxier.go of kube-proxy v1.36. A Service port's chains end in the same
16 characters, a digest of its name and protocol; an endpoint's chain digests its address as well.
"""

from __future__ import annotations

import base64
import hashlib

from pyproxy.model.address import (
    Address,
    Backend,
    Family,
    Network,
    Protocol,
    address_text,
    backend_text,
)
from pyproxy.model.objects import ObjectName

PREFIX = "KUBE-"
"""What the names of all chains begin with that are ours or kube-proxy's."""

SERVICES = "KUBE-SERVICES"
EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
FORWARD = "KUBE-FORWARD"
POSTROUTING = "KUBE-POSTROUTING"
MARK_MASQUERADE = "KUBE-MARK-MASQ"
FIREWALL = "KUBE-PROXY-FIREWALL"
CANARY = "KUBE-PROXY-CANARY"
MARK_OUTSIDERS = "KUBE-MARK-OUTSIDE"
"""Marks what does not come from a pod; it is ours alone, as are the next."""
REFUSE = "KUBE-REFUSE"
ACCEPT = "KUBE-ACCEPT"

INVALID_DROPPED = "ct_state_invalid_dropped_pkts"
LOCALHOST_ACCEPTED = "localhost_nps_accepted_pkts"
COUNTERS = frozenset({INVALID_DROPPED, LOCALHOST_ACCEPTED})
"""nfacct's objects; kube-proxy's metrics are made of these."""

SERVICE_TREE = "KUBE-IP-"
REFUSED_TREE = "KUBE-NO-"
"""What the chains of the trees begin with: those to Services, and to frontends that nobody has."""

_FIREWALL = "KUBE-FW-"
_ALWAYS_OURS = frozenset(
    {
        SERVICES,
        EXTERNAL_SERVICES,
        FORWARD,
        POSTROUTING,
        MARK_MASQUERADE,
        FIREWALL,
        CANARY,
        MARK_OUTSIDERS,
        REFUSE,
        ACCEPT,
        "KUBE-NODEPORTS",
    }
)
_PREFIXES = (
    SERVICE_TREE,
    REFUSED_TREE,
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    _FIREWALL,
    "KUBE-SEP-",
    "KUBE-XLB-",
)
_DIGEST_LENGTH = 16


def is_ours(chain: str) -> bool:
    """Tell whether a chain is pyproxy's, or one that kube-proxy's iptables mode has made."""
    return chain in _ALWAYS_OURS or chain.startswith(_PREFIXES)


def port_digest(name: ObjectName, port: str, protocol: Protocol) -> str:
    """Give what the names of a Service port's chains end in."""
    return _digest(_port_text(name, port) + protocol.name.lower())


def service(digest: str) -> str:
    """Name the chain that picks any of a port's endpoints."""
    return f"KUBE-SVC-{digest}"


def local(digest: str) -> str:
    """Name the chain that picks one of a port's endpoints on this node."""
    return f"KUBE-SVL-{digest}"


def external(digest: str) -> str:
    """Name the chain that a port's external frontends lead to."""
    return f"KUBE-EXT-{digest}"


def firewall(digest: str) -> str:
    """Name the chain that holds a port's load balancer source ranges."""
    return f"{_FIREWALL}{digest}"


def is_firewall(chain: str) -> bool:
    """Tell whether a chain holds a port's load balancer source ranges."""
    return chain.startswith(_FIREWALL)


def group(chain: str, number: int) -> str:
    """Name one of the chains among which another's endpoints are divided."""
    return f"{chain}-{number:x}"


def endpoint(name: ObjectName, port: str, protocol: Protocol, backend: Backend) -> str:
    """Name an endpoint's own chain."""
    text = _port_text(name, port) + protocol.name.lower() + backend_text(backend)
    return f"KUBE-SEP-{_digest(text)}"


def branch(tree: str, network: Network) -> str:
    """Name the chain of a tree for the frontends on an address of this network.

    IPv4 networks are spelled out; colons are not allowed in a chain's name.
    """
    if network.family is Family.IPV4:
        return f"{tree}{network}"
    return f"{tree}{_digest(str(network))}"


def port_branch(tree: str, address: Address, protocol: Protocol, ports: range) -> str:
    """Name the chain of a tree for a range of one address's ports."""
    text = f"{address_text(address)} {protocol.name} {ports.start} {ports.stop}"
    return f"{tree}{_digest(text)}"


def comment(name: ObjectName, port: str) -> str:
    """Write what people call a Service port."""
    return _port_text(name, port)


def _port_text(name: ObjectName, port: str) -> str:
    return f"{name}:{port}" if port else str(name)


def _digest(text: str) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest())[:_DIGEST_LENGTH].decode()
