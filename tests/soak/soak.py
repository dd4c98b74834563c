"""A soak: the agent's process with a faulty API server, at 200 changes a second.

`python -m tests.soak.soak SECONDS [SEED]` runs it by itself, as `make soak` does.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import msgspec
from pyproxy_lab.apiserver.faults import (
    Cut,
    Disorder,
    ErrorStatus,
    Fault,
    HalfOpen,
    Page,
    ShortWatches,
    Slow,
)
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.network import Network
from pyproxy_lab.topology import TWO_NODES

from tests.agent.live import SITE, Object, Process, Stage
from tests.chaos.objects import delete_numbered, numbered_service, numbered_slice

CHANGES_PER_SECOND = 200
GROWTH = 0.10
"""By how much of its size after the warm-up the agent's memory may grow."""

_SERVICES = 400
_TICK = 0.05
_SETTLE = 90.0

FAULTS: list[tuple[Fault, ...]] = [
    (),
    (),
    (ErrorStatus(500),),
    (ErrorStatus(429, 1),),
    (Page(),),
    (Cut(),),
    (HalfOpen(),),
    (Slow(0.05),),
    (ShortWatches(1.0),),
    (Disorder(),),
    (Disorder(), ShortWatches(0.5)),
]


class Footprint(msgspec.Struct, frozen=True):
    """Resources of a process: resident bytes, threads, descriptors."""

    memory: int
    threads: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        """Read it from /proc."""
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in status)
        return cls(
            int(fields["VmRSS"].split()[0]) * 1024,
            int(fields["Threads"]),
            len(os.listdir(f"/proc/{pid}/fd")),
        )

    def growth(self, before: Footprint) -> list[str]:
        """Return a line for each resource that grew more than it may."""
        found = []
        if self.memory > before.memory * (1 + GROWTH):
            found.append(f"memory grew from {before.memory >> 20} to {self.memory >> 20} MiB")
        if self.threads > before.threads:
            found.append(f"threads grew from {before.threads} to {self.threads}")
        if self.descriptors > before.descriptors:
            found.append(f"descriptors grew from {before.descriptors} to {self.descriptors}")
        return found


class Result(msgspec.Struct, frozen=True):
    """How a soak went; `equal` is true if the kernel held the desired state at the end."""

    changes: int
    faults: dict[str, int]
    flushes: int
    equal: bool
    before: Footprint
    after: Footprint
    status: int

    def failures(self) -> list[str]:
        """Return a line for each requirement that is not met."""
        found = [] if self.equal else ["the kernel does not hold the desired state"]
        found += self.after.growth(self.before)
        if self.status:
            found.append(f"the agent ended with status {self.status}")
        return found


class Cluster:
    """Services that come, change and go, in the API server's memory."""

    def __init__(self, server: ApiServer, random: Random) -> None:
        self._server = server
        self._random = random
        self._there: set[int] = set()
        self.changes = 0

    def fill(self) -> None:
        """Make all Services, so that the warm-up sees as many as there ever are."""
        self._server.call(self._put_all)

    def change(self, count: int) -> None:
        """Make so many changes at once."""

        def several() -> None:
            for _ in range(count):
                self._one()

        self._server.call(several)

    def _put_all(self) -> None:
        for number in range(_SERVICES):
            self._put(number)

    def _one(self) -> None:
        number = self._random.randrange(_SERVICES)
        if number not in self._there:
            self._put(number)
        elif self._random.random() < 0.1:
            self._remove(number)
        else:
            self._server.registry.load([self._slice(number)])
            self.changes += 1

    def _put(self, number: int) -> None:
        self._server.registry.load([numbered_service(number), self._slice(number)])
        self._there.add(number)
        self.changes += 2

    def _remove(self, number: int) -> None:
        delete_numbered(self._server.registry, number)
        self._there.discard(number)
        self.changes += 2

    def _slice(self, number: int) -> Object:
        return numbered_slice(
            number, self._random.sample(range(1, 250), self._random.randint(0, 8))
        )


