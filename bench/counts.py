"""Counts that do not depend on the machine's load: messages, bytes, rows, memory blocks.

`bench/baseline.json` holds the accepted counts. A change that raises one must raise it there too.
"""

from __future__ import annotations

import gc
import platform
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import msgspec
from pyproxy_lab.bench.shape import Size

from bench.inside import Inside, changed_slice, deleted, held, inside, lists, made
from pyproxy.errors import UsageError

BASELINE = Path(__file__).parent / "baseline.json"
SIZE = Size(500, 10)

_CHANGES = 100
_SLACK = {"blocks": 1.02, "memory": 1.05}
"""How much more is still the same, by what is counted: caches come and go a little."""


class Baseline(msgspec.Struct, frozen=True):
    """The accepted measurements: counts and their Python version, and times as ratios to the floor.

    Times are printed but not checked, because they depend on the machine.
    """

    python: str
    counts: Mapping[str, int]
    ratios: Mapping[str, float]


def read_baseline() -> Baseline:
    """Read the file. Raises UsageError."""
    try:
        return msgspec.json.decode(BASELINE.read_bytes(), type=Baseline)
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"{BASELINE}: {error}: write it with --write-baseline") from error


def write_baseline(counts: Mapping[str, int], ratios: Mapping[str, float]) -> None:
    """Have these be what later ones are held against."""
    found = Baseline(_python(), counts, ratios)
    BASELINE.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")


def count() -> dict[str, int]:
    """Count on a small cluster, in a process that has done nothing else."""
    counts: dict[str, int] = {}
    with inside() as agent:
        before = agent.sent
        agent.handle_event(lists(SIZE))
        gc.collect()
        blocks = sys.getallocatedblocks()
        tracemalloc.start()
        agent.agent.sync()
        counts["first sync: memory at its peak"] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        gc.collect()
        counts["first sync: blocks kept"] = sys.getallocatedblocks() - blocks
        counts |= _sent(agent, "first sync", before)
        counts["first sync: rows"] = sum(len(rows) for rows in held().values())
        counts |= _later(agent)
        again = Inside()
        before = again.sent
        again.handle_event(lists(SIZE))
        again.agent.sync()
        counts["a restart: messages that write"] = again.sent[0] - before[0]
        again.dataplane.close()
    return counts


def _later(agent: Inside) -> dict[str, int]:
    counts: dict[str, int] = {}
    before = agent.sent
    for number in range(_CHANGES):
        agent.handle_event([changed_slice(number, SIZE)])
        agent.agent.sync()
    counts |= _sent(agent, f"{_CHANGES} changes of an endpoint", before)
    before = agent.sent
    for event in made(SIZE.services, SIZE.endpoints):
        agent.handle_event([event])
    agent.agent.sync()
    counts |= _sent(agent, "a Service made", before)
    before = agent.sent
    agent.handle_event(deleted(SIZE.services))
    agent.agent.sync()
    return counts | _sent(agent, "a Service deleted", before)


def _sent(agent: Inside, what: str, before: tuple[int, int]) -> dict[str, int]:
    messages, size = agent.sent
    return {f"{what}: messages": messages - before[0], f"{what}: bytes": size - before[1]}


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def grown_counts(baseline: Baseline, counts: Mapping[str, int]) -> list[str]:
    """Return a line for each count that has grown or is unknown.

    Blocks and memory are compared only with the same version of Python.
    """
    found = []
    for name, value in counts.items():
        slack = next((by for kind, by in _SLACK.items() if kind in name), 1.0)
        if slack > 1 and baseline.python != _python():
            continue
        was = baseline.counts.get(name)
        if was is None:
            found.append(f"{name}: {value:,}, and the baseline has none")
        elif value > was * slack:
            found.append(f"{name}: {value:,}, and it was {was:,}")
    return found
