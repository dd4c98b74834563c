"""Established TCP connections that a case holds open through its later steps."""

from __future__ import annotations

import socket
from functools import partial

from pyproxy.model.destination import parse_destination
from pyproxy_lab.namespace import Namespace

_TIMEOUT = 5.0


class Connections:
    """The connections of one case."""

    def __init__(self) -> None:
        self._open: list[tuple[str, str, socket.socket]] = []

    def hold(self, client: Namespace, source_name: str, to: str) -> None:
        """Connect to a pod through `to` and keep the connection. Raises OSError."""
        connect = partial(socket.create_connection, parse_destination(to).socket_address, _TIMEOUT)
        connection = client.call(connect)
        self._open.append((f"{source_name} -> {to}", _name(connection), connection))

    def broken(self) -> list[str]:
        """Return a line for each connection that its pod does not respond on any more."""
        return [
            f"{label}: the connection to {pod} is broken: {error}"
            for label, pod, connection in self._open
            if (error := _error(connection, pod))
        ]

    def close(self) -> None:
        """Close all connections."""
        for _, _, connection in self._open:
            connection.close()
        self._open.clear()


def _name(connection: socket.socket) -> str:
    return connection.recv(256).decode().partition(" ")[0]


def _error(connection: socket.socket, pod: str) -> str:
    try:
        connection.sendall(b"?")
        found = _name(connection)
    except OSError as error:
        return str(error)
    return "" if found == pod else f"{found or 'its end'} instead"
