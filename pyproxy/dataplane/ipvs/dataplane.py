"""The IPVS dataplane: it remembers what it committed, and has all I/O of its kind done."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

import msgspec

from pyproxy.dataplane.committed_state import CommittedState
from pyproxy.dataplane.interface import Changes, Drift, Failure, NodeRouting, StateDiff, TableUsage
from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.commit import Outcome, commit
from pyproxy.dataplane.ipvs.compare import check_base_rules, compare
from pyproxy.dataplane.ipvs.draining import Change, Draining, drain, settle
from pyproxy.dataplane.ipvs.drift_poller import Deadlines, DriftPoller
from pyproxy.dataplane.ipvs.kernel import Kernel, is_ours
from pyproxy.dataplane.ipvs.marks import Marks, recall
from pyproxy.dataplane.ipvs.plan import IpvsPlan
from pyproxy.dataplane.ipvs.rows import add_service, shared_rows, virtual_of_key
from pyproxy.dataplane.ipvs.rules import RulesTable, unusable
from pyproxy.dataplane.ipvs.ruleset import Options
from pyproxy.dataplane.ipvs.schema import ADDRESSES_ON_DEVICE, SERVERS, VIRTUALS, ServerKey, Table
from pyproxy.dataplane.nft.rows import SharedRow, node_rows
from pyproxy.errors import KernelError
from pyproxy.model.address import Address, Family
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.ipvs import Timeouts, Virtual
from pyproxy.policy.routing import ServiceRouting

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_SOMEBODY = "somebody"


class IpvsDataplane:
    """Programs IPVS of the network namespace that it was made in; `clock` is monotonic.

    `adopts` is asked until the first commit for virtual services that others have left: what is
    wanted of them is made right in place, and the rest goes. It may raise KernelError.
    """

    name: str = "ipvs"

    def __init__(
        self,
        options: Options,
        clock: Callable[[], float] = time.monotonic,
        adopts: Callable[[], Iterable[Virtual]] = tuple,
        timeouts: Timeouts = Timeouts(),  # noqa: B008
    ) -> None:
        self._options = options
        self._timeouts = timeouts
        self._adopts = adopts
        self._loaded: Options | None = None
        self._committed: CommittedState[SharedRow] = CommittedState(shared_rows)
        self._marks = Marks({})
        self._held: Table = {}
        self._own: AbstractSet[Address] = frozenset()
        self._leaving = Draining()
        self._deadlines = Deadlines(clock)
        self._patrol: DriftPoller | None = None
        try:
            self._rules = RulesTable()
            self._kernel = Kernel()
        except KernelError as error:
            raise unusable(error) from error

    @property
    def messages_sent(self) -> int:
        """How many netlink messages have gone to the kernel, dumps aside."""
        return self._kernel.messages_sent + self._rules.netlink.messages_sent

    @property
    def bytes_sent(self) -> int:
        """How many bytes have gone to the kernel, batch headers and dump requests included."""
        return self._kernel.bytes_sent + self._rules.netlink.bytes_sent

    def collect(self) -> Iterator[Metric]:
        """Yield nothing: the metrics of all modes are enough here."""
        return iter(())

    def prepare(self) -> None:
        """Find out whether IPVS, nft and nf_tables are here and may be used. Raises UsageError."""
        try:
            self._rules.prepare()
            self._kernel.prepare()
            self._kernel.set_timeouts(self._timeouts)
        except KernelError as error:
            raise unusable(error) from error

    def prepare_to_read(self) -> None:
        """Find out whether IPVS and nf_tables are here and may be read. Raises UsageError."""
        try:
            self._rules.prepare_to_read()
            self._kernel.prepare()
        except KernelError as error:
            raise unusable(error) from error

    def read_ahead(self) -> None:
        """Do nothing: IPVS announces no change, so an early read could be out of date."""

    def plan(self, changes: Changes) -> IpvsPlan:
        """Compare what changed with what was committed last; the kernel is not asked."""
        before: Table = {}
        after: Table = {}
        placed: dict[ObjectName, ServiceRouting | None] = {}
        for name, wanted in changes.services.items():
            old = self._committed.services.get(name)
            if old == wanted:
                continue
            placed[name] = wanted
            if old:
                self._add(old, self._marks, before)
        growth = self._committed.growth(placed)
        marks = self._marks.next(self._committed.services, placed, self._leaving)
        for routing in placed.values():
            if routing:
                self._add(routing, marks, after)
        options = self._loaded or self._options_for(self._committed.node)
        if changes.node is not None:
            before.update(node_rows(self._committed.node.pod_networks))
            after.update(node_rows(changes.node.pod_networks))
            options = self._options_for(changes.node)
        for set_name, key in growth:
            before.setdefault(set_name, {})[key] = b""
            if self._committed.is_needed((set_name, key), growth):
                after.setdefault(set_name, {})[key] = b""
        following = settle(
            self._held,
            self._leaving,
            Change(
                _keys(before, after),
                after,
                lambda row: self._committed.is_needed(row, growth),
                self._own,
            ),
        )
        return IpvsPlan(
            following.delta,
            following.leaving,
            placed,
            growth,
            marks,
            options,
            node=changes.node,
            reload=options != self._loaded,
        )

    def plan_full(self, services: Iterable[ServiceRouting], node: NodeRouting) -> IpvsPlan:
        """Read the kernel back and plan from it to the whole desired state. Raises KernelError."""
        options = self._options_for(node)
        reload = not self._rules.is_loaded(options)
        held: Table = {**self._rules.read()}
        here = self._kernel.addresses()
        self._own = here.others
        held[ADDRESSES_ON_DEVICE] = dict.fromkeys(here.ours, b"")
        self._read_ipvs(held, here.ours)
        routings = {routing.name: routing for routing in services}
        marks = recall(routings.values(), held, self._marks)
        wanted: Table = {**node_rows(node.pod_networks)}
        shared: Counter[SharedRow] = Counter()
        for routing in routings.values():
            self._add(routing, marks, wanted)
            shared.update(shared_rows(routing))
        for set_name, key in shared:
            wanted.setdefault(set_name, {})[key] = b""
        following = settle(
            held,
            Draining(),
            Change(
                _keys(held, wanted),
                wanted,
                lambda row: shared[row] > 0,
                self._own,
            ),
        )
        return IpvsPlan(
            following.delta,
            following.leaving,
            routings,
            shared,
            marks,
            options,
            held=held,
            node=node,
            reload=reload,
            device=not here.device,
        )

    def compare(self, wanted: ServiceRouting, node: NodeRouting) -> StateDiff:
        """Compare what the kernel holds of one Service with what it should; KernelError."""
        return compare(self._kernel, self._rules, wanted, self._options_for(node))

    def check_base_rules(self, node: NodeRouting) -> tuple[str, ...]:
        """Name what is missing or changed of the base rules and the device; KernelError."""
        options = self._options_for(node)
        return tuple(check_base_rules(self._rules, options, self._kernel.addresses()))

    def table_usage(self) -> tuple[TableUsage, ...]:
        """Count virtual services, servers, addresses and each set's elements, as remembered."""
        return tuple(TableUsage(name, len(rows)) for name, rows in list(self._held.items()) if rows)

    def commit(self, plan: IpvsPlan) -> tuple[Failure, ...]:
        """Write a plan and remember it; the Services that the kernel would not take.

        IPVS has no transactions: new virtual services and servers come first, then the rules, in
        one transaction, and what goes comes last.
        """
        if plan.held is not None:
            self._held = plan.held
            self._loaded = None if plan.reload else plan.options
        if plan.device:
            self._kernel.make_device()
        if plan.reload:
            self._rules.load(plan.options)
            self._loaded = plan.options
        outcome = commit(plan, self._kernel, self._rules, self._held, self._rows_of)
        if plan.reload:
            self._rules.seal(plan.options)
        self._remember(plan, outcome)
        return outcome.failures

    def wait_for_drift(self) -> Drift | None:
        """Wait, in a thread of its own, for somebody else's write; None after `close`."""
        foreign = self._rules.wait()
        return None if foreign is None else Drift(foreign.by)

    def tick(self) -> Drift | None:
        """Let go of servers whose connections are gone, and look at what tells of no change."""
        if self._patrol is None:
            return None
        done = self._deadlines.done(self._leaving, self._kernel.servers, self._in_the_way)
        if done:
            self._let_go(done)
        return Drift(_SOMEBODY) if self._patrol.finds(self._held) else None

    def cleanup(self) -> None:
        """Remove all that is ours and nothing else; may be called when there is nothing."""
        here = self._kernel.addresses()
        held: Table = {**self._rules.read()}
        self._read_ipvs(held, here.ours, servers=False)
        for refusal in self._kernel.send(
            [self._kernel.write.delete_virtual(virtual) for virtual in held[VIRTUALS]]
        ):
            raise refusal.error
        self._kernel.delete_device()
        self._rules.delete()

    def close(self) -> None:
        """Give back the sockets; what was programmed stays."""
        self._rules.close()
        self._kernel.close()

    def _add(self, routing: ServiceRouting, marks: Marks, table: Table) -> None:
        add_service(routing, marks.numbers, self._options.scheduler, table)

    def _options_for(self, node: NodeRouting) -> Options:
        families = frozenset(network.family for network in node.pod_networks)
        return msgspec.structs.replace(self._options, pod_families=families)

    def _read_ipvs(
        self, held: Table, on_device: frozenset[Address], *, servers: bool = True
    ) -> None:
        listed = frozenset(
            virtual_of_key(key, family)
            for family in Family
            for key in held.get(schema.FRONTENDS.of(family), {})
        )
        listed |= frozenset(self._held.get(VIRTUALS, {}))
        if self._patrol is None:
            listed |= frozenset(self._adopts())
        found = {
            virtual: how
            for virtual, how in self._kernel.virtuals().items()
            if is_ours(virtual, on_device, listed, self._options.exclude_networks)
        }
        held[VIRTUALS] = {**found}
        if servers:
            held[SERVERS] = {
                (virtual, server.backend): server.weight
                for virtual in found
                for server in self._kernel.servers(virtual)
            }

    def _rows_of(self, plan: IpvsPlan, name: ObjectName) -> Table:
        rows: Table = {}
        if old := self._committed.services.get(name):
            self._add(old, self._marks, rows)
        if new := plan.services.get(name):
            self._add(new, plan.marks, rows)
        return rows

    def _in_the_way(self, virtual: Virtual) -> bool:
        """Tell whether something else may have the address of a virtual service."""
        cluster_ips = self._held.get(schema.CLUSTER_IPS.of(virtual.family), {})
        return not virtual.mark and virtual.address not in cluster_ips

    def _let_go(self, done: AbstractSet[ServerKey]) -> None:
        change = Change(
            drain(self._leaving, done),
            {},
            self._committed.is_needed,
            self._own,
            done,
        )
        following = settle(self._held, self._leaving, change)
        self.commit(
            IpvsPlan(
                following.delta,
                following.leaving,
                {},
                {},
                self._marks,
                self._loaded or self._options_for(self._committed.node),
            )
        )

    def _remember(self, plan: IpvsPlan, outcome: Outcome) -> None:
        left_out = {failure.name for failure in outcome.failures}
        self._committed.remember(
            plan.services, plan.shared, plan.node, whole=plan.whole, left_out=left_out
        )
        self._marks = plan.marks
        self._leaving = plan.leaving
        self._deadlines.follow(plan.leaving)
        if self._patrol is None:
            self._patrol = DriftPoller(self._kernel)
        self._patrol.begin(self._own)


def _keys(before: Table, after: Table) -> Mapping[str, AbstractSet[Hashable]]:
    return {
        name: before.get(name, {}).keys() | after.get(name, {}).keys()
        for name in before.keys() | after.keys()
    }
