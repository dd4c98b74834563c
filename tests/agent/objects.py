"""A cluster in values, a clock that stands still, and a dataplane whose kernel is a table."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec
from prometheus_client.metrics_core import Metric

from pyproxy.agent.backoff import SyncBackoff
from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.commit import Commit, CommitListener, Observers
from pyproxy.agent.core import Agent
from pyproxy.agent.node import NodeRules
from pyproxy.config.settings import LocalTraffic, NodePorts, Settings
from pyproxy.dataplane.diff import Delta, apply, diff
from pyproxy.dataplane.interface import (
    Changes,
    Drift,
    Failure,
    NodeRouting,
    StateDiff,
    StepLimits,
    TableUsage,
)
from pyproxy.dataplane.nft.rows import SharedRow
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables.compile import add_service, node_table, shared_rows
from pyproxy.errors import KernelError, Problem, RejectedError, StaleStateError
from pyproxy.health.state import Health
from pyproxy.model.address import FAMILIES, Address, Backend, parse_address, parse_network
from pyproxy.model.events import Synced, Upsert
from pyproxy.model.objects import (
    EndpointSlice,
    Kind,
    Node,
    ObjectName,
    Service,
)
from pyproxy.netlink.elements import Tag, Value
from pyproxy.policy.claims import key_of
from pyproxy.policy.routing import ServiceRouting
from tests.exposition import nftables_metrics

HOSTNAME = "node-a"
NODE = Node(
    HOSTNAME,
    (parse_address("172.30.0.11"), parse_address("fd30::11")),
    (parse_network("10.244.1.0/24"),),
    "zone-1",
)


PRIMARY = NodePorts()
ORDINARY = StepLimits(10_000, large=10_000)


class Clock:
    """Monotonic and wall clock in one; it moves only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class PlannedTable(msgspec.Struct, frozen=True):
    """A plan of `TableDataplane`: the delta, and what is remembered once it is committed."""

    delta: Delta[bytes, Value]
    services: dict[ObjectName, ServiceRouting]
    node: NodeRouting

    def __bool__(self) -> bool:
        return bool(self.delta)

    def lines(self) -> Iterator[str]:
        for name, new in self.delta.add.items():
            yield from (f"add {name} {key.hex()}" for key in new)

    def counts(self) -> Mapping[str, int]:
        return {"element": len(list(self.lines()))}

    def netlink(self) -> Iterator[str]:
        return iter(())


class TableDataplane:
    """A dataplane beside the real one, with a dict for a kernel.

    It refuses what the kernel refuses: a row to remove that is not there, one to add that is.
    `trouble` are errors that the next commits run into; `commits` are the deltas that went through;
    `refuses` names a Service that it never takes, `ticks` are the results of `tick`. `begins` is
    called as each commit begins.
    """

    name = "table"
    messages_sent = 0
    bytes_sent = 0
    kernel_seconds = 0.0

    families = FAMILIES

    def __init__(self, step_limits: StepLimits = ORDINARY) -> None:
        self.step_limits = step_limits
        self.kernel: Table = {}
        self.trouble: list[KernelError] = []
        self.device_trouble: list[KernelError] = []
        self.commits: list[Delta[bytes, Value]] = []
        self.refuses: ObjectName | None = None
        self.ticks: list[Drift | KernelError] = []
        self.begins: Callable[[], None] = lambda: None
        self.reads = 0
        self.repairs: list[frozenset[str] | None] = []
        self._programmed: dict[ObjectName, ServiceRouting] = {}
        self._node = NodeRouting()

    def collect(self) -> Iterator[Metric]:
        return iter(())

    def prepare(self) -> None:
        """Always able."""

    def prepare_to_read(self) -> None:
        """Always able."""

    def read_ahead(self) -> None:
        """Reads fast enough."""

    def write_early(self, node: NodeRouting) -> None:
        """Return None: all is written by `commit`."""

    def compare(self, wanted: ServiceRouting, node: NodeRouting) -> StateDiff:
        missing = diff(self.kernel, rows([wanted], node)).add
        return StateDiff(
            tuple(f"{name} {key.hex()}" for name, new in missing.items() for key in new)
        )

    def check_base_rules(self, node: NodeRouting) -> tuple[str, ...]:
        return ()

    def refused_clients(self) -> Mapping[ObjectName, Mapping[bytes, int]]:
        return {}

    def wait_for_devices(self) -> bool:
        return False

    def devices_changed(self) -> None:
        if self.device_trouble:
            raise self.device_trouble.pop(0)

    def flow_offload(self) -> None:
        return None

    def table_usage(self) -> tuple[TableUsage, ...]:
        return ()

    def plan(self, changes: Changes) -> PlannedTable:
        services = dict(self._programmed)
        for each, routing in changes.services.items():
            if routing is None:
                services.pop(each, None)
            else:
                services[each] = routing
        node = changes.node or self._node
        delta = diff(rows(self._programmed.values(), self._node), rows(services.values(), node))
        return PlannedTable(delta, services, node)

    def plan_full(self, services: Iterable[ServiceRouting], node: NodeRouting) -> PlannedTable:
        self.reads += 1
        wanted = {routing.name: routing for routing in services}
        return PlannedTable(diff(self.kernel, rows(wanted.values(), node)), wanted, node)

    def plan_repair(self, sets: frozenset[str] | None) -> PlannedTable:
        self.reads += 1
        self.repairs.append(sets)
        wanted = rows(self._programmed.values(), self._node)
        return PlannedTable(diff(self.kernel, wanted), dict(self._programmed), self._node)

    def start_audit(self) -> bool:
        return False

    def tick(self) -> Drift | None:
        if self.ticks:
            found = self.ticks.pop()
            if isinstance(found, KernelError):
                raise found
            return found
        return None

    def commit(self, plan: PlannedTable) -> tuple[Failure, ...]:
        self.begins()
        if self.trouble:
            raise self.trouble.pop(0)
        if self.refuses in plan.services:
            kept = {each: a for each, a in plan.services.items() if each != self.refuses}
            error = RejectedError("EINVAL", errno.EINVAL)
            self.commit(self.plan_full(kept.values(), plan.node))
            return (Failure(self.refuses, error),)
        try:
            self.kernel = apply(plan.delta, self.kernel)
        except (KeyError, ValueError) as error:
            raise StaleStateError(str(error), 2) from error
        claimed = [
            key_of(port, frontend)
            for routing in plan.services.values()
            for port in routing.ports
            for frontend in port.frontends
        ]
        assert len(claimed) == len(set(claimed)), "a frontend has two owners"
        self._programmed, self._node = plan.services, plan.node
        if plan:
            self.commits.append(plan.delta)
        return ()

    def wait_for_drift(self) -> Drift | None:
        return None

    def cleanup(self) -> None:
        self.kernel = {}

    def close(self) -> None:
        """Nothing to give back."""


