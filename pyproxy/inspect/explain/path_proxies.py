"""Other proxies that serve the addresses of a Service."""

from __future__ import annotations

from pyproxy.hostnet.not_read import NotRead
from pyproxy.inspect.explain.step import Result, Step, not_checked
from pyproxy.inspect.facts import Facts

NAME = "proxies"


def proxies(facts: Facts) -> Step:
    """Check that no other proxy serves the same addresses."""
    part = facts.path.proxies
    if isinstance(part, NotRead):
        return not_checked(NAME, part)
    return Step(NAME, Result.UNDECIDED, str(facts.path.paths))
