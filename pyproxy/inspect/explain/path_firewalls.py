"""Rules of other programs on the way of a Service's packets."""

from __future__ import annotations

from pyproxy.hostnet.not_read import NotRead
from pyproxy.inspect.explain.step import Result, Step, not_checked
from pyproxy.inspect.facts import Facts

NAME = "firewalls"


def firewalls(facts: Facts) -> Step:
    """Check that no rule of another program stops the packets."""
    part = facts.path.firewalls
    if isinstance(part, NotRead):
        return not_checked(NAME, part)
    return Step(NAME, Result.UNDECIDED, str(facts.path.paths))
