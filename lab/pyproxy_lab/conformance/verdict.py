"""Compare a probe's outcome with its required result; pure functions."""

from __future__ import annotations

from collections.abc import Set

from pyproxy_lab.conformance.cases import Probe
from pyproxy_lab.probe import Outcome


def holds(wanted: Probe, seen: Outcome, own: Set[str]) -> bool:
    """Compare; `own` are the client's addresses, to tell a kept source from a rewritten one."""
    if wanted.expect is not None:
        return _blocked(wanted, seen)
    return (
        not (seen.refused or seen.dropped)
        and _backends(wanted, seen)
        and _fair(wanted, seen)
        and _source(wanted, seen, own)
    )


def _blocked(wanted: Probe, seen: Outcome) -> bool:
    match wanted.expect:
        case "refused":
            return seen.refused > 0 and not (seen.reached or seen.dropped)
        case "dropped":
            return seen.dropped > 0 and not (seen.reached or seen.refused)
        case _:
            return bool(seen.refused or seen.dropped) and not seen.reached


def _backends(wanted: Probe, seen: Outcome) -> bool:
    if wanted.reach == "one":
        return len(seen.reached) == 1
    return set(seen.reached) == set(wanted.reach or ())


def _fair(wanted: Probe, seen: Outcome) -> bool:
    """Whether every backend is within `fair` (a part of 1) of an equal share."""
    if wanted.fair is None:
        return True
    share = sum(seen.reached.values()) / len(seen.reached)
    return all(abs(count - share) <= wanted.fair * share for count in seen.reached.values())


def _source(wanted: Probe, seen: Outcome, own: Set[str]) -> bool:
    match wanted.source:
        case "kept":
            return seen.sources <= own
        case "rewritten":
            return not seen.sources & own
        case _:
            return True


def describe(wanted: Probe) -> str:
    """Return the required result of a probe as text."""
    if wanted.expect is not None:
        return wanted.expect
    reach = "one backend alone" if wanted.reach == "one" else ", ".join(wanted.reach or ())
    extras = [f"source {wanted.source}"] if wanted.source else []
    extras += [f"shares within {wanted.fair:.0%}"] if wanted.fair is not None else []
    return "; ".join([reach, *extras])
