"""Repeated requests in the background of other actions."""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType
from typing import Self

from pyproxy.model.destination import Destination
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.probe import request

_PAUSE = 0.005
_TIMEOUT = 2.0


class Traffic:
    """A context manager: inside it a client sends requests a few milliseconds apart.

    `responses` counts them by pod, and `failures` has the errors; both are complete after the end.
    """

    def __init__(self, namespace: Namespace, target: Destination) -> None:
        self.responses: Counter[str] = Counter()
        self.failures: list[str] = []
        self._target = target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=namespace.call, args=(self._send,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def total(self) -> int:
        """The number of requests that have ended, with or without a response."""
        return self.responses.total() + len(self.failures)

    def _send(self) -> None:
        while not self._stop.wait(_PAUSE):
            try:
                pod, _, _ = request(self._target, timeout=_TIMEOUT).partition(" ")
            except OSError as error:
                self.failures.append(str(error))
                continue
            if pod:
                self.responses[pod] += 1
            else:
                self.failures.append("connection closed without a response")
