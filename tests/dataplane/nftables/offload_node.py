"""Connections through a node with a fast path, with both of their ends in the test's hands."""

from __future__ import annotations

import itertools
import json
import select
import socket
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pyproxy_lab.network import Network

from pyproxy.model.address import Backend, Port, Protocol, backend, parse_address
from pyproxy.model.destination import Destination, parse_destination
from pyproxy.netlink.conntrack import Conntrack
from tests.semantics.proxied import Proxied
from tests.waiting import until

PORT = 9000
"""The port of pods at which the test itself listens."""

TIMEOUT = 20.0
PATTERN = bytes(range(251)) * 4096
_BIG = 65536


class Connection:
    """A TCP connection, or a UDP flow of one client, with the pod's end where it is known."""

    def __init__(self, client: socket.socket, target: Destination) -> None:
        self.client = client
        self.target = target
        self.pod: socket.socket | None = None
        self.pod_name = ""

    @property
    def original(self) -> tuple[Protocol, Backend, Backend]:
        """Protocol, source and destination of the client's packets, as conntrack has them."""
        source, port = self.client.getsockname()[:2]
        return (
            self.target.protocol,
            backend(parse_address(source), Port(port)),
            backend(self.target.address, self.target.port),
        )

    @property
    def server(self) -> socket.socket:
        """The pod's end of a TCP connection."""
        assert self.pod is not None
        return self.pod

    def close(self) -> None:
        """Close both ends."""
        self.client.close()
        if self.pod is not None and self.target.protocol is Protocol.TCP:
            self.pod.close()


