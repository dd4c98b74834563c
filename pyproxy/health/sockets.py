"""Listening sockets, with several accept queues for one port.

The kernel queues the connections that wait for accept in order of arrival, and drops more than fit.
With one queue, a pod that connects faster than this process accepts would keep out kubelets and
load balancers. Several sockets therefore share the port (SO_REUSEPORT), each with a queue, and
`queue_filter` selects one for each client. Another socket may have the node's own connections.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Collection

import msgspec

from pyproxy.config.settings import ListenAddress
from pyproxy.health.queue_filter import select_queues
from pyproxy.model.address import Family, address_text, family_of

log = logging.getLogger(__name__)

_BACKLOG = 1 << 16
"""More than the kernel allows: net.core.somaxconn limits it, to 4096 by default."""

_UNSPECIFIED = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}  # noqa: S104


class Sockets(msgspec.Struct, frozen=True):
    """The listening sockets of one port; `own` has the node's own connections, if there is one."""

    public: tuple[socket.socket, ...]
    own: socket.socket | None = None


def bind(address: ListenAddress, queues: int = 1, *, own: bool = False) -> Sockets:
    """Return sockets that listen on one address, with 1, 2, 4 … `queues`. Raises OSError.

    An unspecified address listens on both families, as in Go. With `own`, the node's own
    connections have one more queue. There is one for all if the kernel allows no others.
    """
    return _with_queues(_bound(address), queues, own=own)


def bind_unspecified(families: Collection[Family], port: int, queues: int = 1) -> Sockets:
    """Return sockets that listen on all addresses of these families. Raises OSError."""
    return _with_queues(_bound_everywhere(families, port), queues, own=False)


def local_family(sock: socket.socket) -> Family:
    """Return the family of the node's address that a client connected to. Raises OSError."""
    # A socket of both families has IPv4 addresses mapped into IPv6 (RFC 4291, 2.5.5.2).
    host = sock.getsockname()[0]
    return Family.IPV4 if "." in host else Family.IPV6


def _bound(address: ListenAddress) -> socket.socket:
    if any(address.address):
        return _open(family_of(address.address), address_text(address.address), address.port)
    with contextlib.suppress(OSError):
        return _open(Family.IPV6, _UNSPECIFIED[Family.IPV6], address.port, both=True)
    # Either the kernel has no IPv6, or the port is in use: then this raises the error.
    return _open(Family.IPV4, _UNSPECIFIED[Family.IPV4], address.port)


def _bound_everywhere(families: Collection[Family], port: int) -> socket.socket:
    if len(families) > 1:
        try:
            return _open(Family.IPV6, _UNSPECIFIED[Family.IPV6], port, both=True)
        except OSError as error:
            # The process may have no IPv6 sockets although the node has IPv6 addresses.
            if error.errno != errno.EAFNOSUPPORT:
                raise
        families = (Family.IPV4,)
    family = next(iter(families))
    return _open(family, _UNSPECIFIED[family], port)


def _open(family: Family, host: str, port: int, both: bool = False) -> socket.socket:
    kind = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    sock = socket.socket(kind, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # A restarted agent binds although connections of the last one are in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Set in both cases, because the sysctl net.ipv6.bindv6only decides the default.
        if family is Family.IPV6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _with_queues(first: socket.socket, queues: int, *, own: bool) -> Sockets:
    if queues > 1:
        # Not before bind: a port that another process listens on would then be shared with it.
        with contextlib.suppress(OSError):
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        first.listen(_BACKLOG)
    except OSError:
        first.close()
        raise
    if queues == 1:
        return Sockets((first,))
    beside: list[socket.socket] = []
    try:
        beside.extend(_bound_beside(first) for _ in range(queues - 1 + own))
        # The filter comes before others listen: without it the kernel would use all sockets.
        select_queues(first, queues, own=own)
        for sock in beside:
            sock.listen(_BACKLOG)
    except OSError as error:
        log.debug("one accept queue at %s: %s", first.getsockname(), error.strerror)
        for sock in beside:
            sock.close()
        # Otherwise another program of this user could take a part of the connections.
        with contextlib.suppress(OSError):
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
        return Sockets((first,))
    return Sockets((first, *beside[: queues - 1]), beside[-1] if own else None)


def _bound_beside(first: socket.socket) -> socket.socket:
    """Return another socket that is bound to a socket's address. Raises OSError."""
    sock = socket.socket(first.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        if first.family == socket.AF_INET6:
            only = first.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        sock.bind(first.getsockname()[:2])
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
