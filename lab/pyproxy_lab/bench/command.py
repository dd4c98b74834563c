"""`pyproxy bench`: flags, progress and output."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pyproxy.errors import UsageError
from pyproxy.interrupts import interrupted_by
from pyproxy_lab import modes
from pyproxy_lab.bench import cluster, plot, report
from pyproxy_lab.bench.contestant import Contestant, parse
from pyproxy_lab.bench.flags import check_numbers
from pyproxy_lab.bench.fleet import command as fleet
from pyproxy_lab.bench.measures import Run
from pyproxy_lab.bench.place import own_place
from pyproxy_lab.bench.report import Report
from pyproxy_lab.bench.run import Bench, Plan
from pyproxy_lab.bench.shape import Size

_LARGEST = 1 << 19


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    commands = parser.add_subparsers(dest="bench_command", metavar="COMMAND")
    fleet.add_arguments(
        commands.add_parser("fleet", help=fleet.HELP, description=fleet.HELP, allow_abbrev=False)
    )
    add = parser.add_argument
    add("--agent", action="append", metavar="NAME[=COMMAND]", help="agent to measure: pyproxy, or "
        "a program that takes kube-proxy's flags; repeatable (default pyproxy)")  # fmt: skip
    add(
        "--mode",
        choices=tuple(modes.MODES),
        default="nftables",
        help="the proxy mode (default nftables)",
    )
    add("--services", type=int, default=10_000, help="Services (default 10000)")
    add("--endpoints", type=int, default=10, help="endpoints of each (default 10)")
    add("--runs", type=int, default=3, help="runs of each agent, in turn (default 3)")
    add("--changes", type=int, default=10, help="changes of each kind in a run (default 10)")
    add("--pause", type=float, default=1.0, help="seconds between two of them (default 1)")
    add("--churn-rate", type=float, default=0, help="endpoint changes a second (default none)")
    add("--churn-seconds", type=float, default=10, help="duration of the churn (default 10 s)")
    add("--patience", type=float, default=300, help="limit of each step in seconds (default 300)")
    add("--output", type=Path, default=Path("bench-results"), metavar="FOLDER",
        help="folder of bench.json, bench.md and the plot (default bench-results)")  # fmt: skip
    add("--plot", choices=("svg", "png"), default="svg", help="the plot's format (default svg)")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print. Raises UsageError, LabError."""
    if arguments.bench_command == "fleet":
        with interrupted_by(signal.SIGTERM):
            return fleet.run(arguments)
    plan = _plan(arguments)
    contestants = [
        parse(text, modes.named(arguments.mode)) for text in arguments.agent or ["pyproxy"]
    ]
    if len({each.name for each in contestants}) < len(contestants):
        raise UsageError("--agent: two have the same name: give each its own, NAME=COMMAND")
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {arguments.output}: {error.strerror}") from error
    with interrupted_by(signal.SIGTERM):
        runs = _measure(plan, contestants, arguments.runs)
    done = Report(
        str(plan.size), report.machine(), {each.name: each.command for each in contestants}, runs
    )
    paths = report.write(done, arguments.output)
    picture = arguments.output / f"bench.{arguments.plot}"
    plot.draw(done, picture)
    print(report.as_markdown(done))
    print(f"written: {', '.join(map(str, [*paths, picture]))}", file=sys.stderr)
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    check_numbers(
        arguments,
        counts=("services", "endpoints", "runs", "changes"),
        amounts=("pause", "churn_rate", "churn_seconds", "patience"),
    )
    size = Size(arguments.services, arguments.endpoints)
    if size.services * size.endpoints > _LARGEST:
        raise UsageError(f"--services, --endpoints: {size} is more than {_LARGEST:,} endpoints")
    return Plan(
        size,
        arguments.changes,
        arguments.pause,
        arguments.churn_rate,
        arguments.churn_seconds,
        arguments.patience,
    )


def _measure(plan: Plan, contestants: list[Contestant], runs: int) -> list[Run]:
    done: list[Run] = []
    with (
        _progress(len(contestants) * runs * plan.steps) as progress,
        tempfile.TemporaryDirectory(prefix="pyproxy-bench-") as folder,
        own_place() as place,
        cluster.running(plan.size) as api,
    ):
        bench = Bench(plan, place, api, Path(folder))
        for number in range(runs):
            # By turns from either end, so that a drift of the machine favours no agent.
            order = contestants if number % 2 == 0 else contestants[::-1]
            for each in order:
                progress.name = f"run {number + 1} of {runs}: {each.name}"
                done.append(bench.run(each, number, progress.step))
    return done


class _Progress:
    """A bar on a terminal, and nothing elsewhere; `name` is the heading of the next steps."""

    def __init__(self, bar: Progress, steps: int) -> None:
        self.name = "the API server loads all objects"
        self._bar = bar
        self._task = bar.add_task(self.name, total=steps)
        self._begun = 0

    def step(self, what: str) -> None:
        """Show the step that begins."""
        self._bar.update(
            self._task, description=f"{self.name}: {what}", completed=self._begun, refresh=True
        )
        self._begun += 1


@contextmanager
def _progress(steps: int) -> Iterator[_Progress]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Drawn when a step begins and not ten times a second: the machine is being measured.
    with Progress(
        *columns, console=console, disable=not console.is_terminal, auto_refresh=False
    ) as bar:
        yield _Progress(bar, steps)
