"""The agent as a process on a node of the lab's network, an API server here, and what it did."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec
from pyproxy_lab.apiserver.resources import ENDPOINT_SLICES, SERVICES
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.cluster import kubeconfig
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.network import Network
from pyproxy_lab.probe import Outcome, probe
from pyproxy_lab.process import Agent, agent_command
from pyproxy_lab.topology import API_ADDRESS

from pyproxy.agent.node_addresses import LocalAddresses
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables.chains import LOCAL_OFFSET
from pyproxy.dataplane.nftables.compile import add_service, node_table, shared_rows
from pyproxy.dataplane.nftables.readback import read_table
from pyproxy.dataplane.nftables.schema import BY_NAME, ENDPOINTS, NODE_PORT_ENDPOINTS
from pyproxy.model.address import Address, Family, parse_network
from pyproxy.model.destination import parse_destination
from pyproxy.model.objects import EndpointSlice, Kind, Node, ObjectName, Service
from pyproxy.netlink.elements import Value
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.policy.endpoints import route_service
from pyproxy.policy.reserved_frontends import Reserved, ReservedFilter
from pyproxy.source.decode import decode_object
from tests.exposition import scraped
from tests.waiting import PATIENCE, RESPONSE_TIMEOUT, until

SHOP = "shop"
SITE = "na"
GRACE = 15.0
"""Seconds after SIGTERM at which the kubelet kills the agent, by the manifests in deploy/."""
PODS = {"a1": "10.244.1.11", "a2": "10.244.1.12", "b1": "10.244.2.11", "b2": "10.244.2.12"}
NETWORKS = (parse_network("10.244.0.0/16"), parse_network("fd10::/16"))

Object = dict[str, Any]


def node(network: Network) -> Object:
    site = network.topology.site(SITE)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": site.node},
        "spec": {"podCIDRs": list(site.pod_networks)},
        "status": {"addresses": [{"type": "InternalIP", "address": a} for a in site.addresses]},
    }


def service(name: str, address: str, node_port: int = 0, **spec: Any) -> Object:
    """A Service with port 80 and one cluster IP, and whatever else its spec is to have."""
    port = {"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": SHOP},
        "spec": {
            "type": "NodePort" if node_port else "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ports": [port | ({"nodePort": node_port} if node_port else {})],
            **spec,
        },
    }


def endpoint_slice(of: str, addresses: Iterable[str], note: str = "") -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{of}-1",
            "namespace": SHOP,
            "labels": {"kubernetes.io/service-name": of},
            "annotations": {"note": note},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [
            {"addresses": [a], "conditions": {"ready": True}, "nodeName": _node_of(a)}
            for a in addresses
        ],
    }


def broadcast_addresses() -> frozenset[Address]:
    """Return the broadcast addresses of this namespace's networks."""
    with closing(LocalAddresses()) as opened:
        opened.read()
        return opened.broadcasts()


def _node_of(address: str) -> str:
    return "node-a" if address.startswith("10.244.1.") else "node-b"


class Process(Agent):
    """The agent, with what a test asks of it."""

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def ends(self, seconds: float = GRACE) -> int:
        """Wait for its end and return its status. Raises TimeoutExpired if it takes longer."""
        assert self._process is not None
        return self._process.wait(seconds)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.ends(PATIENCE) == -signal.SIGKILL

    def does(self, condition: Callable[[], object], what: str | Callable[[], str]) -> None:
        """Wait for a condition, and fail at once where the agent has ended."""

        def checked() -> object:
            self.require_alive()
            return condition()

        until(checked, what)

    def said(self) -> str:
        return self.log.read_text()


