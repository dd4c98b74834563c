"""The latency of changes at a rate, and the part of it that each process has.

Each run has an agent of its own. A change is timed from the API server's write until the kernel
announces the pod's address. A second client of the API server, which only reads the same watch,
divides that time. Until it has read the event, the API server and its connection are at work, and
after that the agent and the kernel. On each processor a process with real-time priority only
sleeps: while one of them cannot run, the kernel or the hypervisor stalls the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families
from pyproxy_lab.bench import cluster, usage
from pyproxy_lab.bench.cluster import Churn, Cluster
from pyproxy_lab.bench.contestant import OURS, parse
from pyproxy_lab.bench.figures import Spread, duration, heading
from pyproxy_lab.bench.kernel import Announcements
from pyproxy_lab.bench.place import Place
from pyproxy_lab.bench.shape import FRESH_POD, Size
from pyproxy_lab.cluster import kubeconfig
from pyproxy_lab.modes import NFTABLES
from pyproxy_lab.namespace import LabError
from pyproxy_lab.process import Agent, pipes

from bench.tail_control import Stalls
from pyproxy.errors import PyproxyError
from pyproxy.inspect.client import Client
from pyproxy.inspect.humanize import clock
from pyproxy.inspect.queries import SLOW, STATUS, NoArgs
from pyproxy.inspect.slow_changes import SlowChange

LIMIT = 0.015
"""The p99 that each run must stay below, in seconds."""

_PATIENCE = 60.0
_QUIET = 0.2
_METRICS = "http://127.0.0.1:10249/metrics"
_PHASES = "pyproxy_programming_phase_seconds"
_JSON = "application/json"
_PROTOBUF = "application/vnd.kubernetes.protobuf;stream=watch"
_SHOWN = 3
"""Slow changes of a run that are printed."""


class Plan(msgspec.Struct, frozen=True):
    """The cluster, the runs and the changes a second; each run lasts so many seconds."""

    size: Size
    runs: int
    rate: float
    seconds: float
    protobuf: bool


class Run(msgspec.Struct, frozen=True):
    """One run: seconds of each change, as a whole and in parts, and what else happened.

    `undisturbed` are the changes in whose time there was none of the `stalls`. `phases` are the
    agent's mean seconds of a change.

    `delay` is how long the agent's thread waited for a processor, `cpu` the agent's CPU time for a
    change, `stolen` the time that the hypervisor gave to other guests, all in seconds.
    `collections` are the API server's, `slow` the agent's slowest changes.
    """

    whole: Sequence[float]
    server: Sequence[float]
    agent: Sequence[float]
    undisturbed: Sequence[float]
    stalls: Sequence[tuple[float, float]]
    phases: Mapping[str, float]
    delay: float
    cpu: float
    collections: Sequence[float]
    slow: Sequence[SlowChange]
    load: float
    stolen: float

    @property
    def undisturbed_p99(self) -> float:
        """The p99 of the undisturbed changes, 0 if there are none."""
        return Spread(self.undisturbed).p99 if self.undisturbed else 0.0


def print_tail(place: Place, plan: Plan) -> bool:
    """Measure and print each run; return whether the p99 of all is within the limit.

    Raises LabError, UsageError.
    """
    seconds, form = plan.seconds, "protobuf" if plan.protobuf else "JSON"
    heading(f"{plan.size}, {plan.rate:g} changes a second for {seconds:g} s, {form}, to the kernel")
    titles = ("change: median, p99, worst", "the API server's part", "the agent's and the kernel's")
    print("      " + " | ".join(f"{title:<29}" for title in titles))
    met = 0
    pods = FRESH_POD
    with cluster.running(plan.size) as api:
        for number in range(plan.runs):
            run = _run(place, api, plan, pods)
            pods += int(plan.rate * (seconds + 1))
            print("\n".join(lines(number, run)), flush=True)
            met += Spread(run.whole).p99 < LIMIT
    print(f"  p99 below {duration(LIMIT)} in {met} of {plan.runs} runs")
    return met == plan.runs


def lines(number: int, run: Run) -> Iterator[str]:
    """Yield the lines of one run: its times, what the machine did, and its slowest changes."""
    whole, server, agent = map(Spread, (run.whole, run.server, run.agent))
    parts = (
        " ".join(f"{duration(value):>9}" for value in (part.median, part.p99, part.worst))
        for part in (whole, server, agent)
    )
    yield f"  {number + 1:>2}: {' | '.join(parts)}"
    longest = max((end - begin for begin, end in run.stalls), default=0.0)
    yield "      " + "; ".join(
        (
            f"load {run.load:.1f}, stolen {duration(run.stolen)}",
            f"{len(run.stalls):,} stalls, the longest {duration(longest)}",
            f"p99 of {len(run.undisturbed):,} changes without one {duration(run.undisturbed_p99)}",
            f"agent: run delay {duration(run.delay)}, CPU of a change {duration(run.cpu)}",
            f"API server: longest collection {duration(max(run.collections, default=0.0))}",
        )
    )
    yield "      mean of a change: " + ", ".join(
        f"{phase} {duration(seconds)}" for phase, seconds in run.phases.items()
    )
    for each in run.slow[:_SHOWN]:
        phases = ", ".join(
            f"{name} {duration(seconds)}"
            for name, seconds in each.phases.items()
            if seconds >= each.seconds / 10
        )
        causes = ", ".join(f"{cause.kind} {duration(cause.seconds)}" for cause in each.causes)
        yield (
            f"      agent's {duration(each.seconds)} at {clock(each.ended)}, {each.coalesced} "
            f"others: {phases}; {causes}"
        )


def _run(place: Place, api: Cluster, plan: Plan, first_pod: int) -> Run:
    churn = Churn(plan.rate, plan.seconds, plan.size, first_pod)
    accept = _PROTOBUF if plan.protobuf else _JSON
    with tempfile.TemporaryDirectory(prefix="pyproxy-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        config, socket = folder / "kubeconfig", folder / "socket"
        config.write_bytes(msgspec.json.encode(kubeconfig(api.url, "")))
        ours = parse(OURS, NFTABLES)
        command = (
            *ours.command,
            *("--inspect-socket", str(socket)),
            *("--kube-api-content-type", accept.partition(";")[0]),
        )
        contestant = msgspec.structs.replace(ours, command=command)
        agent = stack.enter_context(contestant.serving(place.node, config, folder / "log"))
        client = Client(str(socket))
        _settle(client, agent)
        kernel = stack.enter_context(Announcements())
        read: dict[str, float] = {}
        stalls: Stalls = []
        with ExitStack() as controls:
            controls.enter_context(_control(("watch", api.url, accept), read.update))
            for processor in sorted(os.sched_getaffinity(0)):
                controls.enter_context(_control(("sleep", str(processor)), stalls.extend))
            before = _used(agent)
            done = kernel.churned(api, churn, _PATIENCE)
            after = _used(agent)
        seen = kernel.seen
        found = [pod for pod in done.pods if pod in seen and pod in read]
        stalls.sort()
        return Run(
            whole=[seen[pod] - at for pod, at in done.pods.items() if pod in seen],
            server=[read[pod] - done.pods[pod] for pod in found],
            agent=[seen[pod] - read[pod] for pod in found],
            undisturbed=undisturbed(done.pods, seen, stalls),
            stalls=stalls,
            phases=_phases(),
            delay=after[1] - before[1],
            cpu=(after[0] - before[0]) / len(done.pods),
            collections=done.collections,
            slow=client.query(SLOW, NoArgs()).changes,
            load=os.getloadavg()[0],
            stolen=after[2] - before[2],
        )


def undisturbed(
    written: Mapping[str, float], seen: Mapping[str, float], stalls: Stalls
) -> list[float]:
    """Return the seconds of the changes in whose time there was no stall; `stalls` are sorted."""
    begins = [begin for begin, _ in stalls]
    # Of the stalls that began before, the one that ended last.
    last = list(accumulate((end for _, end in stalls), max, initial=0.0))
    found = ((at, seen[pod]) for pod, at in written.items() if pod in seen)
    return [end - at for at, end in found if last[bisect(begins, end)] <= at]


def _phases() -> dict[str, float]:
    """Return the agent's mean seconds of a change in each phase, by its metrics."""
    with urllib.request.urlopen(_METRICS, timeout=_PATIENCE) as response:
        text = response.read().decode()
    found: dict[str, dict[str, float]] = {"_sum": {}, "_count": {}}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            which = sample.name.removeprefix(_PHASES)
            if which in found and "phase" in sample.labels:
                found[which][sample.labels["phase"]] = sample.value
    return {
        phase: seconds / max(1.0, found["_count"][phase])
        for phase, seconds in found["_sum"].items()
    }


