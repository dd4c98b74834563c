"""The program in the pods of `kubectl pyproxy check`: a server, and a client that reports in JSON.

    python3 -I -c PROGRAM serve NAME PORT
    python3 -I -c PROGRAM connect < line of JSON

The plugin sends this file's text, so that an image needs Python 3.10 or newer and nothing else, and
pods and plugin have the same version. It imports nothing but the standard library.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

CONNECT_TIMEOUT = 1.0
"""Seconds without a response after which a connection is lost."""

_ENOUGH_FAILED = 2
_PAUSE = 0.25
_PARALLEL = 8
_DRAIN = 5.0
"""Seconds for which a server still answers after SIGTERM, while nodes stop using it."""

_LONGEST_NAME = 100

Target = Mapping[str, Any]
"""A destination: `address`, `port`, `protocol` (tcp, the default, or udp), and what is expected.

`tries` is the largest number of connections. `names` are the servers that may answer, `all` is true
if each of them must, `one` if only one may, and `refused` if the connection must be refused.
"""

REFUSED, LOST = "connection refused", "no response"


class Server:
    """Answers on one port of TCP and UDP with its name, until it is ended."""

    def __init__(self, name: str, port: int) -> None:
        self._line = f"{name}\n".encode()
        self._selector = selectors.DefaultSelector()
        listener = _listener(port)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        for family in (socket.AF_INET, socket.AF_INET6):
            bound = _udp(family, port)
            if bound is not None:
                self._selector.register(bound, selectors.EVENT_READ, self._reply)

    def serve(self, ended: Callable[[], bool]) -> None:
        """Answer until `ended` returns true."""
        while not ended():
            for key, _ in self._selector.select(0.2):
                try:
                    key.data(key.fileobj)
                except OSError:
                    continue  # the client has seen the error itself

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(self._line)

    def _reply(self, bound: socket.socket) -> None:
        _, peer = bound.recvfrom(2048)
        bound.sendto(self._line, peer)


def _listener(port: int) -> socket.socket:
    try:
        return socket.create_server(
            ("::", port), family=socket.AF_INET6, backlog=512, dualstack_ipv6=True
        )
    except OSError:
        # The node has no IPv6.
        return socket.create_server(("", port), backlog=512)


def _udp(family: int, port: int) -> socket.socket | None:
    try:
        bound = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(("", port))
    except OSError:
        return None
    bound.setblocking(False)
    return bound


def connect(target: Target) -> str:
    """Connect once, and return the name of the server. Raises TimeoutError, OSError."""
    kind = socket.SOCK_DGRAM if target.get("protocol") == "udp" else socket.SOCK_STREAM
    family = socket.AF_INET6 if ":" in target["address"] else socket.AF_INET
    with socket.socket(family, kind) as sock:
        sock.settimeout(CONNECT_TIMEOUT)
        sock.connect((target["address"], target["port"]))
        if kind == socket.SOCK_DGRAM:
            sock.send(b"?")
        data = sock.recv(2048)
    return data.decode(errors="replace").strip()[:_LONGEST_NAME]


def failure(error: OSError) -> str:
    """Return the error of a connection in words."""
    if isinstance(error, TimeoutError):
        return LOST
    return REFUSED if error.errno == errno.ECONNREFUSED else os.strerror(error.errno or 0).lower()


def attempt(target: Target) -> str:
    """Make all tries of a target, and return what is not as expected, empty if nothing is."""
    seen, failed = Counter[str](), Counter[str]()
    for _ in range(target["tries"]):
        try:
            seen[connect(target)] += 1
        except OSError as error:
            failed[failure(error)] += 1
        if failed.total() >= _ENOUGH_FAILED or _complete(target, seen):
            break
    return judge(target, seen, failed)


def judge(target: Target, seen: Mapping[str, int], failed: Mapping[str, int]) -> str:
    """Return how the outcome of several tries differs from what is expected, else empty text."""
    tries = sum(failed.values()) + sum(seen.values())
    names = target.get("names", ())
    problems = [
        f"{count} of {tries} {what}"
        for what, count in sorted(failed.items())
        if not (target.get("refused") and what == REFUSED)
    ]
    if wrong := sorted(set(seen) - set(names)):
        problems.append(f"answered by {', '.join(wrong)}")
    if target.get("one") and len(seen) > 1:
        problems.append(f"one client was answered by {', '.join(sorted(seen))}")
    if not problems and target.get("all") and (missing := sorted(set(names) - set(seen))):
        problems.append(f"never answered by {', '.join(missing)} in {tries} connections")
    return "; ".join(problems)


def _complete(target: Target, seen: Mapping[str, int]) -> bool:
    return bool(target.get("all")) and set(target["names"]) <= set(seen)


def settle(target: Target, deadline: float) -> str:
    """Repeat `attempt` until the outcome is as expected, or until the deadline has passed.

    Nodes program a new Service some time after the API server has it.
    """
    while (problem := attempt(target)) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    return problem


def flood(target: Target, seconds: float) -> str:
    """Connect again and again, and return the failures, empty if there is none."""
    end = time.monotonic() + seconds
    total, failed = 0, Counter[str]()
    while time.monotonic() < end:
        total += 1
        try:
            connect(target)
        except OSError as error:
            failed[failure(error)] += 1
        time.sleep(0.005)
    return "; ".join(f"{count} of {total} {what}" for what, count in sorted(failed.items()))


def answer(question: Mapping[str, Any]) -> dict[str, list[str]]:
    """Test all targets of a question, and return the problem of each, empty if it has none."""
    targets: Sequence[Target] = question["targets"]
    if seconds := question.get("flood", 0.0):
        return {"problems": [flood(target, seconds) for target in targets]}
    deadline = time.monotonic() + question.get("settle", 0.0)
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return {"problems": list(pool.map(lambda each: settle(each, deadline), targets))}


def _serve(name: str, port: int) -> None:
    stop, ended = threading.Event(), threading.Event()

    def drain(_: int, __: object) -> None:
        if not stop.is_set():
            stop.set()
            timer = threading.Timer(_DRAIN, ended.set)
            timer.daemon = True
            timer.start()

    signal.signal(signal.SIGTERM, drain)
    Server(name, port).serve(ended.is_set)


def main(words: Sequence[str]) -> int:
    """Serve, or answer one question from stdin."""
    if words[:1] == ["serve"]:
        _serve(words[1], int(words[2]))
        return 0
    print(json.dumps(answer(json.loads(sys.stdin.readline()))), flush=True)
    # Threads that wait for a connection must not keep a client that is gone.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
