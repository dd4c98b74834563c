"""A dataplane over a kernel in dicts, with a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from pyproxy.dataplane.interface import Changes, Failure, NodeRouting
from pyproxy.dataplane.ipvs import dataplane as module
from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.dataplane import IpvsDataplane
from pyproxy.dataplane.ipvs.ruleset import Options
from pyproxy.model.address import Address
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.ipvs import Scheduling, Virtual
from pyproxy.policy.routing import ServiceRouting
from tests.dataplane.ipvs.fake import FakeKernel, FakeRules

Routings = dict[ObjectName, ServiceRouting]


class Stage:
    """One kernel, and one agent's dataplane after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, others: Iterable[Address] = ()) -> None:
        self.kernel = FakeKernel(others)
        self.rules = FakeRules()
        self.now = 1000.0
        self.options = Options()
        self.adopted: tuple[Virtual, ...] = ()
        monkeypatch.setattr(module, "Kernel", lambda: self.kernel)
        monkeypatch.setattr(module, "RulesTable", lambda: self.rules)
        self.dataplane = self.restarted()
        self.routings: Routings = {}

    def restarted(self) -> IpvsDataplane:
        self.dataplane = IpvsDataplane(self.options, lambda: self.now, lambda: self.adopted)
        self.dataplane.prepare()
        return self.dataplane

    def begin(
        self,
        routings: Routings | None = None,
        node: NodeRouting = NodeRouting(),  # noqa: B008
    ) -> tuple[Failure, ...]:
        """Read the kernel back, and write what is missing."""
        self.routings = self.routings if routings is None else dict(routings)
        return self.dataplane.commit(self.dataplane.plan_full(self.routings.values(), node))

    def change(self, routings: Routings, node: NodeRouting | None = None) -> tuple[Failure, ...]:
        """Commit these routings, and the removal of all others."""
        changed: dict[ObjectName, ServiceRouting | None] = dict.fromkeys(self.routings)
        changed.update(routings)
        self.routings = dict(routings)
        return self.dataplane.commit(self.dataplane.plan(Changes(changed, node)))

    def before_writes(self, call: Callable[[], None]) -> None:
        """Have `call` run before each write to the kernel; it may raise."""
        self.kernel.before_write = self.rules.before_write = call

    def sent(self) -> int:
        return self.dataplane.messages_sent

    def hang_up(self) -> None:
        """End all connections, and poll until the dataplane has noticed."""
        self.kernel.connections.clear()
        for _ in range(50):
            self.dataplane.tick()

    def state(self) -> tuple[object, ...]:
        """All that the kernel holds, without the numbers of marks, which no rule fixes."""
        numbered = {
            virtual: Virtual(virtual.family, virtual.mark & 3, Address(b""), virtual.port)
            for virtual in self.kernel.table
            if virtual.mark
        }
        internal = [schema.INTERNAL_SERVICES.name + digit for digit in "46"]
        by_mark: list[tuple[Virtual, Scheduling, list[tuple[bytes, int]]]] = sorted(
            (
                numbered[virtual],
                self.kernel.how[virtual],
                sorted(self.kernel.table[virtual].items()),
            )
            for virtual in numbered
        )
        return (
            {
                v: (self.kernel.how[v], found)
                for v, found in self.kernel.table.items()
                if not v.mark
            },
            by_mark,
            {
                name: rows if name not in internal else rows.keys()
                for name, rows in self.rules.table.items()
                if rows
            },
            set(self.kernel.on_device),
            self.kernel.labelled,
            self.rules.loaded,
        )
