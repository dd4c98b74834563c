"""Connections from this node to endpoints."""

from __future__ import annotations

from pyproxy.hostnet.not_read import NotRead
from pyproxy.inspect.explain.step import Result, Step, not_checked
from pyproxy.inspect.facts import Facts

NAME = "probes"


def probes(facts: Facts) -> Step:
    """Check that endpoints respond to connections from this node."""
    part = facts.path.probes
    if isinstance(part, NotRead):
        return not_checked(NAME, part)
    return Step(NAME, Result.UNDECIDED, str(facts.path.paths))
