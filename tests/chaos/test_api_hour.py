"""An hour of API server faults, compressed: any order of arrivals, and time between them.

The test stands for the source and keeps its contract. Events of one kind arrive in order, a list
ends with the names that it had, and a watch that must restart begins with a new list.
"""

from __future__ import annotations

import errno

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyproxy.dataplane.interface import Drift
from pyproxy.errors import KernelError, Problem, StaleStateError, TransientKernelError
from pyproxy.model.events import Delete, InvalidObject, Synced, Upsert
from pyproxy.model.objects import EndpointSlice, Kind, ObjectName, Service
from tests.agent.objects import NODE, Stage
from tests.builders import endpoint_slice, name, service
from tests.examples import examples

NAMES = [f"s{number}" for number in range(6)]
PODS = [f"10.244.1.{number}" for number in range(1, 8)]
HOUR = 3600.0

kinds = st.sampled_from([Kind.SERVICE, Kind.ENDPOINT_SLICE])
names = st.sampled_from(NAMES)
Value = Service | EndpointSlice


class Hour(RuleBasedStateMachine):
    """A cluster, the undelivered events of each watch, and an agent."""

    @initialize(whole=st.booleans())
    def begin(self, whole: bool) -> None:
        self.stage = Stage()
        self.objects: dict[Kind, dict[ObjectName, Value]] = {
            Kind.SERVICE: {},
            Kind.ENDPOINT_SLICE: {},
        }
        self.undelivered: dict[Kind, list[Upsert | Delete]] = {kind: [] for kind in self.objects}
        self.connected = dict.fromkeys(self.objects, False)
        self.end = self.stage.clock.now + HOUR
        self.stage.agent.handle_event(Upsert(NODE))
        self.stage.agent.handle_event(Synced(Kind.NODE, frozenset({ObjectName("", NODE.name)})))
        if whole:
            for kind in self.objects:
                self.relist(kind, in_full=True)

    def _change(self, kind: Kind, key: ObjectName, value: Value | None) -> None:
        if value is None:
            if self.objects[kind].pop(key, None) is None:
                return
            event: Upsert | Delete = Delete(kind, key, self.stage.clock())
        else:
            self.objects[kind][key] = value
            event = Upsert(value, self.stage.clock())
        if self.connected[kind]:
            self.undelivered[kind].append(event)

    @rule(of=names, number=st.integers(1, 4), port=st.sampled_from([0, 30001, 30002]))
    def put_service(self, of: str, number: int, port: int) -> None:
        self._change(Kind.SERVICE, name(of), service(of, number, node_port=port, created=of))

    @rule(of=names, pods=st.lists(st.sampled_from(PODS), unique=True), number=st.integers(0, 1))
    def put_slice(self, of: str, pods: list[str], number: int) -> None:
        self._change(
            Kind.ENDPOINT_SLICE, name(f"{of}-{number}"), endpoint_slice(of, pods, number=number)
        )

    @rule(kind=kinds, of=names, number=st.integers(0, 1))
    def remove(self, kind: Kind, of: str, number: int) -> None:
        self._change(kind, name(of if kind is Kind.SERVICE else f"{of}-{number}"), None)

    @rule(kind=kinds, count=st.integers(1, 10), again=st.booleans())
    def deliver(self, kind: Kind, count: int, again: bool) -> None:
        """Deliver a watch's events; a server may repeat the last one."""
        events, self.undelivered[kind] = (
            self.undelivered[kind][:count],
            self.undelivered[kind][count:],
        )
        for event in [*events, *(events[-1:] if again else [])]:
            self.stage.agent.handle_event(event)

    @rule(kind=kinds)
    def lose(self, kind: Kind) -> None:
        """Lose a watch and its undelivered events, as after 410 or a cut connection."""
        self.connected[kind] = False
        self.undelivered[kind].clear()

    @rule(kind=kinds, in_full=st.booleans())
    def relist(self, kind: Kind, in_full: bool) -> None:
        """Deliver a list, whole or cut off half-way."""
        held = self.objects[kind]
        values = list(held.values())
        for value in values if in_full else values[: len(values) // 2]:
            self.stage.agent.handle_event(Upsert(value, self.stage.clock()))
        self.undelivered[kind].clear()
        self.connected[kind] = in_full
        if in_full:
            self.stage.agent.handle_event(Synced(kind, frozenset(held)))

    @rule(of=names)
    def unreadable(self, of: str) -> None:
        """Deliver an invalid object, and lose the event that mends or deletes it."""
        self.stage.agent.handle_event(Delete(Kind.SERVICE, name(of)))
        self.stage.agent.handle_event(
            InvalidObject(Problem("Service", f"shop/{of}", "spec", "spoilt"))
        )
        self.lose(Kind.SERVICE)

    @rule(
        error=st.sampled_from(
            [
                TransientKernelError("EBUSY", errno.EBUSY),
                TransientKernelError("ENOBUFS", errno.ENOBUFS),
                StaleStateError("EEXIST", errno.EEXIST),
            ]
        ),
        count=st.integers(1, 8),
    )
    def refuse(self, error: KernelError, count: int) -> None:
        """Have the kernel reject the next transactions."""
        self.stage.dataplane.trouble = [error] * count

    @rule()
    def flush(self) -> None:
        """Empty the table as another program, with a notification."""
        self.stage.dataplane.kernel = {}
        self.stage.agent.drifted(Drift("nft (pid 1)"))

    @rule(seconds=st.sampled_from([0.01, 0.5, 3.0, 31.0, 120.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        """Advance the clock, and let the agent do all that is due."""
        stage, until = self.stage, self.stage.clock.now + seconds
        for _ in range(100):
            due = stage.agent.due()
            if due is None or due > until:
                break
            stage.clock.now = max(stage.clock.now, due)
            stage.agent.sync()
        stage.clock.now = max(stage.clock.now, until)
        stage.agent.audit()

    @precondition(lambda self: hasattr(self, "stage"))
    @invariant()
    def nothing_is_written_before_every_list_was_whole(self) -> None:
        if not self.stage.agent.cluster_state.has_synced:
            assert self.stage.dataplane.commits == []

    def teardown(self) -> None:
        if not hasattr(self, "stage"):
            return
        stage = self.stage
        stage.dataplane.trouble.clear()
        stage.clock.now = max(stage.clock.now, self.end)
        for kind in self.objects:
            if self.connected[kind]:
                self.deliver(kind, len(self.undelivered[kind]), again=False)
            else:
                self.relist(kind, in_full=True)
        stage.settle()
        stage.agent.audit()
        stage.settle()
        fresh = Stage()
        fresh.begin(*(value for held in self.objects.values() for value in held.values()))
        assert stage.dataplane.kernel == fresh.dataplane.kernel
        assert stage.metrics_by_kind() == fresh.metrics_by_kind()
        assert stage.health.is_healthy()


TestHour = Hour.TestCase
TestHour.settings = settings(
    max_examples=examples(100),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
