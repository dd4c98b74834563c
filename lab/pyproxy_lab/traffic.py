"""Requests that go on while something else happens."""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType
from typing import Self

from pyproxy.model.destination import Destination
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.probe import ask

_PAUSE = 0.005
_TIMEOUT = 2.0


class Traffic:
    """A context manager: inside it a client asks again and again, a few milliseconds apart.

    `answers` counts by backend, `failures` says what went wrong; both are whole once it has ended.
    """

    def __init__(self, namespace: Namespace, target: Destination) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._target = target
        self._ending = threading.Event()
        self._thread = threading.Thread(target=namespace.call, args=(self._ask,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._thread.join()

    @property
    def total(self) -> int:
        """How many requests have ended, well or badly."""
        return self.answers.total() + len(self.failures)

    def _ask(self) -> None:
        while not self._ending.wait(_PAUSE):
            try:
                backend, _, _ = ask(self._target, timeout=_TIMEOUT).partition(" ")
            except OSError as error:
                self.failures.append(str(error))
                continue
            if backend:
                self.answers[backend] += 1
            else:
                self.failures.append("taken, and closed without a word")
