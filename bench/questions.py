"""What questions to a running agent cost: the commands themselves, and the changes meanwhile.

Commands are whole processes, from their start to their end. A process that starts takes time away
from everybody on the machine, so changes are timed in three conditions by turns: nobody asks,
commands run as often that ask nothing, and commands ask. The last two tell what the answers cost.
"""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench.targets import held_against
from pyproxy.bench import cluster, usage
from pyproxy.bench.cluster import Churn, Cluster, fresh_pods
from pyproxy.bench.contestant import OURS, parse
from pyproxy.bench.figures import Spread, duration, heading, row
from pyproxy.bench.kernel import Announcements
from pyproxy.bench.place import Place
from pyproxy.bench.shape import NAMESPACE, PORT, Size, cluster_ip, service_name
from pyproxy.errors import PyproxyError
from pyproxy.inspect.client import Client
from pyproxy.inspect.endpoint import Nothing
from pyproxy.inspect.status import STATUS
from pyproxy.lab.cluster import kubeconfig
from pyproxy.lab.modes import NFTABLES
from pyproxy.lab.namespace import LabError
from pyproxy.lab.process import Agent

SIZE = Size(10_000, 10)
LIMIT = 0.5
"""Seconds in which a command answers."""

_ROUNDS = 3
_SECONDS = 12.0
_PAUSE = 0.5
_PATIENCE = 120.0
_ANSWERS = (0, 1)

_QUESTIONS = (
    ("status",),
    ("services", f"{NAMESPACE}/{service_name(SIZE.services // 2)}"),
    ("explain", f"{NAMESPACE}/{service_name(SIZE.services // 2)}"),
    ("explain", f"{cluster_ip(SIZE.services - 1)}:{PORT}"),
)
_NOTHING = (("version",),)


class Took(msgspec.Struct, frozen=True):
    """One command: seconds from its start to its end, and of the processor."""

    wall: float
    cpu: float


class Questions:
    """One agent, its API server, and how long commands and changes have taken."""

    def __init__(self, agent: Agent, api: Cluster, socket: Path) -> None:
        self._agent = agent
        self._api = api
        self._asked = ("--inspect-socket", str(socket))
        self._client = Client(str(socket))
        self._fresh: Iterator[int] = itertools.count()
        self.took: defaultdict[tuple[str, ...], list[Took]] = defaultdict(list)

    def settle(self) -> None:
        """Wait until the agent has programmed everything. Raises LabError."""
        deadline = time.monotonic() + _PATIENCE
        while not self._is_settled():
            self._agent.require_alive()
            if time.monotonic() > deadline:
                raise LabError(f"the agent has not programmed all within {_PATIENCE:.0f} s")
            time.sleep(_PAUSE)

    def _is_settled(self) -> bool:
        try:
            status = self._client.ask(STATUS, Nothing())
        except PyproxyError:  # not listening yet, or busy
            return False
        return status.syncs > 0 and status.pending == 0

    def changes(
        self, rate: float, commands: Sequence[tuple[str, ...]]
    ) -> tuple[list[float], float]:
        """Have changes made, with these commands run by turns; seconds of each, and CPU of one."""
        (first, *_) = fresh_pods(self._fresh, int(rate * _SECONDS) + 1)
        churn = Churn(rate, _SECONDS, SIZE, first)
        before = usage.cpu(self._agent.pid)
        with Announcements() as kernel, self._running(commands):
            found = kernel.latencies(self._api, churn, _PATIENCE)
        return found, (usage.cpu(self._agent.pid) - before) / len(found)

    @contextmanager
    def _running(self, commands: Sequence[tuple[str, ...]]) -> Iterator[None]:
        end, failures = threading.Event(), list[LabError]()

        def run() -> None:
            turns = itertools.cycle(commands)
            while not end.wait(_PAUSE):
                words = next(turns)
                try:
                    self.took[words].append(self._run(words))
                except LabError as error:
                    failures.append(error)
                    return

        thread = threading.Thread(target=run if commands else lambda: None, name="commands")
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
        if failures:
            raise failures[0]

    def _run(self, words: tuple[str, ...]) -> Took:
        flags = () if words in _NOTHING else self._asked
        command = [sys.executable, "-m", "pyproxy", *words, *flags]
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert process.stdout is not None
            said = process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in _ANSWERS:
            raise LabError(f"pyproxy {shlex.join(words)}: {said.decode()[-500:]}")
        return Took(time.monotonic() - began, used.ru_utime + used.ru_stime)


def print_questions(place: Place, rate: float) -> bool:
    """Measure and print; whether the commands answer in time. Raises LabError."""
    with _asked(place) as questions:
        heading(f"{SIZE}, {rate:g} changes a second, {_ROUNDS} x {_SECONDS:g} s of each")
        conditions: dict[str, Sequence[tuple[str, ...]]] = {
            "nobody asks": (),
            "commands run and ask nothing": _NOTHING,
            "commands ask": _QUESTIONS,
        }
        latencies: defaultdict[str, list[float]] = defaultdict(list)
        costs: defaultdict[str, list[float]] = defaultdict(list)
        for _ in range(_ROUNDS):
            for name, commands in conditions.items():
                found, cost = questions.changes(rate, commands)
                latencies[name] += found
                costs[name].append(cost)
        for name in conditions:
            row(f"a change to the kernel, {name}", str(Spread(latencies[name])))
            row("", f"{duration(Spread(costs[name]).median)} of the agent's CPU each")
        return _print_commands(questions.took)


def _print_commands(took: dict[tuple[str, ...], list[Took]]) -> bool:
    met = True
    for words in (*_NOTHING, *_QUESTIONS):
        wall = Spread([each.wall for each in took[words]])
        cpu = Spread([each.cpu for each in took[words]])
        limit = LIMIT if words in _QUESTIONS else float("inf")
        row(f"pyproxy {shlex.join(words)}", wall.ends, held_against(wall.median, limit))
        row("", f"{cpu.ends} of CPU")
        met &= wall.median < limit
    return met


@contextmanager
def _asked(place: Place) -> Iterator[Questions]:
    with (
        tempfile.TemporaryDirectory(prefix="pyproxy-bench-") as name,
        cluster.running(SIZE) as api,
    ):
        folder = Path(name)
        config, socket = folder / "kubeconfig", folder / "socket"
        config.write_bytes(msgspec.json.encode(kubeconfig(api.url, "")))
        ours = parse(OURS, NFTABLES)
        asked = msgspec.structs.replace(
            ours, command=(*ours.command, "--inspect-socket", str(socket))
        )
        with asked.serving(place.node, config, folder / "log") as agent:
            questions = Questions(agent, api, socket)
            questions.settle()
            yield questions
