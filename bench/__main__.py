"""`python -m bench`: the figures of an agent at scale, and what each is held against."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench.apiserver import api_server
from bench.figures import duration, heading, mebibytes, row
from bench.floor import Floor, floor
from bench.hottest import print_hottest
from bench.inside import cost_of_change
from bench.objects import Size
from bench.place import own_namespace
from bench.process import Observed, observe
from pyproxy.errors import PyproxyError, UsageError

FIRST_SYNC, CHANGE, MEMORY = 1.5, 0.010, 200 << 20
"""What must not be exceeded: seconds, seconds, bytes."""

_FULL_SYNC = "kubeproxy_sync_full_proxy_rules_duration_seconds_sum"
_CHANGE = "pyproxy_change_to_kernel_seconds"


def main() -> int:
    options = _options()
    size = Size(options.services, options.endpoints)
    try:
        with own_namespace(local_pods=size.endpoints):
            if options.profile:
                print_hottest(size)
                return 0
            return _measure(size, options.changes)
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
    parser.add_argument(
        "--profile", action="store_true", help="print where the first sync's time goes, and end"
    )
    options = parser.parse_args()
    if options.services < 1 or options.endpoints < 2 or options.changes < 2:
        parser.error("at least 1 service, 2 endpoints and 2 changes are needed")
    return options


def _measure(size: Size, changes: int) -> int:
    print(f"{size}, {changes:,} changes, each one endpoint that goes or comes")
    base = floor(size, changes)
    heading("The floor: the same elements packed and sent, nothing else")
    row("all: packing", duration(base.packing))
    row("all: sending, the kernel's work included", duration(base.sending))
    row("one element", str(base.change))
    with tempfile.TemporaryDirectory(prefix="pyproxy-bench-") as folder, api_server(size) as url:
        observed = observe(url, size, changes, Path(folder))
    return _report(size, changes, base, observed)


def _report(size: Size, changes: int, base: Floor, observed: Observed) -> int:
    first_sync = observed.at_first[_FULL_SYNC]
    heading("The agent as a process, its API server in another")
    row("start to the first connection answered", duration(observed.first_answer))
    row(
        "lists complete to kernel programmed (the first sync)",
        duration(first_sync),
        _against(first_sync, FIRST_SYNC, base.everything),
    )
    row("CPU until then", duration(observed.first_cpu))
    row("request to the API to kernel's notification", str(observed.written))
    row(
        "watch event read to kernel programmed (the agent's mean)",
        duration(observed.grown(f"{_CHANGE}_sum") / observed.grown(f"{_CHANGE}_count")),
    )
    row("CPU a change", duration(observed.change_cpu))
    row(
        "memory: peak (VmHWM)",
        mebibytes(observed.peak),
        _target(observed.peak, MEMORY, mebibytes(MEMORY)),
    )
    row("memory: after the changes (VmRSS)", mebibytes(observed.steady))
    heading("One change inside the agent: watch event read to kernel programmed, exact")
    met = first_sync < FIRST_SYNC and observed.peak < MEMORY
    for services in sorted({number for number in (100, 1000) if number < size.services}):
        _print_change(Size(services, size.endpoints), changes)
    median = _print_change(size, changes, base)
    met &= median < CHANGE
    print("\nall targets are met" if met else "\nNOT all targets are met", flush=True)
    return 0 if met else 1


def _print_change(size: Size, changes: int, base: Floor | None = None) -> float:
    cost = cost_of_change(size, changes)
    median = cost.seconds.median
    against = _against(median, CHANGE, base.change.median) if base else ""
    row(str(size), str(cost.seconds), against)
    row("", f"{cost.messages:.2f} netlink messages, {cost.size:.0f} bytes")
    return median


def _against(value: float, limit: float, base: float) -> str:
    return f"{value / base:.1f} x the floor; {_target(value, limit, duration(limit))}"


def _target(value: float, limit: float, text: str) -> str:
    return f"{'within' if value < limit else 'BEYOND'} {text}"


if __name__ == "__main__":
    sys.exit(main())
