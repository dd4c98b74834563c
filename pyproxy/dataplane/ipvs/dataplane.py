"""The IPVS dataplane: virtual services, the rules around them, and the device of their addresses.

IPVS has neither transactions nor notifications. So a commit is ordered to serve at every step
(`commit`), and changes by other programs are found by polling (`drift_poller`). Removing a real
server would end its connections, so it drains with weight 0 first (`draining`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

import msgspec

from pyproxy.dataplane.committed_state import CommittedState
from pyproxy.dataplane.interface import (
    Changes,
    Drift,
    Failure,
    NodeRouting,
    StateDiff,
    StepLimits,
    TableUsage,
)
from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.commit import commit
from pyproxy.dataplane.ipvs.compare import check_base_rules, compare
from pyproxy.dataplane.ipvs.draining import Change, Draining, plan_delta, rows_of_drained
from pyproxy.dataplane.ipvs.drift_poller import Deadlines, DriftPoller
from pyproxy.dataplane.ipvs.kernel import Kernel
from pyproxy.dataplane.ipvs.marks import Marks, assign_marks
from pyproxy.dataplane.ipvs.ownership import lost_virtuals, read_servers, read_virtuals
from pyproxy.dataplane.ipvs.plan import IpvsPlan
from pyproxy.dataplane.ipvs.rows import (
    add_service,
    shared_rows,
)
from pyproxy.dataplane.ipvs.rules import RulesTable, unusable
from pyproxy.dataplane.ipvs.ruleset import Options
from pyproxy.dataplane.ipvs.schema import ADDRESSES_ON_DEVICE, SERVERS, VIRTUALS, ServerKey, Table
from pyproxy.dataplane.nft.rows import SharedRow, node_rows
from pyproxy.errors import KernelError
from pyproxy.model.address import FAMILIES, Address, Backend, family_of
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.ipvs import Timeouts, Virtual
from pyproxy.policy.routing import ServiceRouting

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


class IpvsDataplane:
    """Programs IPVS of the network namespace that it was made in; `clock` is monotonic.

    Until the first commit, `adopts` returns virtual services that another proxy has left. They are
    changed in place if a Service needs them, and removed otherwise. It may raise KernelError.
    """

    name: str = "ipvs"
    step_limits = StepLimits(1_000, large=5_000)
    families = FAMILIES

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
        self._node_addresses: AbstractSet[Address] = frozenset()
        self._draining = Draining()
        self._deadlines = Deadlines(clock)
        self._poller: DriftPoller | None = None
        try:
            self._rules = RulesTable()
            self._kernel = Kernel()
        except KernelError as error:
            raise unusable(error) from error

    @property
    def messages_sent(self) -> int:
        """Netlink messages sent to the kernel, dumps not counted."""
        return self._kernel.messages_sent + self._rules.netlink.messages_sent

    @property
    def bytes_sent(self) -> int:
        """Bytes sent to the kernel, with batch headers and dump requests."""
        return self._kernel.bytes_sent + self._rules.netlink.bytes_sent

    @property
    def kernel_seconds(self) -> float:
        """Seconds of the system calls that sent these; nft's, which loads base rules, are not."""
        return self._kernel.send_seconds + self._rules.netlink.send_seconds

    def collect(self) -> Iterator[Metric]:
        """Yield nothing: the metrics of all modes are enough here."""
        return iter(())

    def prepare(self) -> None:
        """Check that IPVS, nft and nf_tables may be used; set the timeouts. Raises UsageError."""
        try:
            self._rules.prepare()
            self._kernel.prepare()
            self._kernel.set_timeouts(self._timeouts)
        except KernelError as error:
            raise unusable(error) from error

    def prepare_to_read(self) -> None:
        """Check that IPVS and nf_tables may be read. Raises UsageError."""
        try:
            self._rules.prepare_to_read()
            self._kernel.prepare()
        except KernelError as error:
            raise unusable(error) from error

    def read_ahead(self) -> None:
        """Do nothing: IPVS announces no change, so an early read could be out of date."""

    def write_early(self, node: NodeRouting) -> None:
        """Return None: this mode writes all Services at once."""

    def plan(self, changes: Changes) -> IpvsPlan:
        """Plan the difference between changed Services and the last commit, without the kernel."""
        before: Table = {}
        after: Table = {}
        changed: dict[ObjectName, ServiceRouting | None] = {}
        for name, wanted in changes.services.items():
            old = self._committed.services.get(name)
            if old == wanted:
                continue
            changed[name] = wanted
            # Only routings are remembered: the old rows are computed again, with the old marks.
            if old:
                self._add(old, self._marks, before)
        growth = self._committed.growth(changed)
        marks = self._marks.next(self._committed.services, changed, self._draining)
        for routing in changed.values():
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
        planned = plan_delta(
            self._held,
            self._draining,
            Change(
                _keys(before, after),
                after,
                lambda row: self._committed.is_needed(row, growth),
                self._node_addresses,
            ),
        )
        return IpvsPlan(
            planned.delta,
            planned.draining,
            changed,
            growth,
            marks,
            options,
            node=changes.node,
            reload=options != self._loaded,
        )

    def plan_full(self, services: Iterable[ServiceRouting], node: NodeRouting) -> IpvsPlan:
        """Plan the difference between kernel state and desired state. Raises KernelError."""
        options = self._options_for(node)
        # The device is read before IPVS, because an address on it makes a virtual service ours.
        reload = not self._rules.is_loaded(options)
        held: Table = {**self._rules.read()}
        here = self._kernel.addresses()
        self._node_addresses = here.others
        held[ADDRESSES_ON_DEVICE] = dict.fromkeys(here.ours, b"")
        routings = {routing.name: routing for routing in services}
        # After the first commit all of ours are known.
        lost = frozenset[Virtual]()
        if self._poller is None:
            lost = lost_virtuals(held, here, routings.values(), self._options.exclude_networks)
        foreign = self._read_ipvs(held, here.ours, lost)
        marks = assign_marks(routings.values(), held, self._marks)
        wanted: Table = {**node_rows(node.pod_networks)}
        shared: Counter[SharedRow] = Counter()
        for routing in routings.values():
            self._add(routing, marks, wanted)
            shared.update(shared_rows(routing))
        for set_name, key in shared:
            wanted.setdefault(set_name, {})[key] = b""
        # After a restart no list says what drains: every TCP server that no Service needs does.
        planned = plan_delta(
            held,
            Draining(),
            Change(
                _keys(held, wanted),
                wanted,
                lambda row: shared[row] > 0,
                self._node_addresses,
            ),
        )
        return IpvsPlan(
            planned.delta,
            planned.draining,
            routings,
            shared,
            marks,
            options,
            held=held,
            node=node,
            reload=reload,
            device=not here.device,
            label=bool(here.device) and not here.labelled,
            foreign=foreign,
        )

    def plan_repair(self, sets: frozenset[str] | None) -> IpvsPlan | None:  # noqa: ARG002
        """Return None: `plan_full` reads too little for this to gain much."""
        return None

    def start_audit(self) -> bool:
        """Return False: only a read-back compares."""
        return False

    def compare(self, wanted: ServiceRouting, node: NodeRouting) -> StateDiff:
        """Compare kernel state and desired state of one Service. Raises KernelError."""
        return compare(self._kernel, self._rules, wanted, self._options_for(node))

    def check_base_rules(self, node: NodeRouting) -> tuple[str, ...]:
        """Return a line for each difference in base rules and device. Raises KernelError."""
        options = self._options_for(node)
        return tuple(check_base_rules(self._rules, options, self._kernel.addresses()))

    def table_usage(self) -> tuple[TableUsage, ...]:
        """Count the rows of the last commit by table and set. Any thread."""
        # A copy of the items, because the committing thread may add a table meanwhile.
        return tuple(TableUsage(name, len(rows)) for name, rows in list(self._held.items()) if rows)

    def refused_clients(self) -> Mapping[ObjectName, Mapping[bytes, int]]:
        """Return nothing: the kernel bounds session affinity in its own way."""
        return {}

    def commit(self, plan: IpvsPlan) -> tuple[Failure, ...]:
        """Write a plan and remember it; return the Services that the kernel rejected.

        IPVS has no transactions. New virtual services and servers come first, then the rules in
        one transaction, then the addresses, and removals last.
        """
        # Set before the first write: if one raises, the next plan starts from here and loads again.
        if plan.held is not None:
            self._held = plan.held
            self._loaded = None if plan.reload else plan.options
        if plan.device:
            self._kernel.make_device()
        if plan.reload:
            self._rules.load(plan.options)
            self._loaded = plan.options
        failures = commit(plan, self._kernel, self._rules, self._held, self._rows_of)
        # Last, because an older version's chains and sets serve until the elements are written.
        if plan.reload:
            self._rules.seal(plan.options)
        # A device taken over from kube-proxy is ours once the rules are complete.
        if plan.label:
            self._kernel.label_device()
        self._remember(plan, failures)
        return failures

    def wait_for_drift(self) -> Drift | None:
        """Block until another program writes to the rules; None after `close`."""
        foreign = self._rules.wait()
        return None if foreign is None else Drift(foreign.by)

    def wait_for_devices(self) -> bool:
        """Return False: the rules name no device that comes and goes."""
        return False

    def devices_changed(self) -> None:
        """Do nothing."""

    def flow_offload(self) -> None:
        """Return None: there is no fast path."""

    def tick(self) -> Drift | None:
        """Remove drained servers, and poll for changes that the kernel does not announce."""
        # Before the first commit there is nothing to compare with.
        if self._poller is None:
            return None
        drained = self._deadlines.drained(self._draining, self._kernel.servers, self._may_block)
        if drained:
            self._remove_drained(drained)
        return Drift("") if self._poller.has_drifted(self._held) else None

    def cleanup(self) -> None:
        """Remove our virtual services, the device and the table; idempotent. Raises KernelError."""
        here = self._kernel.addresses()
        held: Table = {**self._rules.read()}
        self._read_ipvs(held, here.ours, servers=False)
        for failed in self._kernel.send(
            [self._kernel.write.delete_virtual(virtual) for virtual in held[VIRTUALS]]
        ):
            raise failed.error
        self._kernel.delete_device()
        self._rules.delete()

    def close(self) -> None:
        """Close the sockets; all that was programmed stays."""
        self._rules.close()
        self._kernel.close()

    def _add(self, routing: ServiceRouting, marks: Marks, table: Table) -> None:
        add_service(routing, marks.numbers, self._options.scheduler, table)

    def _options_for(self, node: NodeRouting) -> Options:
        families = frozenset(network.family for network in node.pod_networks)
        return msgspec.structs.replace(self._options, pod_families=families)

    def _read_ipvs(
        self,
        held: Table,
        on_device: frozenset[Address],
        lost: frozenset[Virtual] = frozenset(),
        *,
        servers: bool = True,
    ) -> frozenset[Virtual]:
        """Add our virtual services and their servers to a table; return those of other programs."""
        known = lost | frozenset(self._held.get(VIRTUALS, {}))
        if self._poller is None:
            # Before the first commit those of kube-proxy's node ports are taken over as well.
            known |= frozenset(self._adopts())
        exclude = self._options.exclude_networks
        foreign = read_virtuals(self._kernel, held, on_device, known, exclude)
        if servers:
            read_servers(self._kernel, held)
        return foreign

    def _rows_of(self, plan: IpvsPlan, name: ObjectName) -> Table:
        rows: Table = {}
        if old := self._committed.services.get(name):
            self._add(old, self._marks, rows)
        if new := plan.services.get(name):
            self._add(new, plan.marks, rows)
        for set_name, key in self._own_shared_rows(plan, name):
            rows.setdefault(set_name, {})[key] = b""
            if set_name == ADDRESSES_ON_DEVICE:
                # `draining` derives this row: the rules know the addresses on the device.
                derived = schema.ADDRESSES.of(family_of(Address(key)))
                rows.setdefault(derived, {})[key] = b""
        return rows

    def _own_shared_rows(self, plan: IpvsPlan, name: ObjectName) -> Iterator[SharedRow]:
        """Yield the shared rows that a Service needs, or needed, and no other does."""
        growth = self._committed.growth_of(name, plan.services, whole=plan.whole)
        for row, by in growth.items():
            # Shared rows that it keeps stay, and those that only it needs are not added.
            if by < 0 or plan.shared.get(row, 0) <= by:
                yield row
        if plan.whole and (old := self._committed.services.get(name)):
            yield from (row for row in shared_rows(old) if not plan.shared.get(row, 0))

    def _may_block(self, virtual: Virtual) -> bool:
        """Return whether a program or another machine may use a virtual service's address."""
        cluster_ips = self._held.get(schema.CLUSTER_IPS.of(virtual.family), {})
        return not virtual.mark and virtual.address not in cluster_ips

    def _remove_drained(self, drained: AbstractSet[ServerKey]) -> None:
        change = Change(
            rows_of_drained(self._draining, drained),
            {},
            self._committed.is_needed,
            self._node_addresses,
            drained,
        )
        planned = plan_delta(self._held, self._draining, change)
        self.commit(
            IpvsPlan(
                planned.delta,
                planned.draining,
                {},
                {},
                self._marks,
                self._loaded or self._options_for(self._committed.node),
            )
        )

    def _remember(self, plan: IpvsPlan, failures: tuple[Failure, ...]) -> None:
        left_out = {failure.name for failure in failures}
        draining, marks = plan.draining, plan.marks
        if left_out:
            draining, marks = self._with_rejected(plan, left_out)
        kept = {name: old for name in left_out if (old := self._committed.services.get(name))}
        self._committed.remember(
            plan.services, plan.shared, plan.node, whole=plan.whole, left_out=left_out
        )
        if plan.whole:
            self._committed.keep(kept)
        self._marks = marks
        self._draining = draining
        self._deadlines.start(draining)
        if self._poller is None:
            self._poller = DriftPoller(self._kernel)
        self._poller.reset(self._node_addresses)

    def _with_rejected(
        self, plan: IpvsPlan, names: AbstractSet[ObjectName]
    ) -> tuple[Draining, Marks]:
        """Return draining servers and marks after the plan; these Services keep theirs."""
        own = {v for name in names for v in self._rows_of(plan, name).get(VIRTUALS, {})}
        virtuals = (plan.draining.virtuals - own) | (self._draining.virtuals & own)
        servers = {v: some for v, some in plan.draining.servers.items() if v not in own}
        weights = self._held.get(SERVERS, {})
        for virtual in own:
            drained = self._draining.servers.get(virtual, frozenset[Backend]())
            # A restart forgets which servers drain, and their weight tells.
            if plan.whole:
                drained |= plan.draining.servers.get(virtual, frozenset[Backend]())
            if some := frozenset(each for each in drained if weights.get((virtual, each)) == 0):
                servers[virtual] = some
        numbers = {key: n for key, n in self._marks.numbers.items() if key[0] in names}
        return Draining(servers, virtuals), Marks({**numbers, **plan.marks.numbers})


def _keys(before: Table, after: Table) -> Mapping[str, AbstractSet[Hashable]]:
    return {
        name: before.get(name, {}).keys() | after.get(name, {}).keys()
        for name in before.keys() | after.keys()
    }
