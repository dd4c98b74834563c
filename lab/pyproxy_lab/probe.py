"""Probes: connect to an address many times and count the outcomes.

They use the network namespace that they are called in: `network.namespace("a2").call(...)`.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec

from pyproxy.model.address import Family, Protocol, family_of
from pyproxy.model.destination import Destination

REFUSALS = frozenset(
    (
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EACCES,
    )
)
"""The errno of a TCP reset and of the ICMP errors that mean a rejection."""

ENOUGH_DROPPED = 2
ENOUGH_REFUSED = 3

_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds."""


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of many tries: responses by pod, source addresses that pods saw, and failures.

    `refused` counts tries that were rejected at once, `dropped` those without any response.
    """

    reached: Mapping[str, int] = {}
    sources: frozenset[str] = frozenset()
    refused: int = 0
    dropped: int = 0

    def __str__(self) -> str:
        parts = [f"{name} {count}x" for name, count in sorted(self.reached.items())]
        parts += [f"{n} {what}" for n, what in self._missed() if n]
        seen = f", seen as {', '.join(sorted(self.sources))}" if self.sources else ""
        return (", ".join(parts) or "nothing") + seen

    def _missed(self) -> tuple[tuple[int, str], ...]:
        return ((self.refused, "refused"), (self.dropped, "dropped"))


def has_sctp() -> bool:
    """Return whether this kernel has SCTP sockets."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


def probe(
    target: Destination,
    *,
    tries: int = 1,
    timeout: float = 0.6,
    source_port: int = 0,
    at_once: int = 1,
) -> Outcome:
    """Connect `tries` times, each for at most `timeout` seconds, and return the outcome.

    ENOUGH_DROPPED or ENOUGH_REFUSED tries end it early. The first `at_once` tries are made at the
    same time, so that they wait for silence together.
    `source_port` keeps the client's port from try to try, as a long-lived UDP client does. Raises
    OSError for any other error than a rejection.
    """
    reached: Counter[str] = Counter()
    sources: set[str] = set()
    refused = dropped = 0
    once = partial(_try, target, timeout=timeout, source_port=source_port)
    for response in _responses(once, tries, at_once):
        pod, _, source = (response or "").strip().partition(" ")
        if response is None:
            dropped += 1
        elif source:
            reached[pod] += 1
            sources.add(source)
        else:
            refused += 1
        if dropped >= ENOUGH_DROPPED or refused >= ENOUGH_REFUSED:
            break
    return Outcome(dict(reached), frozenset(sources), refused, dropped)


def _responses(once: Callable[[], str | None], tries: int, at_once: int) -> Iterator[str | None]:
    together = min(tries, at_once) if at_once > 1 else 0
    if together:
        # A new thread is in the network namespace of the thread that starts it.
        with ThreadPoolExecutor(together) as pool:
            started = [pool.submit(once) for _ in range(together)]
        yield from (each.result() for each in started)
    for _ in range(tries - together):
        yield once()


def _try(target: Destination, *, timeout: float, source_port: int) -> str | None:
    """Return the response: None without any, empty for a rejection."""
    try:
        # A connection may also be accepted and closed without a line.
        return request(target, timeout=timeout, source_port=source_port)
    except TimeoutError:
        return None
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        return ""


def request(target: Destination, *, timeout: float, source_port: int = 0) -> str:
    """Connect once and return the pod's line. Raises OSError, TimeoutError."""
    with _client(target) as client:
        client.settimeout(timeout)
        if source_port:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if target.protocol is Protocol.SCTP:
            # An association keeps its port until the peer agrees to end it, and a peer that is no
            # longer translated to never does. An aborted one ends at once.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            client.bind((_own_address(target), source_port))
        elif source_port:
            client.bind(("", source_port))
        client.connect(target.socket_address)
        if target.protocol is Protocol.UDP:
            # A sender on the node itself gets EPERM for a rejected and for a dropped packet. recv()
            # below tells the two apart.
            with contextlib.suppress(PermissionError):
                client.send(b"?")
        return client.recv(256).decode()


def _client(target: Destination) -> socket.socket:
    family = socket.AF_INET if family_of(target.address) is Family.IPV4 else socket.AF_INET6
    if target.protocol is Protocol.UDP:
        return socket.socket(family, socket.SOCK_DGRAM)
    if target.protocol is Protocol.TCP:
        return socket.socket(family, socket.SOCK_STREAM)
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_SCTP)


def _own_address(target: Destination) -> str:
    """Find the address that the kernel would send from.

    An unbound association announces all addresses of the host to its peer, which no address
    translation takes into account.
    """
    with _client(Destination(target.address, target.port, Protocol.UDP)) as finder:
        finder.connect(target.socket_address)
        return str(finder.getsockname()[0])
