"""The time of single changes while audits run, beside changes alone and during read-backs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec
from pyproxy_lab.bench.figures import Spread, duration, heading, row
from pyproxy_lab.bench.shape import Size
from pyproxy_lab.namespace import LabError

from bench.inside import Inside, inside, lists, slice_object
from pyproxy.agent.loop import Chores
from pyproxy.dataplane.interface import Drift

SIZE = Size(10_000, 10)
LIMIT = 0.25
"""Seconds that no change may take during audits, as during the attacks of `--hostile`."""

_SECONDS = 20.0
_RATE = 50.0
_PERIOD = 4.0
"""Seconds between the begins of two audits, which take one to two."""


def print_audits() -> bool:
    """Measure and print; return whether all changes during audits are within the limit."""
    heading(f"{SIZE}, {_RATE:g} changes a second for {_SECONDS:g} s, to the kernel")
    found: dict[str, Spread] = {}
    for name, begin in _WORK.items():
        found[name] = spread = _measure(begin)
        row(name, f"{spread}, worst {duration(spread.worst)}")
    return found["audits"].worst < LIMIT


def _measure(begin: Callable[[Inside], None]) -> Spread:
    lines = [_line(number) for number in range(int(_SECONDS * _RATE))]
    seconds: list[float] = []
    with inside() as agent:
        agent.handle_event(lists(SIZE))
        with agent.looping(Chores(lambda: begin(agent), _PERIOD)):
            began = time.perf_counter()
            for number, line in enumerate(lines):
                time.sleep(max(0.0, began + number / _RATE - time.perf_counter()))
                seconds.append(agent.change(line))
    return Spread(seconds)


def _line(number: int) -> bytes:
    return msgspec.json.encode({"type": "MODIFIED", "object": slice_object(number, SIZE)})


def _audit(agent: Inside) -> None:
    # The result of the audit before.
    agent.agent.tick()
    if not agent.dataplane.start_audit():
        raise LabError("this mode has no audit beside the agent's thread")


_WORK: Mapping[str, Callable[[Inside], None]] = {
    "alone": lambda _: None,
    "audits": _audit,
    "read-backs, which a write of another program causes": lambda agent: agent.agent.drifted(
        Drift("bench")
    ),
}
