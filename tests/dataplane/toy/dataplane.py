"""A dataplane whose kernel is a JSON file: a line for each frontend, with its endpoints."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pyproxy.dataplane.interface import (
    Changes,
    Drift,
    Failure,
    NodeRouting,
    StateDiff,
    StepLimits,
    TableUsage,
)
from pyproxy.model.address import FAMILIES, backend, backend_text
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

Lines = dict[str, list[str]]
"""The lines of each Service, by its name."""


def state_file() -> Path:
    return Path(os.environ["PYPROXY_TOY_STATE"])


def read_state() -> Lines:
    try:
        found: Lines = json.loads(state_file().read_text())
    except FileNotFoundError:
        return {}
    return found


def lines_of(routing: ServiceRouting) -> list[str]:
    return sorted(
        f"{backend_text(backend(frontend.address, frontend.port))} to "
        f"{' '.join(map(backend_text, port.cluster))}"
        for port in routing.ports
        for frontend in port.frontends
    )


class ToyPlan(msgspec.Struct, frozen=True):
    """The whole state after the commit, and the Services that change."""

    after: Lines
    changed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.changed)

    def lines(self) -> Iterator[str]:
        return (f"write {name}" for name in self.changed)

    def counts(self) -> Mapping[str, int]:
        return {"service": len(self.changed)}

    def netlink(self) -> Iterator[str]:
        return iter(())


class ToyDataplane:
    """Both protocols, and nothing else."""

    name: str = "toy"
    step_limits = StepLimits(10_000, large=10_000)
    families = FAMILIES
    messages_sent = 0
    bytes_sent = 0
    kernel_seconds = 0.0

    def __init__(self) -> None:
        self._held: Lines = {}
        self._closed = threading.Event()

    def collect(self) -> Iterator[Metric]:
        return iter(())

    def prepare(self) -> None:
        """A file is always there to be written."""

    def prepare_to_read(self) -> None:
        """A file is always there to be read."""

    def read_ahead(self) -> None:
        """Reading is fast."""

    def write_early(self, node: NodeRouting) -> None:
        """Return None: all is written by `commit`."""

    def plan(self, changes: Changes) -> ToyPlan:
        after = dict(self._held)
        for name, routing in changes.services.items():
            if routing is None:
                after.pop(str(name), None)
            else:
                after[str(name)] = lines_of(routing)
        return self._plan(self._held, after)

    def plan_full(self, services: Iterable[ServiceRouting], node: NodeRouting) -> ToyPlan:
        after = {str(routing.name): lines_of(routing) for routing in services}
        return self._plan(read_state(), after)

    def plan_repair(self, sets: frozenset[str] | None) -> ToyPlan | None:
        return None

    def start_audit(self) -> bool:
        return False

    def commit(self, plan: ToyPlan) -> tuple[Failure, ...]:
        state_file().write_text(json.dumps(plan.after))
        self._held = plan.after
        return ()

    def wait_for_drift(self) -> Drift | None:
        self._closed.wait()
        return None

    def tick(self) -> Drift | None:
        return None

    def compare(self, wanted: ServiceRouting, node: NodeRouting) -> StateDiff:
        held, asked = read_state().get(str(wanted.name), []), lines_of(wanted)
        return StateDiff(
            tuple(line for line in asked if line not in held),
            tuple(line for line in held if line not in asked),
            kind="line",
        )

    def check_base_rules(self, node: NodeRouting) -> tuple[str, ...]:
        return ()

    def refused_clients(self) -> Mapping[ObjectName, Mapping[bytes, int]]:
        return {}

    def wait_for_devices(self) -> bool:
        return False

    def devices_changed(self) -> None:
        pass

    def flow_offload(self) -> None:
        return None

    def table_usage(self) -> tuple[TableUsage, ...]:
        return (TableUsage("services", len(read_state())),)

    def cleanup(self) -> None:
        state_file().unlink(missing_ok=True)

    def close(self) -> None:
        self._closed.set()

    @staticmethod
    def _plan(before: Lines, after: Lines) -> ToyPlan:
        names = before.keys() | after.keys()
        return ToyPlan(after, tuple(sorted(n for n in names if before.get(n) != after.get(n))))
