"""The cost of an agent while nothing changes, beside another program if one is given."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from pyproxy_lab.bench import cluster, usage
from pyproxy_lab.bench.contestant import Contestant, parse
from pyproxy_lab.bench.place import Place
from pyproxy_lab.bench.prober import Prober
from pyproxy_lab.bench.shape import Size
from pyproxy_lab.cluster import kubeconfig
from pyproxy_lab.modes import LabMode

SIZES = (Size(100, 10), Size(10_000, 10))

_PATIENCE = 120.0
_SETTLE = 30.0
"""Seconds after the first response in which work of the start may go on."""

_DAY = 86_400


class Thread(msgspec.Struct, frozen=True):
    """A thread as /proc describes it: its name, how often it has woken, and its CPU time in ns."""

    name: str
    wakes: int
    cpu: int


def print_idle(
    place: Place,
    mode: LabMode,
    kube_proxy: str,
    seconds: float,
    sizes: Sequence[Size] = SIZES,
) -> None:
    """Measure and print each size, for so many seconds each."""
    agents = [parse("pyproxy", mode)]
    if kube_proxy:
        agents.append(parse(f"kube-proxy={kube_proxy}", mode))
    for size in sizes:
        print(f"{size}, {mode.name} mode, {seconds:g} s without a change", flush=True)
        for agent in agents:
            for line in _measure(agent, place, size, seconds):
                print(f"  {line}", flush=True)


def _measure(contestant: Contestant, place: Place, size: Size, seconds: float) -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory(prefix="pyproxy-bench-") as folder,
        cluster.running(size) as api,
    ):
        path = Path(folder) / "kubeconfig"
        path.write_bytes(msgspec.json.encode(kubeconfig(api.url, "")))
        with contestant.serving(place.node, path, Path(folder) / "log") as agent:
            Prober(place.client).until(size.services - 1, bool, _PATIENCE, agent.require_alive)
            time.sleep(_SETTLE)
            before, began = _threads(agent.pid), time.monotonic()
            time.sleep(seconds)
            after, elapsed = _threads(agent.pid), time.monotonic() - began
            resident, peak = (usage.memory(agent.pid, field) for field in ("VmRSS", "VmHWM"))
    yield (
        f"{contestant.name}: resident {resident / (1 << 20):.0f} MiB, "
        f"peak {peak / (1 << 20):.0f} MiB"
    )
    spent = {number: _since(thread, before.get(number)) for number, thread in after.items()}
    yield _line("all threads", spent.values(), elapsed)
    for thread in sorted(spent.values(), key=lambda each: -each.wakes):
        if thread.wakes:
            yield "  " + _line(thread.name, [thread], elapsed)


def _line(name: str, threads: Collection[Thread], elapsed: float) -> str:
    wakes = sum(thread.wakes for thread in threads)
    cpu = sum(thread.cpu for thread in threads) / 1e9
    return f"{name}: {wakes / elapsed:.2f} wakes/s, CPU of a day {cpu / elapsed * _DAY:.0f} s"


def _since(thread: Thread, before: Thread | None) -> Thread:
    if before is None:
        return thread
    return Thread(thread.name, thread.wakes - before.wakes, thread.cpu - before.cpu)


def _threads(pid: int) -> dict[int, Thread]:
    found = {}
    for number in map(int, os.listdir(f"/proc/{pid}/task")):
        task = Path(f"/proc/{pid}/task/{number}")
        with suppress(OSError):  # the thread may end meanwhile
            found[number] = Thread(
                (task / "comm").read_text().strip(),
                _context_switches((task / "status").read_text()),
                int((task / "schedstat").read_text().split()[0]),
            )
    return found


def _context_switches(status: str) -> int:
    """Return how often the thread has waited. A switch that others force is no wake."""
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines["voluntary_ctxt_switches"])
