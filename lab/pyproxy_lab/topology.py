"""The members of the lab's network and their addresses.

    ext --------+  outside client  172.30.0.100  fd30::100
                |  sw, the switch: the nodes' default gateway, which forwards nothing
    na ---------+  node-a          172.30.0.11   fd30::11     the node under test
     |- a1, a2     pods            10.244.1.11 … fd10:1::11 …
    nb ---------+  node-b          172.30.0.12   fd30::12
     |- b1, b2     pods            10.244.2.11 … fd10:2::11 …
    na, nb -----+  api             10.250.0.1                 the API server's address

Pods respond to TCP and UDP on 8080 and 8081, and each node on 9090 under the name `ha` or `hb`.
No link leads from these namespaces to the machine: the API server's socket is opened in `api`.
"""

from __future__ import annotations

from collections.abc import Iterator
from string import ascii_lowercase

import msgspec

from pyproxy.model.address import Family

OUTSIDE, SWITCH, API = "ext", "sw", "api"
"""The namespaces of the outside client, of the nodes' switch, and of the API server's socket."""

API_ADDRESS = "10.250.0.1"
"""Where nodes reach the API server; site number n has the address 10.250.0.(n + 1)."""

POD_NETWORKS = {Family.IPV4: "10.244.0.0/16", Family.IPV6: "fd10::/16"}
"""The networks that the pod networks of all nodes are parts of."""

HOST_PORTS = (9090,)
POD_PORTS = (8080, 8081)


class Addresses(msgspec.Struct, frozen=True):
    """One address of each family, in text as `ip` and the Kubernetes API take it."""

    ipv4: str
    ipv6: str

    def of(self, family: Family) -> str:
        """Return the address of one family."""
        return self.ipv4 if family is Family.IPV4 else self.ipv6

    def __iter__(self) -> Iterator[str]:
        yield self.ipv4
        yield self.ipv6


class Site(msgspec.Struct, frozen=True):
    """A node: its namespace `name`, its Node object's name, and a pod network of its own.

    `host` is the name under which the node itself responds, as a host-network pod would.
    """

    name: str
    node: str
    host: str
    zone: str
    addresses: Addresses
    pod_networks: Addresses
    gateways: Addresses


class Pod(msgspec.Struct, frozen=True):
    """A pod: a namespace behind its site's bridge, with servers on `ports`."""

    name: str
    site: str
    addresses: Addresses
    ports: tuple[int, ...] = POD_PORTS


class Topology(msgspec.Struct, frozen=True):
    """The whole network; `service_networks` are routed from outside to the first site.

    `families` are those that the network has, the primary one first.
    """

    sites: tuple[Site, ...]
    pods: tuple[Pod, ...]
    outside: Addresses
    fabric_gateway: Addresses
    service_networks: tuple[str, ...]
    families: tuple[Family, ...] = (Family.IPV4, Family.IPV6)

    @property
    def pod_networks(self) -> str:
        """The network of all pods in each family, as kube-proxy's --cluster-cidr takes it."""
        return ",".join(POD_NETWORKS[family] for family in self.families)

    def used(self, addresses: Addresses) -> tuple[str, ...]:
        """Return the addresses, or networks, of the families that the network has."""
        return tuple(addresses.of(family) for family in self.families)

    def site(self, name: str) -> Site:
        """Find a site by the name of its namespace. Raises KeyError."""
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(name)


def numbered_site(number: int) -> Site:
    """Make site 1 (`na`), 2 (`nb`) and so on, up to 26."""
    letter = ascii_lowercase[number - 1]
    return Site(
        name=f"n{letter}",
        node=f"node-{letter}",
        host=f"h{letter}",
        zone=f"zone-{number}",
        addresses=Addresses(f"172.30.0.{10 + number}", f"fd30::{10 + number}"),
        pod_networks=Addresses(f"10.244.{number}.0/24", f"fd10:{number}::/64"),
        gateways=Addresses(f"10.244.{number}.1", f"fd10:{number}::1"),
    )


def numbered_pod(name: str, site: int, host: int, ports: tuple[int, ...] = POD_PORTS) -> Pod:
    """Make a pod with the address numbered `host` (2 to 99) in its site's pod networks."""
    addresses = Addresses(f"10.244.{site}.{host}", f"fd10:{site}::{host}")
    return Pod(name, numbered_site(site).name, addresses, ports)


_SERVICE_NETWORKS = (
    "10.96.0.0/12",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "fd00:10:96::/108",
    "2001:db8::/64",
)


def nodes_alone(count: int, families: tuple[Family, ...]) -> Topology:
    """Make a network of `count` nodes (1 to 26) without pods."""
    return msgspec.structs.replace(
        TWO_NODES,
        sites=tuple(numbered_site(number + 1) for number in range(count)),
        pods=(),
        families=families,
    )


TWO_NODES = Topology(
    sites=(numbered_site(1), numbered_site(2)),
    pods=(
        numbered_pod("a1", 1, 11),
        numbered_pod("a2", 1, 12),
        numbered_pod("b1", 2, 11),
        numbered_pod("b2", 2, 12),
    ),
    outside=Addresses("172.30.0.100", "fd30::100"),
    fabric_gateway=Addresses("172.30.0.1", "fd30::1"),
    service_networks=_SERVICE_NETWORKS,
)