class Stage:
    """A node of a lab's network and everything a test does on it."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.here: Namespace = network.namespace(SITE)
        self._folder = folder
        self._started = 0

    @contextmanager
    def server(self, port: int = 0, middlewares: Iterable[Any] = ()) -> Iterator[ApiServer]:
        """Run an API server that the node reaches, with its Node in it."""
        settings = Settings(netns=self.network.api.name, host=API_ADDRESS, port=port)
        with ApiServer.running(settings, tuple(middlewares)) as server:
            server.load([node(self.network)])
            yield server

    def agent(self, url: str, *flags: str, runner: Iterable[str] = ()) -> Process:
        """Prepare an agent that asks the API server at `url`; entering it starts it.

        `runner` is a command that runs it, such as prlimit.
        """
        self._started += 1
        path = self._folder / f"kubeconfig-{self._started}"
        path.write_bytes(msgspec.json.encode(kubeconfig(url, "")))
        command = [*runner, *agent_command(self.network.topology.site(SITE), path), *flags]
        return Process(self.here, command, self._folder / f"agent-{self._started}.log")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `pyproxy` with these arguments on the node, to its end."""
        return self.here.run([sys.executable, "-m", "pyproxy", *words], check=False)

    def nft(self, *words: str) -> str:
        return self.here.run(["nft", *words]).stdout

    def tables(self) -> list[str]:
        return self.nft("list", "tables").splitlines()

    def probe(
        self, target: str, who: str = "a1", tries: int = 40, timeout: float = RESPONSE_TIMEOUT
    ) -> Outcome:
        """Connect `tries` times; a caller that expects silence passes a short timeout."""
        asked = partial(probe, parse_destination(target), tries=tries, timeout=timeout)
        return self.network.namespace(who).call(asked)

    def connect(self, who: str, address: str) -> socket.socket:
        """Open a connection that is held; its pod has greeted already."""
        return self.network.namespace(who).call(partial(_connected, (address, 80)))

    def health(self) -> int:
        """Return the status of /healthz, 0 while the port is closed."""
        return self.here.call(_health)

    def metrics(self) -> dict[str, float]:
        """Return all metrics, as `series` does; empty while the port is closed."""
        return self.here.call(scraped)

    def kernel(self) -> Table:
        """Read the table's elements, in the form of `in_order`."""
        return self.here.call(_read_table)

    def commits(self) -> Commits:
        """Begin to record every transaction on nf_tables of this node."""
        return Commits(self.here)

    @cached_property
    def _reserved(self) -> Reserved:
        return Reserved(broadcasts=self.here.call(broadcast_addresses))

    def desired(self, server: ApiServer) -> Table:
        """Compile the API server's objects for this node from nothing, in the form of `kernel`."""
        return desired(server, self.network, self._reserved)

    def until_served(self, agent: Process, server: ApiServer, what: str) -> None:
        """Wait until the kernel holds the desired state; the failure names rows that differ."""
        rows: list[str] = []

        def is_served() -> bool:
            rows[:] = differences(self.kernel(), self.desired(server))
            return not rows

        agent.does(is_served, lambda: "\n".join([what, *rows]))


class Commits:
    """The kernel's notifications of transactions, as a context manager."""

    def __init__(self, namespace: Namespace) -> None:
        self._socket = namespace.call(_listener)

    def __enter__(self) -> Commits:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def count(self, seconds: float = 0.0) -> int:
        """Count those since the last call, waiting so long for the first."""
        count = 0
        while select.select([self._socket], [], [], 0.0 if count else seconds)[0]:
            try:
                data = self._socket.recv(1 << 18)
            except OSError:  # there was more than the socket holds
                return count + 1
            count += _generations(data)
        return count


def desired(server: ApiServer, network: Network, reserved: Reserved) -> Table:
    """Compile the API server's objects from nothing, in the form of `Stage.kernel`."""
    store = server.registry.store

    def bodies() -> list[tuple[Kind, bytes]]:
        tables = ((Kind.SERVICE, SERVICES), (Kind.ENDPOINT_SLICE, ENDPOINT_SLICES))
        return [
            (kind, stored.body) for kind, of in tables for stored in store.table(of).current("/")
        ]

    services: dict[ObjectName, Service] = {}
    slices: dict[ObjectName, list[EndpointSlice]] = {}
    for kind, body in server.call(bodies):
        value = decode_object(kind, body).value
        if isinstance(value, Service):
            services[value.name] = value
        elif isinstance(value, EndpointSlice):
            slices.setdefault(value.service, []).append(value)
    here = decode_object(Kind.NODE, msgspec.json.encode(node(network))).value
    assert isinstance(here, Node)
    return in_order(_compile(services, slices, here, reserved))


