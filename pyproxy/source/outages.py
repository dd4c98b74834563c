"""Failing requests to the API server: a log line for each cause, and the present ones."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pyproxy.errors import SourceError
from pyproxy.model.config_problems import ConfigProblem, ConfigTopic
from pyproxy.model.objects import Kind
from pyproxy.source.client import ApiStatusError, UnreachableError
from pyproxy.source.diagnosis import diagnose

log = logging.getLogger(__name__)

_Cause = tuple[object, ...]
"""The class of an error, or its topic, with the status and the kind if these belong to it."""


class OutageLog:
    """Log lines about failing requests: one when an outage begins and one when it ends.

    An unreachable server and refused credentials are one outage of all kinds together. Any other
    error, such as a missing right, is logged once for its kind, and again when the error changes.
    During an outage each cause is logged once, however often causes alternate. `proxy` returns the
    URL of the HTTP proxy in use. Thread-safe.
    """

    def __init__(self, proxy: Callable[[], str] = str) -> None:
        self._proxy = proxy
        self._lock = threading.Lock()
        self._unreachable: set[Kind] = set()
        self._errors: dict[Kind, _Cause] = {}
        self._logged: set[_Cause] = set()
        self._problems: dict[Kind, ConfigProblem] = {}

    def failed(self, kind: Kind, error: SourceError) -> None:
        """Note that a request for this kind failed."""
        problem = diagnose(error, self._proxy())
        with self._lock:
            cause = _cause(kind, error, problem)
            fix = f": {problem.fix}" if problem else ""
            if problem:
                self._problems[kind] = problem
            else:
                self._problems.pop(kind, None)
            if isinstance(error, UnreachableError):
                if cause not in self._logged:
                    log.warning(
                        "the API server is unreachable; the last known state stays programmed: "
                        "%s%s",
                        error,
                        fix,
                    )
                self._unreachable.add(kind)
            else:
                if cause not in self._logged and self._errors.get(kind) != cause:
                    log.warning("cannot watch %s objects: %s%s", kind.value, error, fix)
                self._errors[kind] = cause
            # Causes of one kind alone are few, and are compared with its last one.
            if _is_shared(error, problem):
                self._logged.add(cause)

    def succeeded(self, kind: Kind) -> None:
        """Note that a request for this kind succeeded."""
        with self._lock:
            self._problems.pop(kind, None)
            if kind in self._unreachable:
                self._unreachable.remove(kind)
                if not self._unreachable:
                    log.info("the API server is reachable again")
            if self._errors.pop(kind, None):
                log.info("watching %s objects again", kind.value)
            if not (self._unreachable or self._errors):
                self._logged.clear()

    def problems(self) -> tuple[ConfigProblem, ...]:
        """Return the mistakes that the present failures show, each once."""
        with self._lock:
            found = list(self._problems.values())
        shared: dict[object, ConfigProblem] = {}
        for each in found:
            # The message of a missing right names the resource; other ones differ by the path only.
            is_own = each.topic is ConfigTopic.API_FORBIDDEN
            shared.setdefault((each.topic, each.message if is_own else ""), each)
        return tuple(shared.values())


def _is_shared(error: SourceError, problem: ConfigProblem | None) -> bool:
    """Return whether an error concerns the requests for all kinds alike."""
    if isinstance(error, UnreachableError):
        return True
    return problem is not None and problem.topic is not ConfigTopic.API_FORBIDDEN


def _cause(kind: Kind, error: SourceError, problem: ConfigProblem | None) -> _Cause:
    if _is_shared(error, problem) and problem is not None:
        return (problem.topic,)
    return (type(error), error.status if isinstance(error, ApiStatusError) else 0, kind)
