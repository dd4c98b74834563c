"""Attacks by clients: connections, packets and requests, in a process of their own.

    python -m bench.hostile_clients idle-connections ADDRESS PORT
    python -m bench.hostile_clients affinity-fill ADDRESS PORT
    python -m bench.hostile_clients page-readers ADDRESS PORT
    python -m bench.hostile_clients askers SOCKET

It prints `ready` once the attack is under way, and ends when its standard input does. Then it
prints the number of connections, packets or responses.
"""

from __future__ import annotations

import http.client
import itertools
import os
import resource
import select
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from pyproxy_lab.bench.shape import NAMESPACE, service_name

from pyproxy.errors import PyproxyError
from pyproxy.inspect.client import Client
from pyproxy.inspect.queries import DESIRED, SERVICES, STATUS, NoArgs, ServicesArgs

_IDLE, _NEW = 2_000, 1_000
"""Connections that stay open, and new ones a second."""

_PACKETS = 20_000
"""Packets a second, each of another client."""

_READERS, _ASKERS = 8, 4
_TICK = 0.01
_NICE = 5
"""So that on a machine with few processors the attack is not the fault of the scheduler alone."""


def main() -> None:
    """Attack until standard input ends."""
    name, *words = sys.argv[1:]
    os.nice(_NICE)
    steps = _ATTACKS[name](words)
    count = next(steps)
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0.0)[0]:
        count += next(steps)
    print(count, flush=True)
    # Threads of the attack may be in the middle of a request.
    os._exit(0)


def _connections(words: Sequence[str]) -> Iterator[int]:
    """Keep connections open and send nothing; each step opens those that are due."""
    target = (words[0], int(words[1]))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    held: deque[socket.socket] = deque(_connection(target) for _ in range(_IDLE))
    yield len(held)
    for due in _due(_NEW):
        for _ in range(due):
            held.append(_connection(target))
            # The newest stay, so that there are as many idle ones at any time.
            held.popleft().close()
        yield due


def _connection(target: tuple[str, int]) -> socket.socket:
    client = socket.socket()
    client.setblocking(False)
    # A reset leaves no port in TIME_WAIT; there are 28,000 ports.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    client.connect_ex(target)
    return client


def _packets(words: Sequence[str]) -> Iterator[int]:
    """Send UDP packets to a frontend, each from another address of 100.64.0.0/10."""
    address, port = socket.inet_aton(words[0]), int(words[1])
    sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    numbers = itertools.count(1)
    yield 0
    for due in _due(_PACKETS):
        for number in itertools.islice(numbers, due):
            source = (100 << 24 | 64 << 16) + number % (1 << 22)
            udp = struct.pack("!HHHH", 1_024 + number % 60_000, port, 9, 0) + b"?"
            head = struct.pack("!BBHHHBBHI", 0x45, 0, 0, 0, 0, 64, 17, 0, source) + address
            with suppress(OSError):
                sender.sendto(head + udp, (words[0], 0))
        yield due


def _readers(words: Sequence[str]) -> Iterator[int]:
    """Read the page of the node, that of a Service, and the charts, in as many threads."""

    def read(turn: int) -> None:
        paths = ("/", f"/services/{NAMESPACE}/{service_name(turn % 1_000)}", "/timeline")
        connection = http.client.HTTPConnection(words[0], int(words[1]), timeout=10)
        connection.request("GET", paths[turn % len(paths)])
        connection.getresponse().read()
        connection.close()

    return _threads(_READERS, read)


def _askers(words: Sequence[str]) -> Iterator[int]:
    """Ask for all Services, their desired state and the status over the agent's socket."""
    client = Client(words[0])

    def ask(turn: int) -> None:
        match turn % 3:
            case 0:
                client.query(SERVICES, ServicesArgs())
            case 1:
                client.query(DESIRED, NoArgs())
            case _:
                client.query(STATUS, NoArgs())

    return _threads(_ASKERS, ask)


def _threads(number: int, act: Callable[[int], None]) -> Iterator[int]:
    done: deque[int] = deque()

    def run(first: int) -> None:
        # Each begins with another request, because one for all Services takes seconds.
        for turn in itertools.count(first):
            with suppress(OSError, http.client.HTTPException, PyproxyError):
                act(turn)
                done.append(turn)

    for first in range(number):
        threading.Thread(target=run, args=(first,), daemon=True).start()
    before = 0
    while True:
        yield len(done) - before
        before = len(done)
        time.sleep(_TICK)


def _due(rate: float) -> Iterator[int]:
    """Yield, after a pause each time, how many are due at a rate."""
    began, done = time.monotonic(), 0
    while True:
        time.sleep(_TICK)
        due = int((time.monotonic() - began) * rate) - done
        done += due
        # After a pause of the machine, the rate is not made up for.
        yield min(due, int(rate * _TICK * 10))


_ATTACKS: Mapping[str, Callable[[Sequence[str]], Iterator[int]]] = {
    "idle-connections": _connections,
    "affinity-fill": _packets,
    "page-readers": _readers,
    "askers": _askers,
}


if __name__ == "__main__":
    main()
