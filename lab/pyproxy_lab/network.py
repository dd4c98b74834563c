"""The lab's network: the namespaces of a topology, with their links, routes and servers.

It is sealed. Its namespaces have links to each other alone, so that none of their packets reaches
the machine, whatever its sysctls, routes and firewall. Sockets are the only way in and out: a
process of the machine opens one in a namespace (`Namespace.call`) and uses it from outside.
"""

from __future__ import annotations

import itertools
import shutil
import socket
import time
from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import Self

from pyproxy.model.address import Family, Port, parse_address
from pyproxy.model.destination import Destination
from pyproxy_lab import wiring
from pyproxy_lab.leftovers import NETNS_FILES, remove_abandoned
from pyproxy_lab.namespace import (
    NETNS_FOLDER,
    LabError,
    Namespace,
    execute,
    ip,
    make_namespaces,
    require_root,
)
from pyproxy_lab.owner import Owner
from pyproxy_lab.probe import probe
from pyproxy_lab.servers import Server, Servers
from pyproxy_lab.topology import (
    API,
    API_ADDRESS,
    HOST_PORTS,
    OUTSIDE,
    SWITCH,
    TWO_NODES,
    Pod,
    Site,
    Topology,
)

_TIMEOUT = 60.0
"""Seconds in which a new server must be reached."""

_numbers = itertools.count()


