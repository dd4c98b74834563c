"""Listening sockets, with a separate accept queue for the connections of the node itself.

The kernel queues the connections that wait for accept in order of arrival, and drops more than fit.
With one queue, a pod that connects faster than this process accepts would delay the kubelet's
probes. Two sockets therefore share the port (SO_REUSEPORT), and a filter selects by the interface
that a connection comes in through: the node's own come in through `lo`, whichever address they are
sent to. Facts: net/core/sock_reuseport.c; socket(7), SO_ATTACH_REUSEPORT_CBPF, since Linux 4.5.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import socket
import struct
from collections.abc import Collection

from pyproxy.config.settings import ListenAddress
from pyproxy.model.address import Family, address_text, family_of

log = logging.getLogger(__name__)

_SO_ATTACH_REUSEPORT_CBPF = 51
_LOOPBACK_IFINDEX = 1  # in every network namespace
_BACKLOG = 1 << 16
"""More than the kernel allows: net.core.somaxconn limits it, to 4096 by default."""

# struct sock_filter of linux/filter.h: code, jump if true, jump if false, operand.
_FILTER = struct.Struct("=HBBI")
_LOAD_IFINDEX = (0x20, 0, 0, 0xFFFFF000 + 8)  # BPF_LD | BPF_W | BPF_ABS, SKF_AD_IFINDEX
_FROM_LOOPBACK = (0x15, 0, 1, _LOOPBACK_IFINDEX)  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_PUBLIC, _OWN = 0, 1
"""The numbers of the sockets, in the order in which they listen."""

_UNSPECIFIED = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}  # noqa: S104


def bind(address: ListenAddress) -> socket.socket:
    """Return a listening socket. Raises OSError.

    An unspecified address listens on both families, as in Go.
    """
    sock = _bound(address)
    _listen(sock)
    return sock


def bind_pair(address: ListenAddress) -> tuple[socket.socket, socket.socket | None]:
    """Return a listening socket, and one for the connections of the node itself.

    None in place of the second one if the kernel refuses it; the first one then has all
    connections. Raises OSError.
    """
    public = _bound(address)
    # Not before bind: a port that another process listens on would then be shared with it.
    with contextlib.suppress(OSError):
        public.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    _listen(public)
    try:
        return public, _beside(public)
    except OSError as error:
        log.debug("one accept queue for all connections to %s: %s", address, error.strerror)
    return public, None


def bind_unspecified(families: Collection[Family], port: int) -> socket.socket:
    """Return a socket that listens on all addresses of these families. Raises OSError."""
    both = len(families) > 1
    family = Family.IPV6 if both else next(iter(families))
    sock = _open(family, _UNSPECIFIED[family], port, both=both)
    _listen(sock)
    return sock


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


def _listen(sock: socket.socket) -> None:
    try:
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise


def _beside(public: socket.socket) -> socket.socket:
    """Return the socket of the node's own connections to a listening socket. Raises OSError."""
    own = socket.socket(public.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        for level, option in (
            (socket.SOL_SOCKET, socket.SO_REUSEADDR),
            (socket.SOL_SOCKET, socket.SO_REUSEPORT),
        ):
            own.setsockopt(level, option, 1)
        if public.family == socket.AF_INET6:
            only = public.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        own.bind(public.getsockname()[:2])
        own.setblocking(False)
        # The filter comes before the second socket listens: without one, the kernel would spread
        # connections over both.
        _attach_filter(public)
        own.listen(_BACKLOG)
    except OSError:
        own.close()
        raise
    return own


def _attach_filter(sock: socket.socket) -> None:
    steps = (_LOAD_IFINDEX, _FROM_LOOPBACK, (_RETURN, 0, 0, _OWN), (_RETURN, 0, 0, _PUBLIC))
    code = ctypes.create_string_buffer(b"".join(_FILTER.pack(*step) for step in steps))
    # struct sock_fprog: the number of steps, and a pointer to them.
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)
