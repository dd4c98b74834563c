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


class Ailments:
    """The problems that objects have now, each by where it was found.

    `report` is called with each new problem, to make an Event of it.
    """

    def __init__(self, report: Callable[[Problem], None]) -> None:
        self._report = report
        self._known: dict[tuple[str, Subject], tuple[Problem, ...]] = {}

    def found(self, by: str, subject: Subject, problems: Iterable[Problem]) -> None:
        """Replace what `by` has found about an object; nothing means that it is well."""
        now = tuple(problems)
        before = self._known.get((by, subject), ())
        if now == before:
            return
        for problem in now:
            if problem not in before:
                log.warning("set aside: %s", problem)
                self._report(problem)
        if now:
            self._known[by, subject] = now
        else:
            del self._known[by, subject]
            log.info("no longer set aside: %s %s", *subject)

    def counts(self) -> dict[Kind, int]:
        """Count the objects that have a problem."""
        ailing = {subject for _, subject in self._known}
        by_kind = Counter(kind for kind, _ in ailing)
        return {kind: by_kind[kind.value] for kind in Kind}