class Network:
    """A context manager: inside it the namespaces exist and the pods respond.

    Names are unique to the process and the network, so several can exist at the same time. Raises
    UsageError without root, LabError where the kernel or `ip` fails.

    `joins` is the name of a network of another process, with the same sites: the pods of the
    topology are added to that one, and removed at the end.
    """

    def __init__(self, topology: Topology = TWO_NODES, *, joins: str = "") -> None:
        self.topology = topology
        self._joins = bool(joins)
        self._id = joins or Owner.this_process().network(next(_numbers))
        self._servers = Servers()
        self._pods: dict[str, Pod] = {}

    def __enter__(self) -> Self:
        require_root()
        remove_abandoned()
        try:
            if self._joins:
                self._join()
            else:
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
        """Return the namespace of a pod, a site (`na`), the outside client or the API server."""
        return Namespace(f"{self._id}-{name}")

    @property
    def api(self) -> Namespace:
        """The namespace of the API server's address; `API_ADDRESS` is an address there."""
        return self.namespace(API)

    def addresses(self, name: str) -> frozenset[str]:
        """Return every source address of a pod, a site or the outside client.

        Raises KeyError.
        """
        if name == OUTSIDE:
            return frozenset(self.topology.used(self.topology.outside))
        if name in self._pods:
            return frozenset(self.topology.used(self._pods[name].addresses))
        site = self.topology.site(name)
        return frozenset(
            address
            for each in (site.addresses, site.gateways)
            for address in self.topology.used(each)
        )

    def listen(self, port: int = 0) -> socket.socket:
        """Open a TCP socket that listens on `API_ADDRESS`, which the nodes reach; 0 is any port."""
        return self.api.call(partial(socket.create_server, (API_ADDRESS, port)))

    def add_pod(self, pod: Pod) -> None:
        """Start a pod, and return once it responds."""
        self.wire_pod(pod)
        self._servers.start([self._server(pod.name, pod.name, pod.ports)])
        self._await_response(pod.addresses.ipv4, pod.ports)

    def remove_pod(self, name: str) -> None:
        """Kill a pod's server and remove its namespace; open connections are lost."""
        self._servers.end(self.namespace(name).name)
        self.unwire_pod(name)

    def wire_pod(self, pod: Pod) -> None:
        """Make a pod's namespace with its links, without a server."""
        self._make_namespaces([pod.name])
        self._pods[pod.name] = pod
        self._wire_pods(self.topology.site(pod.site), [pod])

    def unwire_pod(self, name: str) -> None:
        """Remove a pod's namespace, in which no server runs."""
        del self._pods[name]
        ip([f"netns del {self.namespace(name).name}"])
        self._remove_files(self.namespace(name).name)

    def write_resolv_conf(self, name: str, text: str) -> None:
        """Write the /etc/resolv.conf that `ip netns exec` mounts for programs in a namespace."""
        folder = NETNS_FILES / self.namespace(name).name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "resolv.conf").write_text(text)

    def remove(self) -> None:
        """Stop every server and remove every namespace; may be called at any stage."""
        self._servers.end_all()
        if self._joins:
            # The network may have been removed meanwhile.
            for name in self._pods:
                execute(["ip", "netns", "del", self.namespace(name).name], check=False)
            self._pods.clear()
            return
        self._pods.clear()
        ip([f"netns del {path.name}" for path in NETNS_FOLDER.glob(f"{self._id}-*")])
        self._remove_files(f"{self._id}-*")

    def _remove_files(self, pattern: str) -> None:
        for path in NETNS_FILES.glob(pattern):
            shutil.rmtree(path)

    def _join(self) -> None:
        for pod in self.topology.pods:
            self.add_pod(pod)

    def _build(self) -> None:
        topology = self.topology
        self._pods = {pod.name: pod for pod in topology.pods}
        sites = [site.name for site in topology.sites]
        self._make_namespaces([SWITCH, OUTSIDE, API, *sites, *self._pods])
        self._wire(SWITCH, wiring.switch(topology, self._members([OUTSIDE, *sites])))
        self._wire(OUTSIDE, wiring.outside(topology))
        self._wire(API, wiring.api(self._members(sites)))
        for number, site in enumerate(topology.sites, 1):
            self._wire(site.name, [*wiring.site(topology, site), *wiring.management(number)])
            self._wire_pods(site, [pod for pod in topology.pods if pod.site == site.name])
        servers = [self._server(pod.name, pod.name, pod.ports) for pod in topology.pods]
        servers += [self._server(site.name, site.host, HOST_PORTS) for site in topology.sites]
        self._servers.start(servers)
        for pod in topology.pods:
            self._await_response(pod.addresses.ipv4, pod.ports)
        for site in topology.sites:
            self._await_response(site.addresses.ipv4, HOST_PORTS)

    def _members(self, names: list[str]) -> list[tuple[str, str]]:
        return [(name, self.namespace(name).name) for name in names]

    def _make_namespaces(self, names: list[str]) -> None:
        nodes = {site.name for site in self.topology.sites}
        for sysctls, members in (
            (wiring.ON_NODES, [name for name in names if name in nodes]),
            (wiring.ON_ALL, [name for name in names if name not in nodes]),
        ):
            make_namespaces([self.namespace(name).name for name in members], sysctls)

    def _wire_pods(self, site: Site, pods: list[Pod]) -> None:
        members = self._members([pod.name for pod in pods])
        self._wire(site.name, wiring.pod_cables(members))
        for pod in pods:
            self._wire(pod.name, wiring.pod(pod, site))

    def _wire(self, name: str, commands: Iterable[str]) -> None:
        """Run `ip` commands in a namespace, without those of a family that the network lacks."""
        if Family.IPV6 not in self.topology.families:
            commands = (each for each in commands if "::" not in each)
        self.namespace(name).ip(commands)

    def _server(self, where: str, name: str, ports: tuple[int, ...]) -> Server:
        return Server(self.namespace(where).name, name, ports)

    def _await_response(self, address: str, ports: tuple[int, ...]) -> None:
        """Wait until a server is reached from outside: a link forwards a little after it is up.

        Raises LabError.
        """
        deadline = time.monotonic() + _TIMEOUT
        outside = self.namespace(OUTSIDE)
        for port in ports[:1]:
            reach = partial(probe, Destination(parse_address(address), Port(port)), timeout=0.1)
            while not outside.call(reach).reached:
                if time.monotonic() > deadline:
                    raise LabError(f"{address}:{port} was not reached within {_TIMEOUT:.0f} s")
