"""The start of an agent: the wait for the Node, and the log line of the first commit."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.commit import Commit
from pyproxy.inspect.humanize import count

log = logging.getLogger(__name__)

NODE_WAIT = 30.0
"""Seconds from the first lists until the first sync, if the API server has no such Node.

kube-proxy waits for five minutes, and then exits. pyproxy serves without the Node, because only
zones, the addresses of node ports and the local mode NodeCIDR depend on it.
"""


class NodeWait:
    """Delays the first sync while the Node is missing; the rules in the kernel stay meanwhile."""

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname
        self.began: float | None = None
        """When the first lists were complete, in monotonic seconds; None before."""

    def due(self, now: float, *, lacks_node: bool) -> float:
        """Return the earliest time for the first sync. Call it once the lists are complete."""
        if self.began is None:
            self.began = now
            if lacks_node:
                log.warning(
                    "waiting up to %.0f s for Node %s before the first sync; "
                    "the rules in the kernel stay",
                    NODE_WAIT,
                    self._hostname,
                )
        return self.began + NODE_WAIT if lacks_node else self.began


class FirstCommit:
    """A commit listener that logs the first commit, and what the start took.

    `started` is the monotonic time of the start, and `clock` returns the time now.
    """

    def __init__(
        self, mode: str, wait: NodeWait, hostname: str, started: float, clock: Callable[[], float]
    ) -> None:
        self._mode = mode
        self._wait = wait
        self._hostname = hostname
        self._started = started
        self._clock = clock
        self._is_logged = False

    def committed(self, commit: Commit, cluster_state: ClusterState) -> None:
        """Log the first commit. Does not block."""
        if self._is_logged:
            return
        self._is_logged = True
        now = self._clock()
        listed = now if self._wait.began is None else self._wait.began
        log.info(
            "serving node %s in %s mode: %s%s, %.2f s after the start: "
            "%.2f s until all lists were read, %.2f s of waiting, %.2f s for the first sync",
            self._hostname,
            self._mode,
            count(len(commit.routings), "service"),
            "" if cluster_state.node is not None else ", without its Node",
            now - self._started,
            listed - self._started,
            max(now - listed - commit.took, 0.0),
            commit.took,
        )
