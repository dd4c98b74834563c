"""Names of the chains of Services, endpoints and trees: kube-proxy's where it has such a chain.

Facts: pkg/proxy/iptables/proxier.go of kube-proxy v1.36. A Service port's chains end in the same
16 characters, a digest of its name and protocol; an endpoint's chain digests its address as well.
"""

from __future__ import annotations

import base64
import hashlib

import msgspec

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
from pyproxy.xtables import kube_names

# iptables allows 28 characters in a chain's name. KUBE-SVC- and a digest are 25.
_DIGEST_LENGTH = 16


def port_digest(name: ObjectName, port: str, protocol: Protocol) -> str:
    """Return the digest that the names of a Service port's chains end in."""
    return _digest(_port_text(name, port) + protocol.name.lower())


def service(digest: str) -> str:
    """Return the chain that picks any of a port's endpoints."""
    return f"{kube_names.SERVICE}{digest}"


def local(digest: str) -> str:
    """Return the chain that picks one of a port's endpoints on this node."""
    return f"{kube_names.LOCAL}{digest}"


def external(digest: str) -> str:
    """Return the chain that a port's external frontends go to."""
    return f"{kube_names.EXTERNAL}{digest}"


def source_ranges(digest: str) -> str:
    """Return the chain that tests a port's load balancer source ranges."""
    return f"{kube_names.SOURCE_RANGES}{digest}"


def is_source_ranges(chain: str) -> bool:
    """Return whether a chain tests a port's load balancer source ranges."""
    return chain.startswith(kube_names.SOURCE_RANGES)


def group(chain: str, number: int) -> str:
    """Return the chain of one group of another chain's endpoints."""
    return f"{chain}-{number:x}"


def endpoint(name: ObjectName, port: str, protocol: Protocol, backend: Backend) -> str:
    """Return an endpoint's own chain."""
    text = _port_text(name, port) + protocol.name.lower() + backend_text(backend)
    return f"{kube_names.ENDPOINT}{_digest(text)}"


class NodePortNames(msgspec.Struct, frozen=True):
    """The roots of the trees of the node's addresses and of node ports, and their prefixes."""

    addresses: str
    address_branches: str
    ports: str
    port_branches: str


def node_ports(tree: str) -> NodePortNames:
    """Return the names of the trees of node ports beside the tree with this prefix."""
    return NodePortNames(f"{tree}NODE", f"{tree}A-", f"{tree}NODEPORTS", f"{tree}P-")


def branch(tree: str, network: Network) -> str:
    """Return the chain of a tree for the frontends in a network.

    Only IPv4 networks are spelled out, because a chain's name cannot contain colons.
    """
    # At most 28 characters: KUBE-IP-A-100.100.100.100/32.
    if network.family is Family.IPV4:
        return f"{tree}{network}"
    return f"{tree}{_digest(str(network))}"


def port_branch(tree: str, address: Address, protocol: Protocol, ports: range) -> str:
    """Return the chain of a tree for a range of one address's ports."""
    text = f"{address_text(address)} {protocol.name} {ports.start} {ports.stop}"
    return f"{tree}{_digest(text)}"


def comment(name: ObjectName, port: str) -> str:
    """Return the comment that names a Service port, as kube-proxy writes it."""
    return _port_text(name, port)


def _port_text(name: ObjectName, port: str) -> str:
    return f"{name}:{port}" if port else str(name)


def _digest(text: str) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest())[:_DIGEST_LENGTH].decode()
