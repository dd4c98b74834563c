"""Services whose clients use up their share of session affinity: counted, logged and reported."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, Metric

from pyproxy.errors import KernelError, Problem, ProblemReason
from pyproxy.model.objects import Kind, ObjectName

log = logging.getLogger(__name__)

_PERIOD = 10.0
"""Seconds between two reads of the kernel's counters."""

_REPEAT = 3_600.0
"""Seconds until a Service is logged again."""

_MOST_LINES = 20
"""Services that are logged at once: a tenant may have many."""


class AffinityRefusals:
    """Reads the connections whose client could not be remembered, and names their Services.

    `read` counts them by Service and frontend, each count since some time of the recent past.
    `clock` is in seconds. All but `collect` belong to the agent's thread.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[ObjectName, Mapping[bytes, int]]],
        report: Callable[[Problem], None],
        clock: Callable[[], float],
    ) -> None:
        self._read = read
        self._report = report
        self._clock = clock
        self._next = 0.0
        self._seen: Mapping[ObjectName, Mapping[bytes, int]] = {}
        self._logged: dict[ObjectName, float] = {}
        self._total = 0

    def collect(self) -> Iterator[Metric]:
        """Yield the counter of refused connections. Any thread; does not block."""
        yield CounterMetricFamily(
            "pyproxy_session_affinity_refused_connections",
            "Connections whose client was not remembered, because its Service's share is used up",
            value=self._total,
        )

    def check(self) -> None:
        """Read the kernel's counters if that is due. Blocks for a small dump."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + _PERIOD
        try:
            found = self._read()
        except KernelError as error:
            log.debug("cannot read refused clients of session affinity: %s", error)
            return
        grown = {name: _growth(self._seen.get(name, {}), counts) for name, counts in found.items()}
        self._seen = found
        self._total += sum(grown.values())
        self._log({name: count for name, count in grown.items() if count}, now)

    def _log(self, refused: Mapping[ObjectName, int], now: float) -> None:
        self._logged = {name: at for name, at in self._logged.items() if now - at < _REPEAT}
        new = sorted(refused.keys() - self._logged.keys())
        for name in new[:_MOST_LINES]:
            self._logged[name] = now
            problem = Problem(
                Kind.SERVICE.value,
                str(name),
                "spec.sessionAffinity",
                "its clients use up the node's share of session affinity for one Service; further "
                "clients are balanced as without it",
                ProblemReason.SESSION_AFFINITY_FULL,
            )
            log.warning("%s (%d connections)", problem, refused[name])
            self._report(problem)
        if len(new) > _MOST_LINES:
            log.warning("session affinity is full for %d more Services", len(new) - _MOST_LINES)


def _growth(before: Mapping[bytes, int], now: Mapping[bytes, int]) -> int:
    # The kernel drops a counter when nothing was refused for a while, and starts a new one.
    return sum(
        count - (known if (known := before.get(key, 0)) <= count else 0)
        for key, count in now.items()
    )
