"""Generate a steady load of new TCP connections from this network namespace.

    python load_generator.py RATE ADDRESS PORT [ADDRESS PORT...]

It opens RATE connections a second to the targets in turn, reads a line from each, and resets it.
It prints `ready` after the first line and stops when its standard input ends. Then it prints JSON:
`answered` and `retransmitted` are numbers of connections, `failed` has a number for each error.
The kernel sent a packet of a retransmitted connection's handshake more than once. Only the standard
library is used.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import struct
import sys
import time
from collections import Counter
from typing import NamedTuple

TIMEOUT = 30.0
"""Seconds, far more than a loaded machine stalls. A lost packet shows as a retransmission."""

TCP_INFO = struct.Struct("100x I 36x I 8x I 4x")
"""The fields total_retrans, segs_in and data_segs_in of linux/tcp.h."""

RESET = struct.pack("ii", 1, 0)
AT_ONCE = 16
"""The most connections opened at once after a delay by the machine."""


class Pending(NamedTuple):
    """A connection in progress, and its start."""

    client: socket.socket
    target: tuple[str, int]
    began: float


class Load:
    def __init__(self, rate: float, targets: list[tuple[str, int]]) -> None:
        self.period = 1 / rate
        self.targets = targets
        self.selector = selectors.DefaultSelector()
        self.answered = self.retransmitted = self.opened = 0
        self.failed: Counter[str] = Counter()

    def run(self) -> None:
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        next_at = time.monotonic()
        stopping = False
        while not stopping or len(self.selector.get_map()) > 1:
            now = time.monotonic()
            if not stopping:
                for _ in range(min(AT_ONCE, int((now - next_at) / self.period) + 1)):
                    self.open(now)
                    next_at += self.period
            pause = max(0.0, next_at - time.monotonic()) if not stopping else 0.1
            for key, _ in self.selector.select(pause):
                if key.data is None:
                    stopping = not os.read(sys.stdin.fileno(), 1)
                else:
                    self.receive(key.data)
            self.drop_overdue()
            next_at = max(next_at, time.monotonic() - 1)

    def open(self, now: float) -> None:
        target = self.targets[self.opened % len(self.targets)]
        self.opened += 1
        client = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        pending = Pending(client, target, now)
        number = client.connect_ex(target)
        if number not in (0, errno.EINPROGRESS):
            self.fail(pending, errno.errorcode[number])
            return
        self.selector.register(client, selectors.EVENT_READ, pending)

    def receive(self, pending: Pending) -> None:
        self.selector.unregister(pending.client)
        try:
            if not pending.client.recv(256):
                self.fail(pending, "closed before a line")
                return
        except OSError as error:
            self.fail(pending, errno.errorcode[error.errno or 0])
            return
        self.retransmitted += retransmitted(pending.client)
        pending.client.close()
        self.answered += 1
        if self.answered == 1:
            print("ready", flush=True)

    def drop_overdue(self) -> None:
        limit = time.monotonic() - TIMEOUT
        # The map has them in the order of their opening.
        for key in list(self.selector.get_map().values()):
            pending: Pending | None = key.data
            if pending is None:
                continue
            if pending.began > limit:
                return
            self.selector.unregister(pending.client)
            self.fail(pending, "timed out")

    def fail(self, pending: Pending, what: str) -> None:
        pending.client.close()
        address, port = pending.target
        self.failed[f"{address} {port}: {what}"] += 1


def retransmitted(client: socket.socket) -> bool:
    """Return whether either end sent a packet of the handshake again.

    The time that a connection takes does not show it, because a loaded machine delays processes.
    """
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
    own, received, with_data = TCP_INFO.unpack(info)
    # The SYN-ACK is the only packet without data until the client resets the connection.
    return bool(own or received - with_data > 1)


def main() -> None:
    rate, *rest = sys.argv[1:]
    targets = list(zip(rest[::2], map(int, rest[1::2]), strict=True))
    load = Load(float(rate), targets)
    with contextlib.suppress(KeyboardInterrupt):
        load.run()
    counts = {"answered": load.answered, "retransmitted": load.retransmitted}
    print(json.dumps(counts | {"failed": load.failed}))


if __name__ == "__main__":
    main()
