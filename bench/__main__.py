"""`python -m bench`: what the agent costs inside, against the floor and its targets."""

from __future__ import annotations

import argparse
import os
import sys

from bench.counts import complaints, count, read_baseline, write_baseline
from bench.floor import floor
from bench.hottest import print_hottest
from bench.inside import cost_of_change, first_syncs
from pyproxy.bench.figures import duration, heading, row
from pyproxy.bench.place import own_place
from pyproxy.bench.shape import Size
from pyproxy.errors import PyproxyError, UsageError

FIRST_SYNCS = {Size(10_000, 10): 1.0, Size(5_000, 50): 2.5, Size(44_000, 1): 2.0}
"""Seconds from lists heard to kernel programmed that must not be exceeded."""

CHANGE, CHANGE_P99, EVEN = 0.003, 0.015, 1.5
"""Seconds of a change, its median and its p99; and how far medians may lie apart by size."""

CHANGED = [Size(services, 10) for services in (100, 1_000, 10_000, 40_000)]


def main() -> int:
    options = _options()
    try:
        with own_place():
            if options.profile:
                print_hottest(Size(10_000, 10))
                return 0
            if options.check:
                return _check()
            return _measure(options)
    except UsageError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except PyproxyError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--changes", type=int, default=1_000, help="changes (default 1000)")
    parser.add_argument("--runs", type=int, default=3, help="first syncs (default 3)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--profile", action="store_true", help="print where the first sync's time goes, and end"
    )
    what.add_argument(
        "--check", action="store_true", help="hold what can be counted against the baseline, only"
    )
    what.add_argument(
        "--write-baseline", action="store_true", help="have these figures be the baseline"
    )
    options = parser.parse_args()
    if options.changes < 2 or options.runs < 1:
        parser.error("at least 2 changes and 1 run are needed")
    return options


def _check() -> int:
    found = complaints(read_baseline(), count())
    print("\n".join(found) or "no count has grown")
    return 1 if found else 0


def _measure(options: argparse.Namespace) -> int:
    load = os.getloadavg()[0]
    print(f"on {os.cpu_count()} CPUs, of which others kept {load:.1f} busy a moment ago")
    # First, for what a process has done before is counted too.
    counts = count()
    ratios: dict[str, float] = {}
    met = _print_first_syncs(options.runs, options.changes, ratios)
    met &= _print_changes(options.changes)
    if options.write_baseline:
        write_baseline(counts, ratios)
    else:
        _print_ratios(ratios)
    print("\nall targets are met" if met else "\nNOT all targets are met", flush=True)
    return 0 if met else 1


def _print_first_syncs(runs: int, changes: int, ratios: dict[str, float]) -> bool:
    met = True
    for size, limit in FIRST_SYNCS.items():
        heading(f"{size}, {runs} times")
        base = floor(size, changes, runs)
        row("floor: packing, and nothing else", base.packing.ends)
        row("floor: sending, the kernel's work included", base.sending.ends)
        row("floor: one element", str(base.change))
        first, again = first_syncs(size, runs)
        ratios[f"first sync of {size}"] = first.median / base.everything
        row("lists heard to kernel programmed", first.ends, _target(first.median, limit))
        row("the same on a kernel that holds it all: nothing written", again.ends)
        met &= first.median < limit
    return met


def _print_changes(changes: int) -> bool:
    heading("One change: watch event read to kernel programmed, endpoints of one Service")
    medians = []
    met = True
    for size in CHANGED:
        cost = cost_of_change(size, changes)
        row(str(size), str(cost.seconds), _target(cost.seconds.median, CHANGE))
        row("", f"{cost.messages:.2f} netlink messages, {cost.size:.0f} bytes")
        medians.append(cost.seconds.median)
        met &= cost.seconds.median < CHANGE and cost.seconds.p99 < CHANGE_P99
    apart = max(medians) / min(medians)
    row("the slowest median by the fastest", f"{apart:.2f}", "" if apart < EVEN else "BEYOND 1.5")
    return met and apart < EVEN


def _print_ratios(ratios: dict[str, float]) -> None:
    heading("By the floor's time, now and in the baseline")
    for name, was in read_baseline().ratios.items():
        row(name, f"{ratios.get(name, 0):.1f}", f"was {was:.1f}")


def _target(value: float, limit: float) -> str:
    return f"{'within' if value < limit else 'BEYOND'} {duration(limit)}"


if __name__ == "__main__":
    sys.exit(main())
