"""The cost of questions to a running agent: of the commands, and for the changes meanwhile.

Commands are whole processes, from their start to their end. Any process that starts slows others
down, so changes are timed in four conditions by turns. These are: without questions, with questions
of this process over the socket, with commands that do not connect, and with commands that ask.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
from pyproxy_lab.bench import cluster, usage
from pyproxy_lab.bench.cluster import Churn, Cluster, fresh_pods
from pyproxy_lab.bench.contestant import OURS, parse
from pyproxy_lab.bench.figures import Spread, duration, heading, row
from pyproxy_lab.bench.kernel import Announcements
from pyproxy_lab.bench.place import Place
from pyproxy_lab.bench.shape import NAMESPACE, PORT, Size, cluster_ip, service_name
from pyproxy_lab.cluster import kubeconfig
from pyproxy_lab.modes import NFTABLES
from pyproxy_lab.namespace import LabError
from pyproxy_lab.process import Agent

from bench.targets import held_against
from pyproxy.errors import PyproxyError
from pyproxy.inspect.client import Client
from pyproxy.inspect.queries import (
    FACTS,
    LOOKUP,
    SERVICES,
    STATUS,
    FactsArgs,
    LookupArgs,
    NoArgs,
    ServicesArgs,
)

SIZE = Size(10_000, 10)
LIMIT = 0.5
"""Seconds in which a command must end."""

_ROUNDS = 3
_SECONDS = 20.0
_PAUSE = 0.5
_PATIENCE = 120.0
_STATUSES = (0, 1)

_QUESTIONS = (
    ("status",),
    ("services", f"{NAMESPACE}/{service_name(SIZE.services // 2)}"),
    ("explain", f"{NAMESPACE}/{service_name(SIZE.services // 2)}"),
    ("explain", f"{cluster_ip(SIZE.services - 1)}:{PORT}"),
)
_NOTHING = (("version",),)


Action = Callable[[], object]


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
        """Wait until the agent has programmed all objects. Raises LabError."""
        deadline = time.monotonic() + _PATIENCE
        while not self._is_settled():
            self._agent.require_alive()
            if time.monotonic() > deadline:
                raise LabError(f"the agent has not programmed all within {_PATIENCE:.0f} s")
            time.sleep(_PAUSE)

    def _is_settled(self) -> bool:
        try:
            status = self._client.query(STATUS, NoArgs())
        except PyproxyError:  # not listening yet, or busy
            return False
        return status.syncs > 0 and status.pending == 0

    def changes(self, rate: float, meanwhile: Sequence[Action]) -> tuple[list[float], float]:
        """Return the seconds of each change and the CPU seconds of one, during these actions."""
        (first, *_) = fresh_pods(self._fresh, int(rate * _SECONDS) + 1)
        churn = Churn(rate, _SECONDS, SIZE, first)
        before = usage.cpu(self._agent.pid)
        with Announcements() as kernel, _by_turns(meanwhile):
            found = kernel.latencies(self._api, churn, _PATIENCE)
        return found, (usage.cpu(self._agent.pid) - before) / len(found)

    def over_socket(self) -> Sequence[Action]:
        """Return the queries of all commands."""
        _, service, _, address = (words[-1] for words in _QUESTIONS)
        query = self._client.query
        return (
            partial(query, STATUS, NoArgs()),
            partial(query, SERVICES, ServicesArgs(service)),
            partial(query, FACTS, FactsArgs(service)),
            partial(query, FACTS, FactsArgs(address)),
            partial(query, LOOKUP, LookupArgs(service)),
        )

    def run(self, words: tuple[str, ...]) -> None:
        """Run a command, and note how long it takes. Raises LabError."""
        flags = () if words in _NOTHING else self._asked
        command = [sys.executable, "-m", "pyproxy", *words, *flags]
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert process.stdout is not None
            output = process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in _STATUSES:
            raise LabError(f"pyproxy {shlex.join(words)}: {output.decode()[-500:]}")
        took = Took(time.monotonic() - began, used.ru_utime + used.ru_stime)
        self.took[words].append(took)


@contextmanager
def _by_turns(actions: Sequence[Action]) -> Iterator[None]:
    """Inside it a thread runs these in turn, one every _PAUSE seconds. Raises PyproxyError."""
    end, failures = threading.Event(), list[PyproxyError]()

    def act() -> None:
        turns = itertools.cycle(actions)
        while actions and not end.wait(_PAUSE) and not failures:
            try:
                next(turns)()
            except PyproxyError as error:
                failures.append(error)

    thread = threading.Thread(target=act, name="meanwhile")
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
    if failures:
        raise failures[0]


def print_questions(place: Place, rate: float) -> bool:
    """Measure and print; return whether the commands end in time. Raises LabError."""
    with _questions(place) as questions:
        heading(f"{SIZE}, {rate:g} changes a second, {_ROUNDS} x {_SECONDS:g} s of each")
        conditions: dict[str, Sequence[Action]] = {
            "without questions": (),
            "with questions over the socket": questions.over_socket(),
            "with commands without questions": [partial(questions.run, each) for each in _NOTHING],
            "with commands that ask": [partial(questions.run, each) for each in _QUESTIONS],
        }
        latencies: defaultdict[str, list[float]] = defaultdict(list)
        costs: defaultdict[str, list[float]] = defaultdict(list)
        for _ in range(_ROUNDS):
            for name, meanwhile in conditions.items():
                found, cost = questions.changes(rate, meanwhile)
                latencies[name] += found
                costs[name].append(cost)
        for name in conditions:
            row(f"a change to the kernel {name}", str(Spread(latencies[name])))
            row("", f"{duration(Spread(costs[name]).median)} of the agent's CPU each")
        return _print_commands(questions.took)


def _print_commands(took: dict[tuple[str, ...], list[Took]]) -> bool:
    met = True
    for words in (*_NOTHING, *_QUESTIONS):
        wall = Spread([each.wall for each in took[words]])
        cpu = Spread([each.cpu for each in took[words]])
        limit = LIMIT if words in _QUESTIONS else float("inf")
        what = f"pyproxy {shlex.join(words)}, {len(took[words])} times"
        row(what, wall.ends, held_against(wall.median, limit))
        row("", f"{cpu.ends} of CPU")
        met &= wall.median < limit
    return met


@contextmanager
def _questions(place: Place) -> Iterator[Questions]:
    with (
        tempfile.TemporaryDirectory(prefix="pyproxy-bench-") as name,
        cluster.running(SIZE) as api,
    ):
        folder = Path(name)
        config, socket = folder / "kubeconfig", folder / "socket"
        config.write_bytes(msgspec.json.encode(kubeconfig(api.url, "")))
        ours = parse(OURS, NFTABLES)
        contestant = msgspec.structs.replace(
            ours, command=(*ours.command, "--inspect-socket", str(socket))
        )
        with contestant.serving(place.node, config, folder / "log") as agent:
            questions = Questions(agent, api, socket)
            questions.settle()
            yield questions