class OffloadNode:
    """A context manager: pods that listen at PORT, connections to them, and the node's conntrack.

    Pods that come later are added by `listen`.
    """

    def __init__(self, proxied: Proxied, pods: Iterable[str]) -> None:
        self.proxied = proxied
        self.network: Network = proxied.network
        self._pods = tuple(pods)
        self._stack = ExitStack()
        self._listeners: dict[str, list[socket.socket]] = {}
        self._ports = itertools.count(20000)
        self._conntrack = self.network.namespace("na").call(Conntrack)

    def __enter__(self) -> Self:
        for pod in self._pods:
            self.listen(pod)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._conntrack.close()

    def listen(self, pod: str) -> None:
        """Open PORT in a pod, for TCP and UDP in both families."""

        def bound() -> list[socket.socket]:
            tcp = socket.create_server(
                ("::", PORT), family=socket.AF_INET6, backlog=512, dualstack_ipv6=True
            )
            udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            udp.bind(("::", PORT))
            return [tcp, udp]

        self._listeners[pod] = self.network.namespace(pod).call(bound)
        for each in self._listeners[pod]:
            each.settimeout(TIMEOUT)
            self._stack.callback(each.close)

    def stop_listening(self, pod: str) -> None:
        """Close the sockets that `listen` opened."""
        for each in self._listeners.pop(pod):
            each.close()

    def udp(self, pod: str) -> socket.socket:
        """Return the UDP socket of a pod."""
        return self._listeners[pod][1]

    def connect(self, who: str, to: str) -> Connection:
        """Connect, and accept the connection in the pod that it reaches."""
        target = parse_destination(to)

        def connected() -> socket.socket:
            return socket.create_connection(target.socket_address, TIMEOUT)

        made = Connection(self.network.namespace(who).call(connected), target)
        self._stack.callback(made.close)
        listeners = {tcp: pod for pod, (tcp, _) in self._listeners.items()}
        (ready, *_), _, _ = select.select(list(listeners), [], [], TIMEOUT)
        made.pod, _ = ready.accept()
        made.pod.settimeout(TIMEOUT)
        made.pod_name = listeners[ready]
        for end in (made.client, made.pod):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def udp_flow(self, who: str, to: str) -> Connection:
        """Return a UDP client with a port that no other client has had."""
        target = parse_destination(to)
        is_v4 = len(target.address) == 4

        def connected() -> socket.socket:
            made = socket.socket(socket.AF_INET if is_v4 else socket.AF_INET6, socket.SOCK_DGRAM)
            if is_v4:
                # Without DF, as DNS servers send: a router divides what is too large.
                made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
            made.bind(("", next(self._ports)))
            made.connect(target.socket_address)
            made.settimeout(0.5)
            return made

        made = Connection(self.network.namespace(who).call(connected), target)
        self._stack.callback(made.close)
        return made

    def ask(self, flow: Connection, data: bytes = b"?") -> str:
        """Send a datagram, respond to it with the same data, and name the pod; empty if lost."""
        try:
            flow.client.send(data)
        except OSError:  # an ICMP error for an earlier one
            return ""
        sockets = {udp: pod for pod, (_, udp) in self._listeners.items()}
        ready, _, _ = select.select(list(sockets), [], [], 0.2)
        for each in ready:
            got, peer = each.recvfrom(_BIG)
            assert got == data
            each.sendto(got, peer)
            assert flow.client.recv(_BIG) == data
            return sockets[each]
        return ""

    def responds(self, flow: Connection, data: bytes = b"?", pod: str = "") -> None:
        """Send datagrams until one is returned, by `pod` if that is given."""

        def responded() -> bool:
            seen = self.ask(flow, data)
            return seen == pod if pod else bool(seen)

        until(responded, f"{pod or 'a pod'} responds to {len(data)} bytes")

    def falls_silent(self, flow: Connection) -> None:
        """Send datagrams until one is lost."""
        until(lambda: not self.ask(flow), "no pod responds")

    def is_offloaded(self, connection: Connection) -> bool:
        """Return whether a flowtable has the connection."""
        found = self._conntrack.find(*connection.original)
        return found is not None and found.offloaded

    def becomes_offloaded(self, connection: Connection) -> None:
        """Exchange bytes until a flowtable has a TCP connection.

        It may have to wait for the agent, which binds the device of a new pod.
        """

        def is_offloaded() -> bool:
            exchange(connection)
            return self.is_offloaded(connection)

        until(is_offloaded, f"the connection to {connection.target} is offloaded")

    def udp_becomes_offloaded(self, flow: Connection) -> None:
        """Exchange datagrams until a flowtable has the flow."""
        until(lambda: self.ask(flow) and self.is_offloaded(flow), "the flow is offloaded")

    def leaves_fast_path(self, connection: Connection) -> None:
        """Wait until the flowtable has removed an idle connection, which conntrack keeps."""
        until(lambda: not self.is_offloaded(connection), "the connection has left the flowtable")
        assert self._conntrack.find(*connection.original) is not None

    def sysctl(self, name: str, value: int) -> int:
        """Write a sysctl of the node below net/netfilter, and return its value before."""

        def written() -> int:
            path = Path("/proc/sys/net/netfilter", name)
            before = int(path.read_text())
            path.write_text(str(value))
            return before

        return self.network.namespace("na").call(written)

    def forwarded(self, port: int = PORT) -> int:
        """Count packets to or from PORT that have passed the hook forward of the node.

        The first call starts to count.
        """
        node = self.network.namespace("na")
        rules = (
            f"add rule inet watch forward th dport {port} counter\n"
            f"add rule inet watch forward th sport {port} counter\n"
        )
        listed = node.run(["nft", "-j", "list", "table", "inet", "watch"], check=False)
        if listed.returncode:
            chain = "{ type filter hook forward priority 0; }"
            text = f"add table inet watch\nadd chain inet watch forward {chain}\n{rules}"
            node.run(["nft", "-f", "-"], text=text)
            self._stack.callback(node.run, ["nft", "delete", "table", "inet", "watch"], check=False)
            return 0
        objects: list[Any] = json.loads(listed.stdout)["nftables"]
        return sum(
            part["counter"]["packets"]
            for each in objects
            for part in each.get("rule", {}).get("expr", ())
            if "counter" in part
        )


_IP_MTU_DISCOVER, _IP_PMTUDISC_DONT = 10, 0


def exchange(connection: Connection) -> None:
    """Send a byte to the pod and back, and compare."""
    for sender, receiver in _both_ways(connection):
        sender.sendall(b"?")
        assert receiver.recv(1) == b"?"


def transfer(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    """Send `size` bytes and compare what arrives, all of it."""
    pattern = memoryview(PATTERN * 2)
    period = len(PATTERN)

    def send() -> None:
        sent = 0
        while sent < size:
            at = sent % period
            sent += sender.send(pattern[at : at + min(_BIG, size - sent)])

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    received = 0
    while received < size:
        data = receiver.recv(_BIG)
        at = received % period
        assert data, f"ended after {received} of {size} bytes"
        assert data == pattern[at : at + len(data)], f"other data from byte {received} on"
        received += len(data)
    thread.join()


def _both_ways(connection: Connection) -> tuple[tuple[socket.socket, socket.socket], ...]:
    ends = connection.client, connection.server
    return ends, ends[::-1]
