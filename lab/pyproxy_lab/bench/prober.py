"""Connections through the rules, one after the other: the responding pod and the latency."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Sequence

import msgspec

from pyproxy_lab.bench.shape import POD_PORT, PORT, cluster_ip, pod_ip
from pyproxy_lab.namespace import LabError, Namespace

_TRY = 0.25
_PAUSE = 0.001
_RESET = struct.pack("=ii", 1, 0)


def request(address: str, port: int, patience: float = _TRY) -> str:
    """Connect once and return the address of the responding pod, empty for none."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(patience)
        # A reset leaves no port in TIME_WAIT; there are 28,000 ports.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        try:
            client.connect((address, port))
            return client.recv(64).decode()
        except OSError:
            return ""


class Prober:
    """Connects from the client's namespace; one attempt takes `attempt` seconds at most."""

    def __init__(self, client: Namespace, attempt: float = _TRY) -> None:
        self._client = client
        self._attempt = attempt

    def until(
        self, service: int, holds: Callable[[str], bool], patience: float, alive: Callable[[], None]
    ) -> float:
        """Connect to a Service until its response holds, and return the time.

        `alive` raises LabError where the agent has ended. Raises LabError after `patience` seconds.
        """

        def wait() -> float:
            address = cluster_ip(service)
            deadline = time.monotonic() + patience
            while (now := time.monotonic()) < deadline:
                if holds(request(address, PORT, self._attempt)):
                    return time.monotonic()
                alive()
                time.sleep(_PAUSE)
            raise LabError(f"{address} has not the required response after {now - deadline:.0f} s")

        return self._client.call(wait)

    def services(self, numbers: Sequence[int], each: int) -> Traffic:
        """Connect so many times to each of these Services."""
        return self._traffic([(cluster_ip(number), PORT) for number in numbers], each)

    def pods(self, numbers: Sequence[int], each: int) -> Traffic:
        """Connect to pods themselves, with no translation in between."""
        return self._traffic([(pod_ip(number), POD_PORT) for number in numbers], each)

    def _traffic(self, targets: Sequence[tuple[str, int]], each: int) -> Traffic:
        def connect() -> Traffic:
            taken: list[list[float]] = [[] for _ in targets]
            began = time.perf_counter()
            # By turns, so that a disturbance hits all alike.
            for _ in range(each):
                for seconds, (address, port) in zip(taken, targets, strict=True):
                    start = time.perf_counter()
                    if not request(address, port):
                        raise LabError(f"{address}:{port} did not respond")
                    seconds.append(time.perf_counter() - start)
            total = time.perf_counter() - began
            medians = sorted(sorted(seconds)[len(seconds) // 2] for seconds in taken)
            return Traffic(
                len(targets) * each / total, medians[0], medians[len(medians) // 2], medians[-1]
            )

        return self._client.call(connect)


class Traffic(msgspec.Struct, frozen=True):
    """Connections a second, one after the other, and seconds from connect to the first response.

    Those are medians of the best, the middle and the worst of all targets.
    """

    connections: float
    best: float
    median: float
    worst: float
