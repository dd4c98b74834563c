"""The sysctls on the way of a Service's packets."""

from __future__ import annotations

from pyproxy.hostnet.not_read import NotRead
from pyproxy.inspect.explain.step import Result, Step, not_checked
from pyproxy.inspect.facts import Facts

NAME = "switches"


def switches(facts: Facts) -> Step:
    """Check that no sysctl stops the packets."""
    part = facts.path.switches
    if isinstance(part, NotRead):
        return not_checked(NAME, part)
    return Step(NAME, Result.UNDECIDED, str(facts.path.paths))