class Chaos:
    """Draws what goes wrong next."""

    def __init__(self, stage: Stage, server: ApiServer, random: Random) -> None:
        self._stage = stage
        self._server = server
        self._random = random
        # Every kind comes before one comes again, however few there is time for.
        self._left: list[tuple[Fault, ...]] = []
        self.flushes = 0

    def next(self) -> None:
        """Exchange the faults for others, and now and then do worse."""
        if not self._left:
            self._left = self._random.sample(FAULTS, len(FAULTS))
        self._server.faults.set(*self._left.pop(), share=self._random.choice((0.3, 1.0)))
        match self._random.randrange(8):
            case 0:
                self._server.close_watches()
            case 1:
                self._server.forget_history(100)
            case 2:
                self._server.expire_watches()
                self._server.close_watches()
            case 3:
                self._stage.nft("flush", "ruleset")
                self.flushes += 1
            case 4:
                with self._server.away():
                    time.sleep(self._random.uniform(0.1, 1.0))

    def end(self) -> None:
        """Clear all faults; half-open watches are cut, because their timeout is a minute."""
        self._server.faults.clear()
        with self._server.away():
            pass


def run(seconds: float, seed: int, report: Callable[[str], None] = lambda _: None) -> Result:
    """Soak for so many seconds, a sixth of them to warm up. Raises LabError."""
    random = Random(seed)
    with _stage() as (stage, server), stage.agent(server.url) as agent:
        cluster = Cluster(server, random)
        cluster.fill()
        agent.does(lambda: stage.health() == 200, "the first commit")
        chaos = Chaos(stage, server, random)
        _go_on(seconds / 6, cluster, chaos, random)
        before = _at_rest(stage, server, agent, chaos)
        report(f"after the warm-up: {before}")
        _go_on(seconds * 5 / 6, cluster, chaos, random)
        after = _at_rest(stage, server, agent, chaos, before)
        equal = stage.kernel() == stage.desired(server)
        agent.require_alive()
        agent.stop()
        return Result(
            cluster.changes,
            {kind.__name__: count for kind, count in server.faults.met.items()},
            chaos.flushes,
            equal,
            before,
            after,
            agent.status or 0,
        )


def _go_on(seconds: float, cluster: Cluster, chaos: Chaos, random: Random) -> None:
    began = time.monotonic()
    due, trouble = 0.0, 0.0
    while (now := time.monotonic() - began) < seconds:
        if now >= trouble:
            chaos.next()
            trouble = now + random.uniform(0.3, 2.0)
        cluster.change(round((now - due) * CHANGES_PER_SECOND))
        due = now
        time.sleep(_TICK)


def _at_rest(
    stage: Stage, server: ApiServer, agent: Process, chaos: Chaos, before: Footprint | None = None
) -> Footprint:
    """Wait until the kernel is as it should be and all resources are as few as they were."""
    chaos.end()
    deadline = time.monotonic() + _SETTLE
    while time.monotonic() < deadline:
        agent.require_alive()
        if server.watch_count == 3 and stage.kernel() == stage.desired(server):
            found = Footprint.of(agent.pid)
            # The thread and the descriptor of a connection end a little after the connection.
            if before is None or not found.growth(before):
                return found
        time.sleep(_TICK)
    return Footprint.of(agent.pid)


@contextmanager
def _stage() -> Iterator[tuple[Stage, ApiServer]]:
    with (
        tempfile.TemporaryDirectory(prefix="pyproxy-soak-") as folder,
        Network(TWO_NODES) as network,
    ):
        stage = Stage(network, Path(folder))
        with stage.server() as server:
            yield stage, server


def main() -> int:
    """Run as a program; the exit status is 1 where something is not as it must be."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"soaking for {seconds:g} s on {SITE}, seed {seed}", flush=True)
    result = run(seconds, seed, lambda text: print(text, flush=True))
    print(f"at the end: {result.after}")
    print(f"{result.changes} changes, {result.flushes} flushes; faults met: {result.faults}")
    failures = result.failures()
    print("\n".join(failures) or "all requirements are met")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
