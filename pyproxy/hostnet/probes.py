"""Connections from this node to endpoints and frontends, made to see whether they respond.

All are made at once, without blocking, and closed as soon as they are decided. No data is sent,
except for UDP, which has no connection: one empty datagram.
"""

from __future__ import annotations

import enum
import errno
import selectors
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import cast

import msgspec

from pyproxy.hostnet.packet import Origin, ServicePaths
from pyproxy.model.address import Address, Family, Protocol, family_of
from pyproxy.model.destination import Destination

TIMEOUT = 2.5
"""Seconds for an answer. The kernel repeats a TCP SYN after 1 s, so one lost packet is no fault."""

MAX_PROBES = 32

_EXTENDED_ERROR = struct.Struct("=IBBBBII")
"""struct sock_extended_err of linux/errqueue.h: errno, origin, type, code, padding, info, data."""

_ORIGIN_ICMP, _ORIGIN_ICMP6 = 2, 3
_UNREACHABLE = {_ORIGIN_ICMP: 3, _ORIGIN_ICMP6: 1}
# Codes "administratively prohibited" of RFC 1122, RFC 1812 and RFC 4443.
_PROHIBITED = {_ORIGIN_ICMP: {9, 10, 13}, _ORIGIN_ICMP6: {1, 5, 6}}
_ERROR_QUEUE = {
    Family.IPV4: (socket.IPPROTO_IP, 11),  # IP_RECVERR
    Family.IPV6: (socket.IPPROTO_IPV6, 25),  # IPV6_RECVERR
}
_PORT_UNREACHABLE = {_ORIGIN_ICMP: 3, _ORIGIN_ICMP6: 4}
_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_KINDS: Mapping[Protocol, tuple[socket.SocketKind, int]] = {
    Protocol.TCP: (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    Protocol.UDP: (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    Protocol.SCTP: (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}


class Outcome(enum.Enum):
    """The answer to a probe.

    FILTERED is an ICMP error of a firewall, or a rule of this node that drops the packet. SILENT
    is no answer at all, UNKNOWN an error of this node that says nothing about the target.
    """

    ANSWERED = "answered"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    FILTERED = "filtered"
    SILENT = "silent"
    UNKNOWN = "unknown"


_OUTCOMES = {
    errno.ECONNREFUSED: Outcome.REFUSED,
    errno.ECONNRESET: Outcome.REFUSED,
    errno.EHOSTUNREACH: Outcome.UNREACHABLE,
    errno.ENETUNREACH: Outcome.UNREACHABLE,
    errno.EHOSTDOWN: Outcome.UNREACHABLE,
    errno.ENETDOWN: Outcome.UNREACHABLE,
    # A rule of this node that drops what it sends; a route that prohibits, or ICMPv6.
    errno.EPERM: Outcome.FILTERED,
    errno.EACCES: Outcome.FILTERED,
}


class Probe(msgspec.Struct, frozen=True):
    """One probe. `by` is the router or host that sent the ICMP error; `error` the errno's name."""

    target: Destination
    outcome: Outcome
    by: Address | None = None
    error: str = ""


class ProbeFacts(msgspec.Struct, frozen=True):
    """The probes of endpoints, and of frontends that this node may connect to.

    `left_out` is the number of targets beyond the bound.
    """

    endpoints: tuple[Probe, ...] = ()
    frontends: tuple[Probe, ...] = ()
    left_out: int = 0


def probe(paths: ServicePaths) -> ProbeFacts:
    """Connect to the endpoints of paths, and through the frontends that this node can reach.

    Blocks for `TIMEOUT` at most, with `MAX_PROBES` sockets. Not idempotent for the applications:
    each sees a connection that ends at once.
    """
    endpoints = dict.fromkeys(path.leaving.addressed_to for path in paths.paths)
    frontends = dict.fromkeys(
        path.arriving.addressed_to for path in paths.paths if path.origin is Origin.NODE
    )
    first = list(endpoints)[: MAX_PROBES // 2]
    targets = [*first, *list(frontends)[: MAX_PROBES - len(first)]]
    found = _probe_all(targets)
    return ProbeFacts(
        tuple(found[: len(first)]),
        tuple(found[len(first) :]),
        len(endpoints) + len(frontends) - len(targets),
    )


def _probe_all(targets: Sequence[Destination]) -> list[Probe]:
    found: dict[int, Probe] = {}
    with selectors.DefaultSelector() as selector:
        try:
            for number, target in enumerate(targets):
                sock = _open(target)
                if isinstance(sock, Probe):
                    found[number] = sock
                    continue
                event = selectors.EVENT_READ if _is_udp(target) else selectors.EVENT_WRITE
                selector.register(sock, event, number)
            deadline = monotonic() + TIMEOUT
            while selector.get_map() and (left := deadline - monotonic()) > 0:
                for key, _ in selector.select(left):
                    sock = cast("socket.socket", key.fileobj)
                    found[key.data] = _result(sock, targets[key.data])
                    selector.unregister(sock)
                    sock.close()
        finally:
            for key in selector.get_map().values():
                cast("socket.socket", key.fileobj).close()
    return [
        found.get(number, Probe(target, Outcome.SILENT)) for number, target in enumerate(targets)
    ]


def _is_udp(target: Destination) -> bool:
    return target.protocol is Protocol.UDP


def _open(target: Destination) -> socket.socket | Probe:
    """Return a socket that connects to a target, or the result if it fails at once."""
    family = family_of(target.address)
    kind, number = _KINDS[target.protocol]
    try:
        sock = socket.socket(_FAMILIES[family], kind | socket.SOCK_NONBLOCK, number)
    except OSError as error:
        return Probe(target, Outcome.UNKNOWN, error=_name(error.errno))
    with suppress(OSError):  # without the error queue only the sender of an error is unknown
        sock.setsockopt(*_ERROR_QUEUE[family], 1)
    try:
        sock.connect(target.socket_address)
        if _is_udp(target):
            sock.send(b"")
    except BlockingIOError:
        return sock
    except OSError as error:
        with sock:
            return _failure(sock, target, error.errno or 0)
    return sock


def _result(sock: socket.socket, target: Destination) -> Probe:
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return _failure(sock, target, error) if error else Probe(target, Outcome.ANSWERED)


def _failure(sock: socket.socket, target: Destination, error: int) -> Probe:
    icmp = _icmp_error(sock)
    outcome = _OUTCOMES.get(error, Outcome.UNKNOWN)
    by = None
    if icmp is not None:
        by = icmp.sender
        # A host refuses TCP with a reset. A port that ICMP calls unreachable is a firewall's.
        prohibited = icmp.prohibited or (icmp.port_unreachable and not _is_udp(target))
        outcome = Outcome.FILTERED if prohibited else outcome
    return Probe(target, outcome, by, _name(error))


def _name(error: int | None) -> str:
    return errno.errorcode.get(error or 0, str(error))


class _IcmpError(msgspec.Struct, frozen=True):
    prohibited: bool
    port_unreachable: bool
    sender: Address | None


def _icmp_error(sock: socket.socket) -> _IcmpError | None:
    """Return the ICMP error that the socket has received, None if there is none."""
    try:
        _, ancillary, _, _ = sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)
    except OSError:
        return None
    for level, kind, data in ancillary:
        if (level, kind) not in _ERROR_QUEUE.values() or len(data) < _EXTENDED_ERROR.size:
            continue
        _, origin, type_, code, *_ = _EXTENDED_ERROR.unpack_from(data)
        if _UNREACHABLE.get(origin) == type_:
            prohibited = code in _PROHIBITED[origin]
            sender = _sender(data[_EXTENDED_ERROR.size :])
            return _IcmpError(prohibited, code == _PORT_UNREACHABLE[origin], sender)
    return None


def _sender(sockaddr: bytes) -> Address | None:
    """Return the address of a struct sockaddr, in the host's byte order of the family."""
    family = int.from_bytes(sockaddr[:2], sys.byteorder)
    if family == socket.AF_INET:
        return Address(sockaddr[4:8])
    return Address(sockaddr[8:24]) if family == socket.AF_INET6 else None
