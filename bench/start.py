"""A start and a restart from outside, beside other versions: the process, the kernel, a client.

Agents take turns, with the order reversed in every second round, so that a drift of the machine
favours none. Each round has a first start in an empty kernel, and a restart on its result.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from pyproxy_lab.bench import cluster, usage
from pyproxy_lab.bench.contestant import Contestant, parse
from pyproxy_lab.bench.figures import Spread, duration, heading, mebibytes, row
from pyproxy_lab.bench.kernel import transactions
from pyproxy_lab.bench.place import Place
from pyproxy_lab.bench.prober import Prober
from pyproxy_lab.bench.run import is_in_step
from pyproxy_lab.bench.shape import Size
from pyproxy_lab.cluster import kubeconfig
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import LabError
from pyproxy_lab.process import Agent

_PATIENCE = 120.0
_TRY = 0.02
"""Seconds of one attempt to connect: a packet that is lost costs no more."""

_BETWEEN_REQUESTS = 0.02
_SETTLE = 1.0


class _Start(msgspec.Struct, frozen=True):
    """Seconds from the start of the process, CPU seconds until then, and bytes."""

    first: float
    last: float
    cpu: float
    peak: int
    restart: float
    restart_cpu: float
    transactions: int


def print_starts(place: Place, mode: LabMode, others: Sequence[str], size: Size, runs: int) -> None:
    """Measure this pyproxy, and each NAME=COMMAND of `others`; print each beside the last one."""
    agents = [parse(text, mode) for text in ("pyproxy", *others)]
    # An installed package has compiled modules; without, each start would compile hundreds.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    found: Mapping[str, list[_Start]] = {agent.name: [] for agent in agents}
    with (
        tempfile.TemporaryDirectory(prefix="pyproxy-bench-") as folder,
        cluster.running(size) as api,
    ):
        path = Path(folder) / "kubeconfig"
        path.write_bytes(msgspec.json.encode(kubeconfig(api.url, "")))
        for number in range(runs):
            for agent in agents if number % 2 == 0 else agents[::-1]:
                found[agent.name].append(_measure(agent, place, path, size))
    base = found[agents[-1].name]
    for name, starts in found.items():
        heading(f"{size}, {mode.name} mode, {runs} starts of {name}")
        _print(starts, base)


def _print(starts: Sequence[_Start], base: Sequence[_Start]) -> None:
    for field, words in (
        ("first", "start to the first Service's response"),
        ("last", "start to the last Service's response"),
        ("cpu", "CPU until then"),
        ("restart", "restart, nothing changed: to healthy and synced"),
        ("restart_cpu", "CPU until then"),
    ):
        spread, of_base = (Spread([getattr(e, field) for e in each]) for each in (starts, base))
        ratio = spread.median / of_base.median
        row(words, spread.ends, f"{ratio:.2f} of the last agent's {duration(of_base.median)}")
    row("peak memory", mebibytes(statistics.median(each.peak for each in starts)))
    row("transactions of a restart", str(max(each.transactions for each in starts)))


def _measure(contestant: Contestant, place: Place, path: Path, size: Size) -> _Start:
    prober = Prober(place.client, _TRY)
    began = time.monotonic()
    with contestant.serving(place.node, path, path.with_name("log")) as agent:
        first, last = (
            prober.until(each, bool, _PATIENCE, agent.require_alive) - began
            for each in (0, size.services - 1)
        )
        cpu = usage.cpu(agent.pid)
        time.sleep(_SETTLE)
        peak = usage.memory(agent.pid, "VmHWM")
        agent.stop()
        before = transactions()
        restart = _restart(agent)
        restart_cpu = usage.cpu(agent.pid)
        time.sleep(_SETTLE)
        written = (transactions() - before) % (1 << 32)
    return _Start(first, last, cpu, peak, restart, restart_cpu, written)


def _restart(agent: Agent) -> float:
    began, moment = time.monotonic(), time.time()
    agent.start()
    while not is_in_step(moment):
        agent.require_alive()
        if time.monotonic() - began > _PATIENCE:
            raise LabError("the agent is not healthy again after a restart")
        time.sleep(_BETWEEN_REQUESTS)
    return time.monotonic() - began
