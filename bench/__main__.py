"""`python -m bench`: the figures of an agent at scale, and what each is held against."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from bench.apiserver import api_server
from bench.figures import Spread, duration, heading, mebibytes, row
from bench.floor import Floor, floor
from bench.hottest import print_hottest
from bench.inside import cost_of_change
from bench.objects import Size
from bench.place import own_namespace
from bench.process import Observed, Start, observe
from pyproxy.errors import PyproxyError, UsageError

FIRST_SYNC, CHANGE, MEMORY = 1.5, 0.010, 200 << 20
"""What must not be exceeded: seconds, seconds, bytes."""


def main() -> int:
    options = _options()
    size = Size(options.services, options.endpoints)
    try:
        with own_namespace(local_pods=size.endpoints):
            if options.profile:
                print_hottest(size)
                return 0
            return _measure(size, options.changes, options.runs)
    except UsageError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except PyproxyError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--services", type=int, default=10_000, help="Services (default 10000)")
    parser.add_argument("--endpoints", type=int, default=10, help="endpoints of each (default 10)")
    parser.add_argument("--changes", type=int, default=1_000, help="changes (default 1000)")
    parser.add_argument("--runs", type=int, default=3, help="starts of the agent (default 3)")
    parser.add_argument(
        "--profile", action="store_true", help="print where the first sync's time goes, and end"
    )
    options = parser.parse_args()
    if options.services < 1 or options.endpoints < 2 or options.changes < 2 or options.runs < 1:
        parser.error("at least 1 service, 2 endpoints, 2 changes and 1 run are needed")
    return options


def _measure(size: Size, changes: int, runs: int) -> int:
    print(f"{size}; changes are {changes:,} times one endpoint that goes or comes")
    load = os.getloadavg()[0]
    print(f"on {os.cpu_count()} CPUs, of which others kept {load:.1f} busy a moment ago")
    base = floor(size, changes, runs)
    heading("The floor: the same elements packed and sent, nothing else")
    row("all: packing", base.packing.ends)
    row("all: sending, the kernel's work included", base.sending.ends)
    row("one element", str(base.change))
    with tempfile.TemporaryDirectory(prefix="pyproxy-bench-") as folder, api_server(size) as url:
        observed = [observe(url, size, changes, Path(folder)) for _ in range(runs)]
    met = _print_starts([each.start for each in observed], base)
    _print_changes(observed[-1])
    heading("One change inside the agent: watch event read to kernel programmed, exact")
    for services in (100, 1_000):
        if services < size.services:
            _print_change(Size(services, size.endpoints), changes)
    met &= _print_change(size, changes, base) < CHANGE
    print("\nall targets are met" if met else "\nNOT all targets are met", flush=True)
    return 0 if met else 1


def _print_starts(starts: list[Start], base: Floor) -> bool:
    heading(f"{len(starts)} starts of the agent as a process, its API server in another")
    first_sync = Spread([start.first_sync for start in starts])
    peak = max(start.peak for start in starts)
    row(
        "start to the first connection answered",
        Spread([start.first_answer for start in starts]).ends,
    )
    row(
        "lists complete to kernel programmed",
        first_sync.ends,
        _against(first_sync.median, FIRST_SYNC, base.everything),
    )
    row("", "(all lists heard, to the kernel's acknowledgement)")
    row("CPU until then", Spread([start.cpu for start in starts]).ends)
    row("memory at its peak (VmHWM)", mebibytes(peak), _target(peak < MEMORY, mebibytes(MEMORY)))
    return first_sync.median < FIRST_SYNC and peak < MEMORY


def _print_changes(observed: Observed) -> None:
    heading("Changes, one at a time, by the last of them")
    row("request to the API to the kernel's notification", str(observed.written))
    row("watch event read to kernel programmed, its own mean", duration(observed.read_to_kernel))
    row("CPU for a change", duration(observed.change_cpu))
    row("memory after the changes (VmRSS)", mebibytes(observed.steady))


def _print_change(size: Size, changes: int, base: Floor | None = None) -> float:
    cost = cost_of_change(size, changes)
    median = cost.seconds.median
    against = _against(median, CHANGE, base.change.median) if base else ""
    row(str(size), str(cost.seconds), against)
    row("", f"{cost.messages:.2f} netlink messages, {cost.size:.0f} bytes")
    return median


def _against(value: float, limit: float, base: float) -> str:
    return f"{value / base:.1f} x the floor; {_target(value < limit, duration(limit))}"


def _target(met: bool, limit: str) -> str:
    return f"{'within' if met else 'BEYOND'} {limit}"


if __name__ == "__main__":
    sys.exit(main())