def _settle(client: Client, agent: Agent) -> None:
    """Wait until the agent has programmed all objects. Raises LabError."""
    deadline = time.monotonic() + _PATIENCE
    while not _is_settled(client):
        agent.require_alive()
        if time.monotonic() > deadline:
            raise LabError(f"the agent has not programmed all within {_PATIENCE:.0f} s")
        time.sleep(_QUIET)


def _is_settled(client: Client) -> bool:
    try:
        status = client.query(STATUS, NoArgs())
    except PyproxyError:  # not listening yet, or busy
        return False
    return status.syncs > 0 and not status.pending


def _used(agent: Agent) -> tuple[float, float, float]:
    """Return the agent's CPU time, its main thread's run delay, and the time stolen, in seconds."""
    delay = int(Path(f"/proc/{agent.pid}/schedstat").read_text().split()[1]) / 1e9
    # The eighth number of the first line counts ticks that the hypervisor gave to other guests.
    stolen = int(Path("/proc/stat").read_text().split("\n")[0].split()[8])
    return usage.cpu(agent.pid), delay, stolen / os.sysconf("SC_CLK_TCK")


@contextmanager
def _control(words: Sequence[str], take: Callable[[Any], None]) -> Iterator[None]:
    """Run a control process, and pass its result on at the end. Raises LabError."""
    command = [sys.executable, "-m", "bench.tail_control", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        stdin, stdout = pipes(process)
        if stdout.readline() != b"ready\n":
            raise LabError(f"the control process {words[0]} has not started")
        try:
            yield
        finally:
            stdin.close()
            if line := stdout.readline():
                take(msgspec.json.decode(line))
