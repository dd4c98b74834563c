"""A steady load of new TCP connections, from the namespace that it is run in.

    python load.py RATE ADDRESS PORT [ADDRESS PORT...]

It opens RATE connections a second to the targets in turn, reads a line from each, and resets it.
It prints `ready` after its first answer, goes on until its standard input ends, and then says what
came of all connections as JSON: `answered` and `late` (after more than a second, so that a packet
was sent again) in numbers, and `failed` by error. It stands alone on the standard library.
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

TIMEOUT = 5.0
LATE = 1.0
RESET = struct.pack("ii", 1, 0)
AT_ONCE = 16
"""Connections opened in one go at most, after a pause that was not ours."""


class Waiting(NamedTuple):
    """A connection that was begun, and from when."""

    client: socket.socket
    target: tuple[str, int]
    began: float


class Load:
    def __init__(self, rate: float, targets: list[tuple[str, int]]) -> None:
        self.period = 1 / rate
        self.targets = targets
        self.selector = selectors.DefaultSelector()
        self.answered = self.late = self.opened = 0
        self.failed: Counter[str] = Counter()

    def run(self) -> None:
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        next_at = time.monotonic()
        ending = False
        while not ending or len(self.selector.get_map()) > 1:
            now = time.monotonic()
            if not ending:
                for _ in range(min(AT_ONCE, int((now - next_at) / self.period) + 1)):
                    self.open(now)
                    next_at += self.period
            pause = max(0.0, next_at - time.monotonic()) if not ending else 0.1
            for key, _ in self.selector.select(pause):
                if key.data is None:
                    ending = not os.read(sys.stdin.fileno(), 1)
                else:
                    self.handle_event(key.data)
            self.give_up()
            next_at = max(next_at, time.monotonic() - 1)

    def open(self, now: float) -> None:
        target = self.targets[self.opened % len(self.targets)]
        self.opened += 1
        client = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        waiting = Waiting(client, target, now)
        number = client.connect_ex(target)
        if number not in (0, errno.EINPROGRESS):
            self.fail(waiting, errno.errorcode[number])
            return
        self.selector.register(client, selectors.EVENT_READ, waiting)

    def handle_event(self, waiting: Waiting) -> None:
        self.selector.unregister(waiting.client)
        try:
            if not waiting.client.recv(256):
                self.fail(waiting, "closed without a word")
                return
        except OSError as error:
            self.fail(waiting, errno.errorcode[error.errno or 0])
            return
        waiting.client.close()
        self.late += time.monotonic() - waiting.began > LATE
        self.answered += 1
        if self.answered == 1:
            print("ready", flush=True)

    def give_up(self) -> None:
        limit = time.monotonic() - TIMEOUT
        # They are in the order in which they were opened.
        for key in list(self.selector.get_map().values()):
            waiting: Waiting | None = key.data
            if waiting is None:
                continue
            if waiting.began > limit:
                return
            self.selector.unregister(waiting.client)
            self.fail(waiting, "no answer")

    def fail(self, waiting: Waiting, what: str) -> None:
        waiting.client.close()
        address, port = waiting.target
        self.failed[f"{address} {port}: {what}"] += 1


def main() -> None:
    rate, *rest = sys.argv[1:]
    targets = list(zip(rest[::2], map(int, rest[1::2]), strict=True))
    load = Load(float(rate), targets)
    with contextlib.suppress(KeyboardInterrupt):
        load.run()
    print(json.dumps({"answered": load.answered, "late": load.late, "failed": load.failed}))


if __name__ == "__main__":
    main()
