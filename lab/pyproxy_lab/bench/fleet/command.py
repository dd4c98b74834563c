"""`pyproxy bench fleet`: flags and output."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from pyproxy.errors import UsageError
from pyproxy_lab.bench.flags import check_numbers
from pyproxy_lab.bench.fleet import report
from pyproxy_lab.bench.fleet.fleets import Client
from pyproxy_lab.bench.fleet.scenarios import AT_ONCE, Bench, Plan
from pyproxy_lab.bench.shape import Size

HELP = "count what the agents of a fleet cost the API server, beside kube-proxies"
_LARGEST = 1 << 19


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add = parser.add_argument
    add("--nodes", type=int, default=20, help="clients of each kind (default 20)")
    add("--services", type=int, default=1000, help="Services (default 1000)")
    add("--endpoints", type=int, default=10, help="endpoints of each (default 10)")
    add("--pods", type=int, default=1000, help="pods of the rollout (default 1000)")
    add("--away", type=float, default=3, help="seconds without an API server (default 3)")
    add("--hour", type=float, default=60, help="seconds that the steady hour takes; 0 leaves it "
        "out (default 60)")  # fmt: skip
    add("--patience", type=float, default=300, help="limit of each step in seconds (default 300)")
    add("--output", type=Path, default=Path("bench-results"), metavar="FOLDER",
        help="folder of fleet.json and fleet.md (default bench-results)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Count, write and print. Raises UsageError, LabError."""
    plan = _plan(arguments)
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {arguments.output}: {error.strerror}") from error

    def step(what: str) -> None:
        print(f"{client.value}: {what}", file=sys.stderr, flush=True)

    # Each client logs what happens to it, as an agent does.
    logging.getLogger("pyproxy").setLevel(logging.ERROR)
    results = {}
    for client in Client:
        results[client] = Bench(plan, client, step).run()
    text = report.as_text(plan, results)
    paths = [arguments.output / "fleet.json", arguments.output / "fleet.md"]
    paths[0].write_bytes(report.as_json(plan, results))
    paths[1].write_text(text)
    print(text)
    print(f"written: {', '.join(map(str, paths))}", file=sys.stderr)
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    check_numbers(
        arguments,
        counts=("nodes", "services", "endpoints", "pods"),
        amounts=("away", "hour", "patience"),
    )
    if arguments.pods % AT_ONCE:
        raise UsageError(f"--pods {arguments.pods}: give a multiple of {AT_ONCE}")
    size = Size(arguments.services, arguments.endpoints)
    if size.services * size.endpoints > _LARGEST:
        raise UsageError(f"--services, --endpoints: {size} is more than {_LARGEST:,} endpoints")
    return Plan(
        arguments.nodes, size, arguments.pods, arguments.away, arguments.hour, arguments.patience
    )