def rows(routings: Iterable[ServiceRouting], node: NodeRouting) -> Table:
    """Compile a whole state from nothing."""
    table = node_table(node)
    shared: Counter[SharedRow] = Counter()
    for routing in routings:
        add_service(routing, table)
        shared.update(shared_rows(routing))
    for set_name, key in shared:
        table.setdefault(set_name, {})[key] = b""
    return table


class CommitRecorder:
    """A listener that keeps all commits, and the routings that they add up to."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.programmed: dict[ObjectName, ServiceRouting] = {}

    def committed(self, commit: Commit, cluster_state: ClusterState) -> None:
        self.commits.append(commit)
        if commit.full:
            self.programmed.clear()
        for each, routing in commit.routings.items():
            if routing is None:
                self.programmed.pop(each, None)
            else:
                self.programmed[each] = routing


class Stage:
    """One agent with everything around it that a test looks at."""

    def __init__(
        self,
        *,
        min_sync_period: float = 0.0,
        node: Node = NODE,
        node_ports: NodePorts = PRIMARY,
        step_limits: StepLimits = ORDINARY,
        **fields: Any,
    ) -> None:
        self.clock = Clock()
        self.dataplane = TableDataplane(step_limits)
        self.metrics = nftables_metrics()
        self.health = Health(30.0, self.clock, lambda: int(self.clock() * 1e9))
        self.reported: list[Problem] = []
        self.recorder = CommitRecorder()
        self.listeners: list[CommitListener] = [self.recorder]
        self.local_addresses: tuple[Address, ...] = ()
        self.address_reads = 0
        self.reading: Callable[[], tuple[Address, ...]] | None = None
        self.broadcasts: tuple[Address, ...] = ()
        self.api_servers: tuple[Backend, ...] = ()
        settings = Settings(
            HOSTNAME,
            local_traffic=LocalTraffic(cluster_networks=(parse_network("10.244.0.0/16"),)),
            node_ports=node_ports,
            **fields,
        )
        observers = Observers(
            self.metrics,
            self.health,
            self.listeners,
            self.clock,
            self.clock,
            self.reported.append,
        )
        self.agent = Agent(
            self.dataplane,
            NodeRules(
                settings,
                self.read_addresses,
                lambda: self.broadcasts,
                lambda: self.api_servers,
            ),
            SyncBackoff(min_sync_period),
            observers,
        )
        self.node = node

    def read_addresses(self) -> tuple[Address, ...]:
        self.address_reads += 1
        return self.local_addresses if self.reading is None else self.reading()

    def begin(self, *objects: Service | EndpointSlice) -> None:
        """Read all lists, and sync once."""
        for obj in (*objects, self.node):
            self.agent.handle_event(Upsert(obj, self.clock()))
        for kind, of in ((Kind.SERVICE, Service), (Kind.ENDPOINT_SLICE, EndpointSlice)):
            names = frozenset(obj.name for obj in objects if isinstance(obj, of))
            self.agent.handle_event(Synced(kind, names))
        self.agent.handle_event(Synced(Kind.NODE, frozenset({ObjectName("", self.node.name)})))
        self.agent.sync()

    def handle_event(self, *objects: Service | EndpointSlice | Node) -> None:
        for obj in objects:
            self.agent.handle_event(Upsert(obj, self.clock()))

    def is_due(self) -> bool:
        due = self.agent.due()
        return due is not None and due <= self.clock()

    def settle(self) -> None:
        """Sync for as long as something is due, moving the clock to it."""
        for _ in range(500):
            due = self.agent.due()
            if due is None:
                return
            self.clock.now = max(self.clock.now, due)
            self.agent.sync()
        raise AssertionError("the agent never comes to rest")

    def sample(self, metric: str) -> float:
        """Read a metric without labels."""
        found = [
            sample.value
            for family in self.metrics.collect()
            for sample in family.samples
            if sample.name == metric
        ]
        return found[0]

    def metrics_by_kind(self) -> dict[str, int]:
        """Return the number of invalid objects by kind."""
        return {
            sample.labels["kind"]: int(sample.value)
            for family in self.metrics.collect()
            for sample in family.samples
            if sample.name == "pyproxy_invalid_objects"
        }

    def reasons(self) -> list[str]:
        """Return the reasons of the reported problems."""
        return [each.reason.value for each in self.reported]

    def serving(self) -> list[str]:
        """Name the ports that the kernel sends somewhere."""
        tags = self.dataplane.kernel["services4"].values()
        return sorted(tag.comment for tag in tags if isinstance(tag, Tag))
