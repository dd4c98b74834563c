"""The server in pods: it responds with its name and version over HTTP, TCP, UDP and SCTP.

    serve(["NAME", "VERSION", "DRAIN", "PORT,PORT..."])

Every HTTP request gets the same page; /hostname, /version and /clientip get one value each. Other
connections get each chunk back behind the pod's name and version. It prints one line for each
request. After SIGTERM it serves on for DRAIN seconds. A port with "?" may be taken already. It
imports little, so that many pods start quickly.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import time

from pyproxy_lab.echo import ANCILLARY_SIZE, sctp_socket, source_of, udp_socket

_MOST_HEAD = 16384
_MOST_CONNECTIONS = 900
_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"PATCH ", b"OPTIONS ")
_SINGLE = {"/hostname": "name", "/hostName": "name", "/version": "version", "/clientip": "client"}


class PodServer:
    """One thread, all ports of a container."""

    def __init__(self, name: str, version: str, drain: float) -> None:
        self._values = {"name": name, "version": version}
        self._drain = drain
        self._selector = selectors.DefaultSelector()
        self._heads: dict[socket.socket, bytes] = {}
        self._end: float | None = None

    def open(self, port: int) -> None:
        """Serve one port over every protocol, in both families. Raises OSError."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(
            ("::" if both else "", port), family=family, backlog=512, dualstack_ipv6=both
        )
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        for each in (socket.AF_INET, *([socket.AF_INET6] if both else [])):
            self._selector.register(udp_socket(each, port), selectors.EVENT_READ, self._datagram)
            if (bound := sctp_socket(each, port)) is not None:
                self._selector.register(bound, selectors.EVENT_READ, self._accept)

    def terminate(self, *_: object) -> None:
        """Serve on for a while, so that nodes can stop sending, then end."""
        if self._end is None:
            self._end = time.monotonic() + self._drain
            _print(f"terminating: serving on for {self._drain:g} s")

    def serve(self) -> None:
        """Respond until the drain time is over."""
        # A signal does not end select(), but what Python writes to this pipe does.
        woken, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker)
        self._selector.register(woken, selectors.EVENT_READ, lambda _: os.read(woken, 64))
        while self._end is None or self._end > time.monotonic():
            timeout = None if self._end is None else self._end - time.monotonic()
            for key, _ in self._selector.select(timeout):
                try:
                    key.data(key.fileobj)
                except OSError:
                    continue  # the client has seen the error itself

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        if len(self._heads) >= _MOST_CONNECTIONS:
            connection.close()
            return
        connection.setblocking(False)
        self._heads[connection] = b""
        self._selector.register(connection, selectors.EVENT_READ, self._talk)

    def _talk(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(_MOST_HEAD)
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        head = self._heads[connection] + data
        if not any(head.startswith(m[: len(head)]) for m in _METHODS):
            self._heads[connection] = b""
            self._echo(connection, data)
            return
        while b"\r\n\r\n" in head or b"\n\n" in head:
            request, _, rest = head.replace(b"\r\n", b"\n").partition(b"\n\n")
            length = _length(request)
            if len(rest) < length <= _MOST_HEAD:
                break
            head = rest[length:]
            if not self._respond(connection, request) or length > _MOST_HEAD:
                self._close(connection)
                return
        if len(head) > 2 * _MOST_HEAD:
            self._close(connection)
        else:
            self._heads[connection] = head

    def _respond(self, connection: socket.socket, request: bytes) -> bool:
        """Respond to one request; return whether the connection stays open."""
        line, _, fields = request.partition(b"\n")
        words = line.decode(errors="replace").split()
        path = words[1] if len(words) > 1 else "/"
        host, port = connection.getpeername()[:2]
        client = f"{host.removeprefix('::ffff:')}"
        values = self._values | {"client": f"{client}:{port}"}
        if single := _SINGLE.get(path):
            body = values[single] + "\n"
        else:
            body = f"Hostname: {values['name']}\nVersion: {values['version']}\nClient: {client}\n"
        closing = b"connection: close" in fields.lower() or not line.strip().endswith(b"1.1")
        closing = closing or self._end is not None
        _print(f'{client} "{line.decode(errors="replace").strip()[:200]}" 200')
        shown = "" if words[:1] == ["HEAD"] else body
        connection.sendall(
            f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
            f"Connection: {'close' if closing else 'keep-alive'}\r\n\r\n{shown}".encode()
        )
        return not closing

    def _echo(self, connection: socket.socket, data: bytes) -> None:
        client = connection.getpeername()[0].removeprefix("::ffff:")
        _print(f"{client} {len(data)} bytes")
        connection.sendall(self._echoed(data))

    def _datagram(self, bound: socket.socket) -> None:
        data, ancillary, _, peer = bound.recvmsg(2048, ANCILLARY_SIZE)
        by_any_interface = [(level, kind, source_of(info)) for level, kind, info in ancillary]
        _print(f"{peer[0]} {len(data)} bytes of UDP")
        bound.sendmsg([self._echoed(data)], by_any_interface, 0, peer)

    def _echoed(self, data: bytes) -> bytes:
        return f"{self._values['name']} {self._values['version']}: ".encode() + data

    def _close(self, connection: socket.socket) -> None:
        self._heads.pop(connection, None)
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        connection.close()


def _length(request: bytes) -> int:
    """Return the length of a request's body."""
    for line in request.lower().split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length" and value.strip().isdigit():
            return int(value)
    return 0


def _print(line: str) -> None:
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def serve(words: list[str]) -> int:
    """Open every port and serve; return an exit status."""
    name, version, drain, ports = words
    server = PodServer(name, version, float(drain))
    for text in filter(None, ports.split(",")):
        port = int(text.removesuffix("?"))
        try:
            server.open(port)
        except OSError as error:
            if not text.endswith("?"):
                _print(f"cannot listen on port {port}: {error.strerror}")
                return 1
    signal.signal(signal.SIGTERM, server.terminate)
    _print(f"{name} version {version}: serving on {ports.replace('?', '')}")
    server.serve()
    return 0
