"""UDP clients that keep their source port follow changes of their Service, through real rules."""

from __future__ import annotations

import itertools
import os
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import pytest
from pyroute2 import netns

from pyproxy.dataplane.conntrack import Reconciler
from pyproxy.dataplane.conntrack.sweep import Table
from pyproxy.errors import TransientKernelError
from pyproxy.model.address import Address, Backend, Family, Port, Protocol, parse_address
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.conntrack import Conntrack, Deletion
from pyproxy.netlink.flows import Flow
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.netlink.conntrack_entries import place
from tests.waiting import PATIENCE

pytestmark = pytest.mark.packets

NAME = ObjectName("shop", "dns")
POD_PORT = 5353
NODES = {Family.IPV4: "172.30.9.1", Family.IPV6: "fd30:9::1"}
CLIENTS = {Family.IPV4: "172.30.9.2", Family.IPV6: "fd30:9::2"}
PODS = {
    Family.IPV4: {"one": "10.244.1.1", "two": "10.244.1.2"},
    Family.IPV6: {"one": "fd10:1::1", "two": "fd10:1::2"},
}
VIRTUAL = {
    Family.IPV4: {
        Scope.CLUSTER_IP: "10.96.0.10",
        Scope.EXTERNAL_IP: "198.51.100.7",
        Scope.LOAD_BALANCER: "192.0.2.10",
    },
    Family.IPV6: {
        Scope.CLUSTER_IP: "fd00:10:96::a",
        Scope.EXTERNAL_IP: "2001:db8::7",
        Scope.LOAD_BALANCER: "2001:db8::10",
    },
}
SOURCE_PORTS = itertools.count(20000)
IP = {Family.IPV4: "ip", Family.IPV6: "ip6"}
DOMAIN = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


def run(*words: str, text: str = "") -> None:
    subprocess.run(words, input=text, text=True, check=True, capture_output=True)


@contextmanager
def inside(name: str) -> Iterator[None]:
    netns.pushns(name)
    try:
        yield
    finally:
        netns.popns()


class Silent:
    def conntrack_finished(self, family: Family, seconds: float, deleted: int) -> None:
        """Count nothing."""


class FailsOnce:
    """The kernel's table, but the first deletion fails."""

    def __init__(self, table: Conntrack) -> None:
        self._table = table
        self.selective = True
        self.failed: Sequence[Flow] = ()

    def flows(
        self, family: Family, protocol: Protocol, destination: bytes = b""
    ) -> Iterator[list[Flow]]:
        return self._table.flows(family, protocol, destination)

    def delete(self, flows: Sequence[Flow]) -> Deletion:
        if self.failed or not flows:
            return self._table.delete(flows)
        self.failed = flows
        return Deletion(0, tuple((flow, TransientKernelError("EBUSY", 16)) for flow in flows))


