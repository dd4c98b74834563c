"""What is wrong with which object: logged once, counted while it lasts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable

from pyproxy.errors import Problem
from pyproxy.model.objects import Kind

log = logging.getLogger(__name__)

Subject = tuple[str, str]
"""An object's kind and name."""

_REMEMBERED = 10_000
"""Objects of which is known what was said last, so that a list read anew does not repeat it."""


class ProblemTracker:
    """The problems that objects have now, each by where it was found.

    `report` is called with each new problem, to make an Event of it. `changed` says that another
    number of objects has one than when they were last counted, or that they never were.
    """

    def __init__(self, report: Callable[[Problem], None]) -> None:
        self._report = report
        self._known: dict[tuple[str, Subject], tuple[Problem, ...]] = {}
        self._said: dict[tuple[str, Subject], tuple[Problem, ...]] = {}
        self._findings: Counter[Subject] = Counter()
        self._troubled: Counter[str] = Counter()
        self.changed = True

    def __bool__(self) -> bool:
        """Whether anything is wrong with any object."""
        return bool(self._known)

    def found(self, by: str, subject: Subject, problems: Iterable[Problem]) -> None:
        """Replace what `by` has found about an object; nothing means that it is well, or gone."""
        now, key = tuple(problems), (by, subject)
        if now == self._known.get(key, ()):
            return
        if not now:
            self._forget(key)
            return
        self._note(key)
        self._known[key] = now
        said = self._said.pop(key, ())
        for problem in now:
            if problem not in said:
                log.warning("set aside: %s", problem)
                self._report(problem)
        self._said[key] = now
        if len(self._said) > _REMEMBERED:
            del self._said[next(iter(self._said))]

    def remain(self, by: str, kind: Kind, is_there: Callable[[str], bool]) -> None:
        """Forget what `by` has found about those objects of a kind that are not there any more."""
        for key in list(self._known):
            found_by, (of_kind, name) = key
            if found_by == by and of_kind == kind.value and not is_there(name):
                self._forget(key)

    def problems(self) -> tuple[Problem, ...]:
        """Give them all."""
        return tuple(problem for problems in self._known.values() for problem in problems)

    def counts(self) -> dict[Kind, int]:
        """Count the objects that have a problem; until the next one `changed` is false."""
        self.changed = False
        return {kind: self._troubled[kind.value] for kind in Kind}

    def _note(self, key: tuple[str, Subject]) -> None:
        if key in self._known:
            return
        _, subject = key
        self._findings[subject] += 1
        if self._findings[subject] == 1:
            self._troubled[subject[0]] += 1
            self.changed = True

    def _forget(self, key: tuple[str, Subject]) -> None:
        del self._known[key]
        _, subject = key
        self._findings[subject] -= 1
        if not self._findings[subject]:
            del self._findings[subject]
            self._troubled[subject[0]] -= 1
            self.changed = True
