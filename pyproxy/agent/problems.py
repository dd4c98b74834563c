"""The problems of the cluster's objects: each is logged and reported once, and counted."""

from __future__ import annotations

import enum
import logging
from collections import Counter
from collections.abc import Callable, Iterable

from pyproxy import logs
from pyproxy.errors import Problem, ProblemList, merged
from pyproxy.model.objects import Kind

log = logging.getLogger(__name__)

Subject = tuple[str, str]
"""An object's kind and name."""

_REMEMBERED = 10_000
"""Objects whose last problems are remembered, so that a new list does not log them again."""


class ProblemSource(enum.Enum):
    """The step that finds a problem; each replaces its own findings only."""

    DECODING = "decoding"
    ROUTING = "routing"
    CONFLICT = "conflict"
    KERNEL = "kernel"


_Key = tuple[ProblemSource, Subject]


class ProblemTracker:
    """The present problems of all objects, by the step that found them.

    Of many problems that one step finds in one object, the first few are kept, and a summary.
    `report` is called once for the new ones among them, to record an Event. `changed` is true until
    `counts` is called, whenever the number of objects with problems may have changed.
    """

    def __init__(self, report: Callable[[Problem], None]) -> None:
        self._report = report
        self._present: dict[_Key, tuple[Problem, ...]] = {}
        self._logged: dict[_Key, tuple[Problem, ...]] = {}
        self._findings: Counter[Subject] = Counter()
        self._invalid: Counter[str] = Counter()
        self.changed = True

    def __bool__(self) -> bool:
        """Return whether any object has a problem."""
        return bool(self._present)

    def found(self, source: ProblemSource, subject: Subject, problems: Iterable[Problem]) -> None:
        """Replace the problems that one step found in one object; empty if it is valid or gone."""
        now, key = ProblemList(problems).all(), (source, subject)
        if now == self._present.get(key, ()):
            return
        if not now:
            self._forget(key)
            return
        self._add(key)
        self._present[key] = now
        # Removed and added again, so that the entries stay in the order of their last change.
        logged = self._logged.pop(key, ())
        # Few, because `now` is bounded, so this compares few with few.
        new = [problem for problem in now if problem not in logged]
        if new:
            problem = merged(new)
            log.warning("invalid object: %s", problem, extra=logs.about(*subject))
            self._report(problem)
        self._logged[key] = now
        if len(self._logged) > _REMEMBERED:
            del self._logged[next(iter(self._logged))]

    def remove_absent(
        self, source: ProblemSource, kind: Kind, is_present: Callable[[str], bool]
    ) -> None:
        """Remove the findings of one step about objects of a kind that exist no longer."""
        for key in list(self._present):
            of_source, (of_kind, name) = key
            if of_source is source and of_kind == kind.value and not is_present(name):
                self._forget(key)

    def problems(self) -> tuple[Problem, ...]:
        """Return all problems, in the order in which they were found."""
        return tuple(problem for problems in self._present.values() for problem in problems)

    def counts(self) -> dict[Kind, int]:
        """Count the objects that have a problem, and reset `changed`."""
        self.changed = False
        return {kind: self._invalid[kind.value] for kind in Kind}

    def _add(self, key: _Key) -> None:
        if key in self._present:
            return
        _, subject = key
        # An object with problems in several steps is one invalid object in the metric.
        self._findings[subject] += 1
        if self._findings[subject] == 1:
            self._invalid[subject[0]] += 1
            self.changed = True

    def _forget(self, key: _Key) -> None:
        del self._present[key]
        _, subject = key
        self._findings[subject] -= 1
        if not self._findings[subject]:
            del self._findings[subject]
            self._invalid[subject[0]] -= 1
            self.changed = True
