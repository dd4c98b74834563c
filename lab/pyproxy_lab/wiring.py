"""The `ip` commands and sysctls of each namespace, as pure functions of the topology."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyproxy_lab.topology import API_ADDRESS, Pod, Site, Topology

POD_BRIDGE = "cbr0"
"""The bridge of a node's pods, for `--pod-bridge-interface`."""

# A new namespace takes its IPv4 settings from the machine's first namespace, not from the kernel's
# defaults (net.core.devconf_inherit_init_net). On a machine with Docker ip_forward is 1 in all of
# them, so each setting that the lab depends on is written.
_INHERITED = {
    # Writing ip_forward resets some of the others, so it comes first.
    "ipv4/ip_forward": 0,
    "ipv6/conf/all/forwarding": 0,
    "ipv6/conf/default/forwarding": 0,
    **{
        f"ipv4/conf/{scope}/{name}": 0
        for scope in ("all", "default")
        for name in (
            "accept_local",
            "arp_announce",
            "arp_filter",
            "arp_ignore",
            "log_martians",
            "proxy_arp",
            "route_localnet",
            "rp_filter",
            "send_redirects",
            "src_valid_mark",
        )
    },
}
ON_ALL = {
    **_INHERITED,
    "ipv6/conf/all/disable_ipv6": 0,
    "ipv6/conf/default/disable_ipv6": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/all/accept_redirects": 0,
    "ipv6/conf/default/accept_redirects": 0,
    # Tests count rejections, so the kernel must not limit the rate of ICMP errors.
    "ipv4/icmp_ratelimit": 0,
    "ipv4/icmp_msgs_per_sec": 100_000,
    "ipv4/icmp_msgs_burst": 10_000,
    "ipv6/icmp/ratelimit": 0,
    # The default, 3 s, is longer than a probe's timeout.
    "sctp/rto_initial": 300,
}
"""Sysctls of every namespace, as paths below /proc/sys/net."""

ON_NODES = ON_ALL | {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1}
"""Sysctls of a node's namespace."""


def switch(topology: Topology, members: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Make the nodes' switch; `members` are the names on it and their namespaces."""
    gateway = topology.fabric_gateway
    yield "link set lo up"
    yield from _bridge("br0", gateway.ipv4, gateway.ipv6)
    for name, namespace in members:
        yield from _cable(name, namespace, "br0")


def outside(topology: Topology) -> Iterator[str]:
    """Route the outside client to the pods, and to the Services by way of the first site."""
    first = topology.sites[0].addresses
    yield from _interface(f"{topology.outside.ipv4}/24", f"{topology.outside.ipv6}/64")
    for site in topology.sites:
        yield from _routes_to_pods(site)
    for network in topology.service_networks:
        yield f"route add {network} via {first.ipv6 if ':' in network else first.ipv4}"


def site(topology: Topology, here: Site) -> Iterator[str]:
    """Add a node's address, its bridge for pods, and routes of a cluster's fabric."""
    yield from _interface(f"{here.addresses.ipv4}/24", f"{here.addresses.ipv6}/64")
    yield from _bridge(POD_BRIDGE, here.gateways.ipv4, here.gateways.ipv6)
    for other in topology.sites:
        if other != here:
            yield from _routes_to_pods(other)
    # A packet to a virtual address that no rule translates leaves the node, and the gateway, which
    # forwards nothing, drops it without a reply.
    for gateway in topology.fabric_gateway:
        yield f"route add default via {gateway}"


def pod_cables(members: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Join pods to their node's bridge; `members` are their names and their namespaces."""
    for name, namespace in members:
        yield from _cable(name, namespace, POD_BRIDGE)
        # With br_netfilter the bridge forwards translated packets itself, even back to the sender.
        yield f"link set v-{name} type bridge_slave hairpin on"


def pod(here: Pod, its_site: Site) -> Iterator[str]:
    """Add a pod's address, and its node as the gateway to all others.

    The address is a /32 or /128, so that replies to a pod of the same node pass the node's
    conntrack too, with or without br_netfilter.
    """
    yield from _interface(f"{here.addresses.ipv4}/32", f"{here.addresses.ipv6}/128")
    for gateway in its_site.gateways:
        yield f"route add {gateway} dev eth0"
        yield f"route add default via {gateway}"


def api(members: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Make the API server's bridge; `members` are the nodes' names and their namespaces."""
    yield "link set lo up"
    yield "link add br0 type bridge mcast_snooping 0"
    yield f"addr add {API_ADDRESS}/24 dev br0"
    yield "link set br0 up"
    for name, namespace in members:
        yield f"link add v-{name} type veth peer name mgmt netns {namespace}"
        yield f"link set v-{name} master br0 up"


def management(number: int) -> Iterator[str]:
    """Add the address of site `number`, from 1 on, on the API server's bridge."""
    yield f"addr add {API_ADDRESS.removesuffix('1')}{number + 1}/24 dev mgmt"
    yield "link set mgmt up"


def _bridge(name: str, ipv4: str, ipv6: str) -> Iterator[str]:
    # Without an address of its own a bridge takes the lowest of its ports, and another one when
    # that port goes: neighbours that have the first in their ARP tables would lose packets.
    mac = "02:00:" + ":".join(f"{int(part):02x}" for part in ipv4.split("."))
    yield f"link add {name} address {mac} type bridge mcast_snooping 0"
    yield f"addr add {ipv4}/24 dev {name}"
    yield f"addr add {ipv6}/64 dev {name} nodad"
    yield f"link set {name} up"


def _cable(name: str, namespace: str, bridge: str) -> Iterator[str]:
    yield f"link add v-{name} type veth peer name eth0 netns {namespace}"
    yield f"link set v-{name} master {bridge} up"


def _interface(ipv4: str, ipv6: str) -> Iterator[str]:
    yield "link set lo up"
    yield f"addr add {ipv4} dev eth0"
    yield f"addr add {ipv6} dev eth0 nodad"
    yield "link set eth0 up"


def _routes_to_pods(there: Site) -> Iterator[str]:
    yield f"route add {there.pod_networks.ipv4} via {there.addresses.ipv4}"
    yield f"route add {there.pod_networks.ipv6} via {there.addresses.ipv6}"
