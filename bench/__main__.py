"""`python -m bench`: measure the agent from inside, against the floor and its targets."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping

from pyproxy_lab import modes
from pyproxy_lab.bench.figures import duration, heading, row
from pyproxy_lab.bench.place import Place, own_place
from pyproxy_lab.bench.shape import Size
from pyproxy_lab.modes import LabMode

from bench.audits import print_audits
from bench.bare import bare_loop
from bench.costs import costs_of_changes
from bench.counts import count, grown_counts, read_baseline, write_baseline
from bench.fast_path import print_fast_path
from bench.floor import Floor, floor
from bench.formats import print_formats
from bench.hostile import SIZE, print_hostile
from bench.hottest import print_hottest
from bench.idle import print_idle
from bench.inside import first_syncs
from bench.node_ports import print_node_ports
from bench.outages import print_outages
from bench.questions import print_questions
from bench.repairs import print_repairs
from bench.start import print_starts
from bench.tail import Plan, print_tail
from bench.targets import Targets, held_against, targets
from pyproxy.errors import PyproxyError, UsageError

_NO_FLOOR: Mapping[Size, Floor] = {}


def main() -> int:
    options = _options()
    try:
        with own_place() as place:
            return _run(place, options)
    except UsageError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except PyproxyError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _run(place: Place, options: argparse.Namespace) -> int:  # noqa: PLR0911, PLR0912
    if options.profile:
        print_hottest(Size(10_000, 10))
        return 0
    if options.check:
        return _check()
    if options.formats:
        _print_machine()
        print_formats()
        return 0
    if options.node_ports:
        _print_machine()
        print_node_ports(place, modes.named(options.mode), options.kube_proxy)
        return 0
    if options.start is not None:
        _print_machine()
        size = Size(options.services, options.endpoints)
        print_starts(place, modes.named(options.mode), options.start, size, options.runs)
        return 0
    if options.idle is not None:
        _print_machine()
        print_idle(place, modes.named(options.mode), options.kube_proxy, options.idle)
        return 0
    if options.repairs:
        _print_machine()
        return _conclude(print_repairs(place))
    if options.audits:
        _print_machine()
        return _conclude(print_audits())
    if options.fast_path:
        _print_machine()
        return _conclude(print_fast_path(place, options.runs))
    if options.outages:
        _print_machine()
        return _conclude(print_outages(place))
    if options.hostile is not None:
        _print_machine()
        return _conclude(
            print_hostile(
                place, options.hostile, Size(options.services, SIZE.endpoints), options.seconds
            )
        )
    if options.tail:
        _print_machine()
        plan = Plan(
            Size(options.services, SIZE.endpoints),
            options.tail,
            options.tail_rate,
            options.tail_seconds,
            options.protobuf,
        )
        return _conclude(print_tail(place, plan))
    if options.questions:
        _print_machine()
        return _conclude(print_questions(place, options.questions))
    return _measure(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--mode", default="nftables", help=f"one of {', '.join(modes.MODES)}")
    parser.add_argument("--changes", type=int, help="changes (default 1000 in nftables mode)")
    parser.add_argument(
        "--runs", type=int, default=3, help="first syncs, or runs of --fast-path (default 3)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--profile", action="store_true", help="print a profile of the first sync, and end"
    )
    what.add_argument(
        "--questions",
        nargs="?",
        type=float,
        const=200.0,
        metavar="RATE",
        help="time only pyproxy status and its like, at RATE changes a second (default 200)",
    )
    what.add_argument(
        "--node-ports",
        action="store_true",
        help="time only node ports on many addresses of the node",
    )
    what.add_argument(
        "--idle",
        nargs="?",
        type=float,
        const=60.0,
        metavar="SECONDS",
        help="measure only memory, wakes and CPU time of SECONDS without a change (default 60)",
    )
    what.add_argument(
        "--start",
        nargs="*",
        metavar="NAME=COMMAND",
        help="time only starts and restarts, beside programs with kube-proxy's flags",
    )
    parser.add_argument(
        "--endpoints",
        type=int,
        default=SIZE.endpoints,
        help="endpoints of each Service of --start (default 10)",
    )
    parser.add_argument(
        "--kube-proxy", metavar="PATH", default="", help="kube-proxy, to be measured beside it"
    )
    what.add_argument(
        "--repairs", action="store_true", help="time only repairs of other programs' writes"
    )
    what.add_argument(
        "--audits", action="store_true", help="time only changes while the table is compared"
    )
    what.add_argument(
        "--formats", action="store_true", help="time only the decoding of lists in both formats"
    )
    what.add_argument(
        "--outages", action="store_true", help="time only changes during outages of the API server"
    )
    what.add_argument(
        "--fast-path",
        action="store_true",
        help="measure only connections through a Service, with and without --flow-offload",
    )
    what.add_argument(
        "--hostile",
        nargs="*",
        metavar="ATTACK",
        help="time only single changes alone and during attacks (default all of them)",
    )
    parser.add_argument(
        "--services",
        type=int,
        default=SIZE.services,
        help="Services of --hostile, --start and --tail (default 10000)",
    )
    what.add_argument(
        "--tail",
        nargs="?",
        type=int,
        const=10,
        metavar="RUNS",
        help="time only changes at a rate, and what delays them (default 10 runs)",
    )
    parser.add_argument(
        "--tail-rate", type=float, default=500.0, help="changes a second of --tail (default 500)"
    )
    parser.add_argument("--protobuf", action="store_true", help="have --tail request protobuf")
    parser.add_argument(
        "--tail-seconds", type=float, default=30.0, help="seconds of a run of --tail (default 30)"
    )
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="seconds of each attack (default 8)"
    )
    what.add_argument(
        "--check", action="store_true", help="only compare the counts with the baseline"
    )
    what.add_argument(
        "--write-baseline", action="store_true", help="write these figures as the baseline"
    )
    options = parser.parse_args()
    if (options.changes or 2) < 2 or options.runs < 1:
        parser.error("at least 2 changes and 1 run are needed")
    return options


def _check() -> int:
    found = grown_counts(read_baseline(), count())
    print("\n".join(found) or "no count has grown")
    return 1 if found else 0


def _measure(options: argparse.Namespace) -> int:
    mode = modes.named(options.mode)
    print(f"{mode.name} mode, ", end="")
    _print_machine()
    wanted = targets(mode)
    changes = options.changes or wanted.changes
    if mode is not modes.NFTABLES:
        if mode is modes.IPVS:
            _print_bare(wanted, changes)
        return _conclude(
            _print_first_syncs(wanted, mode, options.runs) & _print_changes(wanted, mode, changes)
        )
    # First, because earlier work of the process would be counted too.
    counts = count()
    ratios: dict[str, float] = {}
    bases = {size: floor(size, changes, options.runs) for size in wanted.first_syncs}
    met = _print_first_syncs(wanted, mode, options.runs, bases, ratios)
    met &= _print_changes(wanted, mode, changes)
    if options.write_baseline:
        write_baseline(counts, ratios)
    else:
        _print_ratios(ratios)
    return _conclude(met)


def _conclude(met: bool) -> int:
    print("\nall targets are met" if met else "\nNOT all targets are met", flush=True)
    return 0 if met else 1


def _print_machine() -> None:
    load = os.getloadavg()[0]
    print(f"on {os.cpu_count()} CPUs, load average {load:.1f}")


def _print_floor(base: Floor) -> None:
    row("floor: packing, and nothing else", base.packing.ends)
    row("floor: sending, the kernel's work included", base.sending.ends)
    row("floor: one element", str(base.change))


def _print_bare(wanted: Targets, changes: int) -> None:
    size = min(wanted.first_syncs, key=lambda each: each.services)
    heading(f"A bare loop over pyroute2, {size}")
    bare = bare_loop(size, changes)
    row("everything", duration(bare.everything))
    row("", f"{bare.calls:,} calls, {duration(bare.everything / bare.calls)} each")
    row("one server", str(bare.change))


def _print_first_syncs(
    wanted: Targets,
    mode: LabMode,
    runs: int,
    bases: Mapping[Size, Floor] = _NO_FLOOR,
    ratios: dict[str, float] | None = None,
) -> bool:
    met = True
    for size, limit in wanted.first_syncs.items():
        heading(f"{size}, {runs} times")
        base = bases.get(size)
        if base is not None:
            _print_floor(base)
        first, again = first_syncs(size, runs, mode)
        if base is not None and ratios is not None:
            ratios[f"first sync of {size}"] = first.median / base.everything
        row("lists read to kernel programmed", first.ends, held_against(first.median, limit))
        row("restart with a complete kernel state: nothing written", again.ends)
        met &= first.median < limit
    return met


def _print_changes(wanted: Targets, mode: LabMode, changes: int) -> bool:
    heading("One change, at each size by turns: watch event read to kernel programmed")
    medians = []
    met = True
    costs = costs_of_changes(wanted.changed, changes, mode)
    for size, cost in zip(wanted.changed, costs, strict=True):
        row(str(size), str(cost.seconds), held_against(cost.seconds.median, wanted.change))
        row("", f"{cost.messages:.2f} {mode.messages}, {cost.size:.0f} bytes")
        medians.append(cost.seconds.median)
        met &= cost.seconds.median < wanted.change and cost.seconds.p99 < wanted.change_p99
    apart = max(medians) / min(medians)
    beyond = "" if apart < wanted.even else f"BEYOND {wanted.even}"
    row("slowest median divided by fastest", f"{apart:.2f}", beyond)
    return met and apart < wanted.even


def _print_ratios(ratios: dict[str, float]) -> None:
    heading("By the floor's time, now and in the baseline")
    for name, was in read_baseline().ratios.items():
        row(name, f"{ratios.get(name, 0):.1f}", f"was {was:.1f}")


if __name__ == "__main__":
    sys.exit(main())
