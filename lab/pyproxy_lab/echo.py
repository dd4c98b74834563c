"""The server in pods: it responds with its name and the client's address.

It speaks TCP and UDP, and SCTP where the kernel has sockets for it.

    python echo.py NAMESPACE,NAME,PORT,PORT...

A process is forked for each argument. It prints `ready NAMESPACE PID` once every port is open, and
ends when its standard input does, so that it cannot outlive the process that started it. It imports
nothing but the standard library, so that the many servers of a lab start quickly.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import socket
import sys

NAMESPACES = "/run/netns"
CLONE_NEWNET = 0x40000000  # linux/sched.h
IP_PKTINFO = 8
IN6_PKTINFO_SIZE = 20
BACKLOG = 4096  # the kernel drops handshakes beyond it while the server gets no CPU time
ANCILLARY_SIZE = 256  # bytes, more than either family's packet information takes


class Echo:
    """A pod's server: one thread, all its ports, until `main` ends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.selector = selectors.DefaultSelector()

    def response(self, peer: tuple[str, int]) -> bytes:
        """Return the line that a client receives."""
        return f"{self.name} {peer[0].removeprefix('::ffff:')}\n".encode()

    def open(self, port: int) -> None:
        """Serve one port over every protocol, in both families."""
        # Without IPv6 in the kernel there are no such sockets.
        both = socket.has_dualstack_ipv6()
        listener = socket.create_server(
            ("::" if both else "", port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            backlog=BACKLOG,
            dualstack_ipv6=both,
        )
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ, self.accept)
        for family in (socket.AF_INET, *([socket.AF_INET6] if both else [])):
            self.selector.register(udp_socket(family, port), selectors.EVENT_READ, self.reply)
            bound = sctp_socket(family, port)
            if bound is not None:
                self.selector.register(bound, selectors.EVENT_READ, self.accept)

    def accept(self, listener: socket.socket) -> None:
        """Greet a client that connects, so that a probe need not send anything."""
        connection, peer = listener.accept()
        try:
            connection.sendall(self.response(peer))
        except OSError:
            connection.close()
            return
        connection.setblocking(False)
        self.selector.register(connection, selectors.EVENT_READ, self.talk)

    def talk(self, connection: socket.socket) -> None:
        """Respond to each chunk from a client, on connections that stay open."""
        try:
            data = connection.recv(4096)
            if data:
                connection.sendall(self.response(connection.getpeername()))
        except OSError:
            data = b""
        if not data:
            self.selector.unregister(connection)
            connection.close()

    def reply(self, bound: socket.socket) -> None:
        """Respond to a datagram from the address that it was sent to."""
        _, ancillary, _, peer = bound.recvmsg(2048, ANCILLARY_SIZE)
        by_any_interface = [(level, kind, source_of(data)) for level, kind, data in ancillary]
        bound.sendmsg([self.response(peer)], by_any_interface, 0, peer)

    def serve(self) -> None:
        """Respond until standard input ends."""
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.data is None:
                    return
                try:
                    key.data(key.fileobj)
                except OSError:
                    continue  # the client has seen the error itself


def udp_socket(family: int, port: int) -> socket.socket:
    """Bind one family, asking for the address that each datagram was sent to."""
    bound = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        bound.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    bound.bind(("", port))
    bound.setblocking(False)
    return bound


def source_of(info: bytes) -> bytes:
    """Keep the address of `in_pktinfo` or `in6_pktinfo`, and leave the interface to the kernel.

    A packet over loopback names the device that has the address. Where that is down, as
    kube-ipvs0 is, nothing goes out by it.
    """
    if len(info) == IN6_PKTINFO_SIZE:
        return info[:16] + bytes(4)
    return bytes(4) + info[4:]


def sctp_socket(family: int, port: int) -> socket.socket | None:
    """Listen for SCTP associations in one family; None where the kernel has no such sockets.

    A socket of both families would announce the pod's addresses of the other one to each client.
    """
    try:
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    except OSError:
        return None
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("", port))
    bound.listen(BACKLOG)
    bound.setblocking(False)
    return bound


def enter(namespace: str) -> None:
    """Move this process to a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(f"{NAMESPACES}/{namespace}", os.O_RDONLY)
    if libc.setns(handle, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    os.close(handle)


def run(namespace: str, name: str, ports: list[str]) -> None:
    """Open every port, print that it is ready, and serve."""
    echo = Echo(name)
    enter(namespace)
    for port in ports:
        echo.open(int(port))
    # One write for each line, because all processes write to the same pipe.
    os.write(sys.stdout.fileno(), f"ready {namespace} {os.getpid()}\n".encode())
    echo.serve()


def main() -> None:
    """Fork all servers, and wait until the last has ended."""
    for argument in sys.argv[1:]:
        namespace, name, *ports = argument.split(",")
        if not os.fork():
            try:
                run(namespace, name, ports)
            except Exception as error:  # the process that started it reads the error
                os.write(sys.stdout.fileno(), f"{name}: {error}\n".encode())
                os._exit(1)
            os._exit(0)
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return


if __name__ == "__main__":
    main()
