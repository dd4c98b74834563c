"""The lab's network: the namespaces of a topology, wired, routed and answering."""

from __future__ import annotations

import itertools
import os
import time
from functools import partial
from types import TracebackType
from typing import Self

from pyproxy.model.address import Port, parse_address
from pyproxy.model.destination import Destination
from pyproxy_lab import wiring
from pyproxy_lab.namespace import (
    INTERFACES,
    NETNS_FOLDER,
    LabError,
    Namespace,
    execute,
    ip,
    remove_abandoned,
    require_root,
)
from pyproxy_lab.probe import probe
from pyproxy_lab.servers import Server, Servers
from pyproxy_lab.topology import HOST_PORTS, OUTSIDE, TWO_NODES, Pod, Site, Topology

SWITCH = "sw"
BLOCKS = 4096
"""Of 16 addresses each, which make up 10.250.0.0/16."""

_PATIENCE = 10.0

_numbers = itertools.count()


class Network:
    """A context manager: inside it the namespaces exist and the pods answer.

    Names are unique to the process and the network, so several can stand beside each other. Raises
    UsageError without root, LabError where the kernel or `ip` refuses.
    """

    def __init__(self, topology: Topology = TWO_NODES) -> None:
        self.topology = topology
        self._number = next(_numbers)
        self._id = f"lab{os.getpid()}-{self._number}"
        self._servers = Servers()
        self._pods: dict[str, Pod] = {}

    def __enter__(self) -> Self:
        require_root()
        remove_abandoned()
        try:
            self._build()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def namespace(self, name: str) -> Namespace:
        """Give the namespace of a pod, a site (`na`), or the outside client (`ext`)."""
        return Namespace(f"{self._id}-{name}")

    def addresses(self, name: str) -> frozenset[str]:
        """Give every address under which a pod, a site or the outside client can be seen.

        Raises KeyError.
        """
        if name == OUTSIDE:
            return frozenset(self.topology.outside)
        if name in self._pods:
            return frozenset(self._pods[name].addresses)
        site = self.topology.site(name)
        return frozenset([*site.addresses, *site.gateways])

    def add_pod(self, pod: Pod) -> None:
        """Start a pod, and return once it answers."""
        self._make_namespaces([pod.name])
        self._pods[pod.name] = pod
        self._wire_pods(self.topology.site(pod.site), [pod])
        self._servers.start([self._server(pod.name, pod.name, pod.ports)])
        self._await_answer(pod.addresses.ipv4, pod.ports)

    def remove_pod(self, name: str) -> None:
        """Stop a pod and remove its namespace; what it had in hand is lost."""
        self._servers.end(self.namespace(name).name)
        del self._pods[name]
        ip([f"netns del {self.namespace(name).name}"])

    def connect_to_root(self) -> str:
        """Join every site to a bridge in this process's own namespace, and give its address.

        A server that listens on that address can be reached from the nodes, as an API server must.
        """
        ip([f"link add {self._id} type bridge"])
        block = claim_block(self._id, os.getpid() + self._number)
        start = (10 << 24) + (250 << 16) + (block << 4)
        addresses = [".".join(map(str, (start + n).to_bytes(4, "big"))) for n in range(1, 15)]
        sites = [self.namespace(site.name) for site in self.topology.sites]
        ports = [f"{self._id}{site.name}" for site in self.topology.sites]
        members = [(port, site.name) for port, site in zip(ports, sites, strict=True)]
        ip(wiring.bridge_to_root(self._id, addresses, members))
        for site, own in zip(sites, addresses[1:], strict=False):
            site.ip([f"addr add {own}/28 dev mgmt", "link set mgmt up"])
        return addresses[0]

    def remove(self) -> None:
        """Stop every server and remove every namespace; may be called at any stage."""
        self._servers.end_all()
        self._pods.clear()
        lines = [f"link del {path.name}" for path in INTERFACES.glob(f"{self._id}*")]
        lines += [f"netns del {path.name}" for path in NETNS_FOLDER.glob(f"{self._id}-*")]
        ip(lines)

    def _build(self) -> None:
        topology = self.topology
        self._pods = {pod.name: pod for pod in topology.pods}
        sites = [site.name for site in topology.sites]
        self._make_namespaces([SWITCH, OUTSIDE, *sites, *self._pods])
        self.namespace(SWITCH).ip(wiring.switch(topology, self._members([OUTSIDE, *sites])))
        self.namespace(OUTSIDE).ip(wiring.outside(topology))
        for site in topology.sites:
            self.namespace(site.name).ip(wiring.site(topology, site))
            self._wire_pods(site, [pod for pod in topology.pods if pod.site == site.name])
        servers = [self._server(pod.name, pod.name, pod.ports) for pod in topology.pods]
        servers += [self._server(site.name, site.host, HOST_PORTS) for site in topology.sites]
        self._servers.start(servers)
        for pod in topology.pods:
            self._await_answer(pod.addresses.ipv4, pod.ports)
        for site in topology.sites:
            self._await_answer(site.addresses.ipv4, HOST_PORTS)

    def _members(self, names: list[str]) -> list[tuple[str, str]]:
        return [(name, self.namespace(name).name) for name in names]

    def _make_namespaces(self, names: list[str]) -> None:
        ip(f"netns add {namespace}" for _, namespace in self._members(names))
        nodes = {site.name for site in self.topology.sites}
        for name in names:
            values = wiring.ON_NODES if name in nodes else wiring.EVERYWHERE
            self.namespace(name).sysctl(values)

    def _wire_pods(self, site: Site, pods: list[Pod]) -> None:
        members = self._members([pod.name for pod in pods])
        self.namespace(site.name).ip(wiring.pod_cables(members))
        for pod in pods:
            self.namespace(pod.name).ip(wiring.pod(pod, site))

    def _server(self, where: str, name: str, ports: tuple[int, ...]) -> Server:
        return Server(self.namespace(where).name, name, ports)

    def _await_answer(self, address: str, ports: tuple[int, ...]) -> None:
        """Wait until a server can be reached from outside: links come up a little after they say.

        Raises LabError.
        """
        deadline = time.monotonic() + _PATIENCE
        outside = self.namespace(OUTSIDE)
        for port in ports[:1]:
            reach = partial(probe, Destination(parse_address(address), Port(port)), timeout=0.1)
            while not outside.call(reach).reached:
                if time.monotonic() > deadline:
                    raise LabError(f"{address}:{port} was not reached within {_PATIENCE:.0f} s")


def claim_block(bridge: str, wanted: int) -> int:
    """Take the first block from `wanted` on that no other bridge of this namespace has.

    The bridge carries its block's number as another name: no two interfaces can have the same, and
    whoever removes the bridge gives it back. Raises LabError.
    """
    for number in range(wanted, wanted + BLOCKS):
        block = number % BLOCKS
        name = f"pyproxy-lab-block-{block}"
        done = execute(["ip", "link", "property", "add", bridge, "altname", name], check=False)
        if not done.returncode:
            return block
        if "File exists" not in done.stderr:
            raise LabError(f"{bridge}: {done.stderr.strip()}")
    raise LabError("labs beside this one have all addresses of 10.250.0.0/16")
