"""Count the failures of watches, to find a version from which none works although a list does.

client-go lists again after the first one, unless its status is 429 or the connection was refused.
All nodes would then list at the end of an outage, so here the version is tried again first.

Facts: tools/cache/reflector.go of client-go. kube-apiserver turns errors of etcd's watches, other
than a compaction, into events of type ERROR with status 500.
"""

from __future__ import annotations

from pyproxy.errors import SourceError
from pyproxy.source.client import ApiStatusError
from pyproxy.source.stream import ConnectionLostError, WatchStatusError

MOST_ERROR_EVENTS = 2
"""Watches from one version that may end in an ERROR event until a new list is needed."""

MOST_FAILURES = 10
"""Watches from one version that may fail otherwise, which takes about a minute.

In an outage of a proxy in front of the server all nodes see 5xx, and lists would fail too.
"""


class WatchFailures:
    """The failures of watches from one version, with no newer version between. Not thread-safe."""

    def __init__(self) -> None:
        self._error_events = 0
        self._others = 0

    def clear(self) -> None:
        """Forget the failures, because there is another version."""
        self._error_events = self._others = 0

    def note(self, error: SourceError) -> bool:
        """Count the failure of a watch; return whether a new list is needed."""
        status = error.status if isinstance(error, ApiStatusError) else 0
        if status == 429:
            return False
        if isinstance(error, WatchStatusError):
            self._error_events += 1
        # An unreachable server has no list either.
        elif status >= 500 or isinstance(error, ConnectionLostError):
            self._others += 1
        return self._error_events >= MOST_ERROR_EVENTS or self._others >= MOST_FAILURES