def _compile(
    services: Mapping[ObjectName, Service],
    slices: Mapping[ObjectName, list[EndpointSlice]],
    here: Node,
    reserved: Reserved,
) -> Table:
    table = node_table(NodeRouting(NETWORKS, here.addresses, reserved))
    usable = ReservedFilter(reserved)
    for name, each in services.items():
        kept, _ = usable.endpoints(slices.get(name, []))
        said = route_service(each, kept, here, here.name)
        add_service(said, table)
        for set_name, key in shared_rows(said):
            table.setdefault(set_name, {})[key] = b""
    return table


def in_order(table: Table) -> Table:
    """Number each frontend's endpoints by their values: which slot each has does not matter.

    Slots with gaps, as a read between two commits may have, stay as they are.
    """
    result = dict(table)
    for name in [kind.of(each) for kind in (ENDPOINTS, NODE_PORT_ENDPOINTS) for each in Family]:
        if name in table:
            slots: dict[bytes, dict[int, Value]] = {}
            for key, backend in table[name].items():
                (number,) = struct.unpack("=I", key[-4:])
                base, index = divmod(number, LOCAL_OFFSET)
                slots.setdefault(key[:-4] + bytes([base]), {})[index] = backend
            result[name] = {
                key + index.to_bytes(4): backend
                for key, backends in slots.items()
                for index, backend in _numbered(backends)
            }
    assert result.keys() <= BY_NAME.keys()
    return result


def _numbered(backends: Mapping[int, Value]) -> Iterable[tuple[int, Value]]:
    has_gaps = backends.keys() != set(range(len(backends)))
    return backends.items() if has_gaps else enumerate(sorted(backends.values(), key=repr))


def differences(kernel: Table, wanted: Table) -> list[str]:
    """Return one line for each set that differs, with its first rows, as hexadecimal digits."""
    found = []
    for name in sorted(kernel.keys() | wanted.keys()):
        held, needed = (set(table.get(name, {}).items()) for table in (kernel, wanted))
        for rows, fault in ((needed - held, "missing"), (held - needed, "unexpected")):
            if rows:
                some = ", ".join(f"{key.hex()}: {value!r}" for key, value in sorted(rows)[:3])
                found.append(f"{name}: {len(rows)} {fault}: {some}")
    return found


def _read_table() -> Table:
    netlink = Nfnetlink()
    try:
        return in_order(read_table(netlink))
    finally:
        netlink.close()


def _listener() -> socket.socket:
    found = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    found.setsockopt(socket.SOL_SOCKET, 33, 1 << 23)
    found.bind((0, 1 << 6))
    return found


def _generations(data: bytes) -> int:
    count = offset = 0
    while offset + 16 <= len(data):
        length = int.from_bytes(data[offset : offset + 4], sys.byteorder)
        kind = int.from_bytes(data[offset + 4 : offset + 6], sys.byteorder)
        count += kind == (10 << 8 | 15)
        offset += (length + 3) & ~3
    return count


def _connected(target: tuple[str, int]) -> socket.socket:
    found = socket.create_connection(target, PATIENCE)
    found.recv(256)
    return found


def ask(connection: socket.socket) -> str:
    """Send a byte on an open connection, and return the name of the pod that responds."""
    connection.sendall(b"?")
    return connection.recv(256).decode().split()[0]


def _health() -> int:
    try:
        with urllib.request.urlopen("http://127.0.0.1:10256/healthz", timeout=PATIENCE) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def addresses(*pods: str) -> list[str]:
    return [PODS[pod] for pod in pods]