class Lab:
    """A node with two backends, and a client outside of it, in a network namespace each."""

    def __init__(self) -> None:
        self.node, self.client = (f"pyproxy-ct{os.getpid()}-{name}" for name in ("n", "c"))
        self._selector = selectors.DefaultSelector()
        self._ended = threading.Event()
        self._server = threading.Thread(target=self._serve)
        for name in (self.node, self.client):
            netns.create(name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        link = ("type", "veth", "peer", "name", "node", "netns", self.node)
        run("ip", "-n", self.client, "link", "add", "eth0", *link)
        run("ip", "-n", self.client, "link", "set", "eth0", "up")
        run("ip", "-n", self.node, "link", "set", "node", "up")
        for family in Family:
            prefix = "/24" if family is Family.IPV4 else "/64"
            self._address(self.node, "node", NODES[family] + prefix)
            self._address(self.client, "eth0", CLIENTS[family] + prefix)
            run("ip", "-n", self.client, "route", "add", "default", "via", NODES[family])
            run("ip", "-n", self.node, "route", "add", "default", "via", CLIENTS[family])
            for name, address in PODS[family].items():
                self._address(self.node, "lo", address)
                self._listen(family, name, address)
        with inside(self.node):
            run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
            # Every ICMP error counts here, so the kernel must not limit their rate.
            run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
        self._server.start()

    def close(self) -> None:
        self._ended.set()
        self._server.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # all of them are sockets
        for name in (self.node, self.client):
            netns.remove(name)

    def program(self, rules: Mapping[tuple[Family, str, int], str | None]) -> None:
        """Replace all rules: where a destination goes to, or None to reject.

        The kernel tracks connections only while a rule needs it, so one always does.
        """
        translate, refuse = ["ct state new counter"], []
        for (family, address, port), pod in rules.items():
            goal = f"{IP[family]} daddr {address} meta l4proto {{ tcp, udp }} th dport {port}"
            if pod is None:
                refuse.append(f"{goal} reject")
            else:
                to = PODS[family][pod]
                to = f"[{to}]" if family is Family.IPV6 else to
                translate.append(f"{goal} dnat {IP[family]} to {to}:{POD_PORT}")
        with inside(self.node):
            run(
                "nft",
                "-f",
                "-",
                text="table inet lab { }\ndelete table inet lab\ntable inet lab {\n"
                "chain translate { type nat hook prerouting priority dstnat;\n"
                + "\n".join(translate)
                + "\n}\nchain in { type filter hook input priority filter;\n"
                + "\n".join(refuse)
                + "\n}\nchain through { type filter hook forward priority filter;\n"
                + "\n".join(refuse)
                + "\n}\n}\n",
            )

    def connect(self, family: Family, kind: socket.SocketKind, to: str, port: int) -> socket.socket:
        with inside(self.client):
            opened = socket.socket(DOMAIN[family], kind)
        opened.bind((CLIENTS[family], next(SOURCE_PORTS)))
        opened.settimeout(0.2 if kind is socket.SOCK_DGRAM else PATIENCE)
        opened.connect((to, port))
        return opened

    def _address(self, name: str, device: str, address: str) -> None:
        run(
            "ip",
            "-n",
            name,
            "address",
            "add",
            address,
            "dev",
            device,
            *["nodad"] * (":" in address),
        )

    def _listen(self, family: Family, name: str, address: str) -> None:
        with inside(self.node):
            packets = socket.socket(DOMAIN[family], socket.SOCK_DGRAM)
            stream = socket.socket(DOMAIN[family], socket.SOCK_STREAM)
        packets.bind((address, POD_PORT))
        stream.bind((address, POD_PORT))
        stream.listen()
        routing = name.encode()
        self._selector.register(packets, selectors.EVENT_READ, lambda: _echo(packets, routing))
        self._selector.register(stream, selectors.EVENT_READ, lambda: self._accept(stream, routing))

    def _accept(self, stream: socket.socket, routing: bytes) -> None:
        peer, _ = stream.accept()
        self._selector.register(peer, selectors.EVENT_READ, lambda: self._reply(peer, routing))

    def _reply(self, peer: socket.socket, routing: bytes) -> None:
        with suppress(ConnectionResetError):
            if peer.recv(64):
                peer.send(routing)
                return
        self._selector.unregister(peer)
        peer.close()

    def _serve(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.1):
                key.data()


def _echo(packets: socket.socket, routing: bytes) -> None:
    _, peer = packets.recvfrom(64)
    packets.sendto(routing, peer)


def ask(client: socket.socket) -> str:
    """Send once on an open socket; return the pod that responded, "refused", or "silence"."""
    try:
        client.send(b"?")
        return client.recv(64).decode()
    except TimeoutError:
        return "silence"
    except ConnectionRefusedError:
        return "refused"


def until(client: socket.socket, wanted: str) -> None:
    """Send again and again until three responses in a row are as wanted."""
    deadline = time.monotonic() + PATIENCE
    routings: list[str] = []
    while routings[-3:] != [wanted] * 3:
        assert time.monotonic() < deadline, f"wanted {wanted}, got {routings[-10:]}"
        routings.append(ask(client))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


@contextmanager
def running(lab: Lab, wrap: Callable[[Conntrack], Table]) -> Iterator[Reconciler]:
    """Run a reconciler on the node; `wrap` may put something before the kernel's table."""
    with inside(lab.node):
        table = Conntrack()
        made = Reconciler(wrap(table), Silent())
        made.start()
    try:
        made.node_addresses([parse_address(address) for address in NODES.values()])
        yield made
    finally:
        made.stop()
        table.close()


@pytest.fixture
def reconciler(lab: Lab) -> Iterator[Reconciler]:
    with running(lab, lambda table: table) as made:
        yield made


def routing(family: Family, scope: Scope, port: int, pod: str | None) -> ServiceRouting:
    address = "" if scope is Scope.NODE_PORT else VIRTUAL[family][scope]
    frontend = Frontend(
        scope,
        parse_address(address) if address else Address(b""),
        Port(port),
        Use.REJECT if pod is None else Use.CLUSTER,
    )
    backends: tuple[Backend, ...] = () if pod is None else (place(PODS[family][pod], POD_PORT),)
    return ServiceRouting(
        NAME,
        tuple(
            PortRouting(protocol.name, family, protocol, (frontend,), backends, ())
            for protocol in (Protocol.TCP, Protocol.UDP)
        ),
    )


class Commit:
    """A Service on one address, and its changes: first the rules, then the reconciler."""

    def __init__(self, lab: Lab, reconciler: Reconciler, family: Family, scope: Scope) -> None:
        self._lab, self._reconciler = lab, reconciler
        self._family, self._scope = family, scope
        self.port = 30053 if scope is Scope.NODE_PORT else 53
        self.address = NODES[family] if scope is Scope.NODE_PORT else VIRTUAL[family][scope]

    def __call__(self, pod: str | None) -> None:
        self._lab.program({(self._family, self.address, self.port): pod})
        routed = routing(self._family, self._scope, self.port, pod)
        self._reconciler.changed({NAME: routed})

    def delete(self) -> None:
        self._lab.program({})
        self._reconciler.changed({NAME: None})

    def client(self, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
        return self._lab.connect(self._family, kind, self.address, self.port)


@pytest.fixture(params=Family, ids=lambda family: family.label)
def family(request: pytest.FixtureRequest) -> Family:
    value: Family = request.param
    return value


@pytest.fixture(params=Scope, ids=lambda scope: scope.value)
def scope(request: pytest.FixtureRequest) -> Scope:
    value: Scope = request.param
    return value


@pytest.fixture
def commit(lab: Lab, reconciler: Reconciler, family: Family, scope: Scope) -> Commit:
    made = Commit(lab, reconciler, family, scope)
    made.delete()
    return made


def without_service(scope: Scope) -> str:
    """Return the result without a Service: only at its own address does the node refuse."""
    return "refused" if scope is Scope.NODE_PORT else "silence"


def test_a_client_is_moved_to_another_endpoint(commit: Commit) -> None:
    commit("one")
    with commit.client() as client:
        until(client, "one")
        commit("two")
        until(client, "two")


def test_a_client_is_refused_without_endpoints_and_served_again(commit: Commit) -> None:
    commit("one")
    with commit.client() as client:
        until(client, "one")
        commit(None)
        until(client, "refused")
        commit("two")
        until(client, "two")


def test_a_client_from_before_the_service_is_served(commit: Commit, scope: Scope) -> None:
    with commit.client() as client:
        until(client, without_service(scope))
        commit("one")
        until(client, "one")


def test_a_client_of_a_deleted_service_is_served_no_more(commit: Commit, scope: Scope) -> None:
    commit("one")
    with commit.client() as client:
        until(client, "one")
        commit.delete()
        until(client, without_service(scope))


def test_a_tcp_connection_lives_on(commit: Commit) -> None:
    commit("one")
    with commit.client(socket.SOCK_STREAM) as stream, commit.client() as client:
        until(stream, "one")
        until(client, "one")
        commit("two")
        until(client, "two")
        assert ask(stream) == "one"
        commit(None)
        until(client, "refused")
        assert ask(stream) == "one"


def test_a_client_is_moved_although_the_first_deletion_fails(lab: Lab, family: Family) -> None:
    before: list[FailsOnce] = []

    def wrap(table: Conntrack) -> FailsOnce:
        before.append(FailsOnce(table))
        return before[0]

    with running(lab, wrap) as reconciler:
        commit = Commit(lab, reconciler, family, Scope.CLUSTER_IP)
        commit("one")
        with commit.client() as client:
            until(client, "one")
            commit("two")
            until(client, "two")
    assert before[0].failed
