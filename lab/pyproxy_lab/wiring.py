"""What `ip` is told in each namespace, as pure functions of the topology."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyproxy_lab.topology import Pod, Site, Topology

POD_BRIDGE = "cbr0"
"""The bridge of a node's pods, for `--pod-bridge-interface`."""

# Refusals are part of what is tested, so the kernel must not ration the ICMP errors that say them.
# A client of SCTP sends what got no answer again after three seconds, if nobody says otherwise.
EVERYWHERE = {
    "ipv6/conf/all/disable_ipv6": 0,
    "ipv6/conf/default/disable_ipv6": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/all/accept_redirects": 0,
    "ipv6/conf/default/accept_redirects": 0,
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    "ipv4/conf/all/send_redirects": 0,
    "ipv4/conf/default/send_redirects": 0,
    "ipv4/icmp_ratelimit": 0,
    "ipv4/icmp_msgs_per_sec": 100_000,
    "ipv4/icmp_msgs_burst": 10_000,
    "ipv6/icmp/ratelimit": 0,
    "sctp/rto_initial": 300,
}
ON_NODES = EVERYWHERE | {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1}


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
    """Give a node its address, its bridge for pods, and the routes of a cluster's fabric."""
    yield from _interface(f"{here.addresses.ipv4}/24", f"{here.addresses.ipv6}/64")
    yield from _bridge(POD_BRIDGE, here.gateways.ipv4, here.gateways.ipv6)
    for other in topology.sites:
        if other != here:
            yield from _routes_to_pods(other)
    # A packet to a virtual address that nobody rewrites leaves the node and is lost.
    for gateway in topology.fabric_gateway:
        yield f"route add default via {gateway}"


def pod_cables(members: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Join pods to their node's bridge; `members` are their names and their namespaces."""
    for name, namespace in members:
        yield from _cable(name, namespace, POD_BRIDGE)
        # With br_netfilter the bridge itself forwards what was translated, back to its sender too.
        yield f"link set v-{name} type bridge_slave hairpin on"


def pod(here: Pod, its_site: Site) -> Iterator[str]:
    """Give a pod its address, and its node as the way to everything else.

    The address stands alone (/32, /128), so that answers to a neighbour pass the node's conntrack
    too, with or without br_netfilter.
    """
    yield from _interface(f"{here.addresses.ipv4}/32", f"{here.addresses.ipv6}/128")
    for gateway in its_site.gateways:
        yield f"route add {gateway} dev eth0"
        yield f"route add default via {gateway}"


def bridge_to_root(name: str, addresses: list[str], members: list[tuple[str, str]]) -> list[str]:
    """Join a bridge of this process's namespace with the nodes; its own address is first."""
    lines = [
        f"addr add {addresses[0]}/28 dev {name}",
        f"link set {name} up",
    ]
    for port, namespace in members:
        lines.append(f"link add {port} type veth peer name mgmt netns {namespace}")
        lines.append(f"link set {port} master {name} up")
    return lines


def _bridge(name: str, ipv4: str, ipv6: str) -> Iterator[str]:
    # Left to itself a bridge takes the lowest address of its ports, and another when a port goes:
    # whoever remembers the first would send into the void.
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
