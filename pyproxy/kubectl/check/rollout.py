"""Rollout under load: an endpoint is deleted while clients connect, and no connection may fail."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from pyproxy.errors import PyproxyError, one_line
from pyproxy.kubectl.check import plan
from pyproxy.kubectl.check.ask_pods import Pods, Question
from pyproxy.kubectl.check.cluster import CheckNamespace
from pyproxy.kubectl.check.objects import Pod
from pyproxy.kubectl.check.plan import ConnectionTest

_FLOOD = 4.0
_DELETE_AFTER = 1.0
"""Seconds of connections to a Service, and of those before one of its endpoints is deleted."""

_LONGEST_TEXT = 300


def roll_out(
    pods: Pods, namespace: CheckNamespace, tests: Iterable[ConnectionTest], endpoints: Sequence[Pod]
) -> dict[ConnectionTest, str]:
    """Delete the first endpoint while clients connect, and return the problem of each test.

    Blocks; raises UsageError if the user may not run commands in pods.
    """
    deletion = _Deletion(namespace, endpoints[0])
    timer = threading.Timer(_DELETE_AFTER, deletion.run)
    timer.daemon = True
    timer.start()
    try:
        found = pods.ask(tests, Question(0.0, _FLOOD))
    finally:
        timer.cancel()
    # Without the deletion, connections that succeed prove nothing.
    return {test: problem or deletion.problem for test, problem in found.items()}


def tests_of(results: dict[ConnectionTest, str]) -> list[ConnectionTest]:
    """Return the tests of a rollout whose Service works so far."""
    return [test for test, problem in results.items() if test.name == plan.ROLLOUT and not problem]


class _Deletion:
    """The deletion of an endpoint; `problem` is empty once the API server has accepted it."""

    def __init__(self, namespace: CheckNamespace, pod: Pod) -> None:
        self._namespace = namespace
        self._pod = pod
        self.problem = "the clients ended before an endpoint was deleted"

    def run(self) -> None:
        """Delete the endpoint."""
        try:
            self._namespace.delete_pod(self._pod)
        except PyproxyError as error:
            self.problem = one_line(f"cannot delete an endpoint: {error}", _LONGEST_TEXT)
        else:
            self.problem = ""
