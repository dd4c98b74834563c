"""The nftables dataplane: plans from the last commit or from what the kernel has."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from pyproxy.dataplane.committed_state import CommittedState
from pyproxy.dataplane.diff import diff
from pyproxy.dataplane.interface import (
    Changes,
    Drift,
    Failure,
    FlowOffloadState,
    NodeRouting,
    StateDiff,
    StepLimits,
    TableUsage,
)
from pyproxy.dataplane.nft.loader import (
    check_base_rules,
    delete_table,
    require_nft,
)
from pyproxy.dataplane.nft.readback import read_tables
from pyproxy.dataplane.nft.rows import SharedRow
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables import chains
from pyproxy.dataplane.nftables.affinity_search import AffinitySearch
from pyproxy.dataplane.nftables.audit import Audit
from pyproxy.dataplane.nftables.base_rules import NftablesOptions, base_rules
from pyproxy.dataplane.nftables.compare import compare, table_usage
from pyproxy.dataplane.nftables.compile import add_service, compile_all, node_table, shared_rows
from pyproxy.dataplane.nftables.early_writer import EarlyWriter, Written
from pyproxy.dataplane.nftables.flow_offload import FlowOffload
from pyproxy.dataplane.nftables.plan import (
    NftablesPlan,
    shared_changes,
    without_rows,
)
from pyproxy.dataplane.nftables.readback import ReadAhead, keep_slots, read_table
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.dataplane.nftables.table_writer import BATCH_ROWS, TableWriter
from pyproxy.dataplane.nftables.unused_chains import UnusedChains
from pyproxy.dataplane.slots import place_service
from pyproxy.errors import (
    KernelError,
    PermissionKernelError,
    UsageError,
)
from pyproxy.model.address import FAMILIES
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.monitor import Monitor
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import get_generation, read_generation
from pyproxy.policy.routing import ServiceRouting

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from pyproxy.dataplane.nftables.offload_devices import OffloadDevices

log = logging.getLogger(__name__)

_STEP_ROWS = 2_500
"""Rows that are compiled and written before the agent looks for new changes: 20 ms."""


class NftablesDataplane:
    """Programs table `inet pyproxy` of the network namespace that it is made in."""

    name: str = "nftables"
    step_limits = StepLimits(_STEP_ROWS, large=BATCH_ROWS)
    families = FAMILIES

    def __init__(
        self,
        options: NftablesOptions,
        clock: Callable[[], float] = time.monotonic,
        offload: OffloadDevices | None = None,
    ) -> None:
        self._options = msgspec.structs.replace(options, offload=offload is not None)
        self._committed: CommittedState[SharedRow] = CommittedState(shared_rows)
        self._unused_chains = UnusedChains()
        try:
            self._netlink = Nfnetlink()
        except KernelError as error:
            raise _unusable(error) from error
        self._offload = FlowOffload(self._netlink, offload)
        self._affinity = AffinitySearch(self._netlink, clock)
        # Notifications have the sender's port, which identifies what this socket wrote.
        self._monitor = Monitor(TABLE, self._netlink.port)
        self._writer = TableWriter(self._netlink, self._monitor, self._committed)
        self._ahead: ReadAhead | None = None
        self._early: EarlyWriter | None = None
        self._audit: Audit | None = None

    @property
    def messages_sent(self) -> int:
        """Netlink messages sent to the kernel, dump requests not counted."""
        return self._netlink.messages_sent

    @property
    def bytes_sent(self) -> int:
        """Bytes sent to the kernel, with batch headers and dump requests."""
        return self._netlink.bytes_sent

    @property
    def kernel_seconds(self) -> float:
        """Seconds of the system calls that sent these; nft's, which loads base rules, are not."""
        return self._netlink.send_seconds

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of flow offload, if it is wanted."""
        try:
            state = self.flow_offload()
        except KernelError as error:
            # A scrape has no way to report an error, and has its other metrics.
            log.debug("cannot read the state of flow offload: %s", error)
            return iter(())
        if state is None:
            return iter(())
        # Inspection commands import this module, and do without prometheus_client.
        from pyproxy.dataplane.nftables.metrics import collect  # noqa: PLC0415

        return collect(state)

    def prepare(self) -> None:
        """Check that nft and nf_tables may be used. Raises UsageError."""
        require_nft()
        self.prepare_to_read()
        try:
            # Deleting a table that does not exist takes the right to write, and writes nothing.
            delete_table(self._netlink, f"{TABLE}-none")
        except KernelError as error:
            raise _unusable(error) from error
        # Before the first read-back, so that no later write of another program is missed.
        self._monitor.listen()

    def prepare_to_read(self) -> None:
        """Check that nf_tables may be read. Raises UsageError."""
        try:
            read_tables(self._netlink)
        except KernelError as error:
            raise _unusable(error) from error

    def read_ahead(self) -> None:
        """Start to read the table for the first `plan_full`; KernelError."""
        self._ahead = ReadAhead(self._monitor.missed)

    def write_early(self, node: NodeRouting) -> EarlyWriter | None:
        """Return a writer for the Services that are routed first if there is no table; KernelError.

        Until `plan_full`, its thread alone uses the socket.
        """
        if self._early is not None or TABLE in read_tables(self._netlink):
            return None
        self._early = self._writer.early_writer(node, self._options_for(node))
        return self._early

    def plan(self, changes: Changes) -> NftablesPlan:
        """Compare what changed with the last commit; does not ask the kernel."""
        before: Table = {}
        after: Table = {}
        placed: dict[ObjectName, ServiceRouting | None] = {}
        for name, wanted in changes.services.items():
            old = self._committed.services.get(name)
            # Endpoints keep their slots first: otherwise only their order would differ.
            new = place_service(old, wanted) if wanted else None
            if old == new:
                continue
            placed[name] = new
            if old:
                add_service(old, before)
            if new:
                add_service(new, after)
        growth = self._committed.growth(placed)
        gone, come = shared_changes(self._committed.users, growth)
        # Shared rows and the node's are in sets of their own, so `|=` replaces no rows.
        before |= gone
        after |= come
        options = self._writer.loaded or self._options_for(self._committed.node)
        if changes.node is not None:
            before |= node_table(self._committed.node)
            after |= node_table(changes.node)
            options = self._options_for(changes.node)
        delta = diff(before, after)
        return NftablesPlan(
            delta,
            placed,
            growth,
            options,
            self._writer.missing_chains(delta.add),
            changes.node,
            reload=options != self._writer.loaded,
        )

    def plan_full(self, services: Iterable[ServiceRouting], node: NodeRouting) -> NftablesPlan:
        """Read the kernel back and plan from it to the whole desired state. Raises KernelError."""
        early, self._early = self._early, None
        # Before the rest of this method, which the kernel needs for the last of them.
        written = early.end() if early is not None else None
        services = tuple(services)
        placed = {wanted.name: wanted for wanted in services}
        if early is not None and written is not None:
            are_written = set(map(id, written.services))
            rest = [each for each in services if id(each) not in are_written]
            # Otherwise one was routed again after it was written.
            are_final = len(rest) + len(written.services) == len(services)
            if early.wait() and are_final:
                # Read before the rest was written.
                self._ahead = None
                return self._plan_rest(placed, rest, written, node)
        held = self._read_table()
        options = self._options_for(node)
        self._writer.read_rules(options)
        after = compile_all(placed.values(), node, self._writer.batch_rows)
        delta = diff(held, after.table)
        if held:
            delta = keep_slots(held, placed, after.table, delta)
        return NftablesPlan(
            delta,
            placed,
            after.shared,
            options,
            self._writer.missing_chains(after.table),
            node,
            reload=self._writer.loaded is None,
            whole=True,
            # Boundaries count the rows of all Services, and a diff leaves rows out.
            boundaries=() if held else after.boundaries,
            offload=self._offload.plan(),
        )

    def _plan_rest(
        self,
        services: Mapping[ObjectName, ServiceRouting],
        rest: Sequence[ServiceRouting],
        written: Written,
        node: NodeRouting,
    ) -> NftablesPlan:
        """Plan the rest of all Services, which was not written early."""
        after = compile_all(rest, node, self._writer.batch_rows)
        held = node_table(node)
        for set_name, key in written.users if rest else ():
            held.setdefault(set_name, {})[key] = b""
        shared = written.users
        shared.update(after.shared)
        return NftablesPlan(
            diff({}, without_rows(after.table, held)),
            services,
            shared,
            self._options_for(node),
            self._writer.missing_chains(after.table),
            node,
            whole=True,
            offload=self._offload.plan(),
        )

    def plan_repair(self, sets: frozenset[str] | None) -> NftablesPlan:
        """Read `sets` and all rules back, and plan from them to the last commit; KernelError."""
        node = self._committed.node
        options = self._options_for(node)
        lost = self._writer.read_rules(options).sets
        held = read_table(self._netlink, None if sets is None else sets.union(lost))
        # Committed routings have their slots: no Service needs to be routed or placed again.
        services = dict(self._committed.services)
        after = compile_all(services.values(), node, self._writer.batch_rows)
        wanted = after.table
        if sets is not None:
            wanted = {name: wanted[name] for name in wanted if name in sets or name in lost}
        return NftablesPlan(
            diff(held, wanted),
            services,
            after.shared if sets is None else Counter(),
            options,
            self._writer.missing_chains(after.table),
            reload=self._writer.loaded is None,
            whole=sets is None,
            # All sets that were read are empty, so each of them is added with all of its rows.
            boundaries=() if held else after.boundaries,
            offload=self._offload.plan(),
        )

    def start_audit(self) -> bool:
        """Start to compare the table with the last commit; KernelError."""
        if self._audit is None:
            self._audit = Audit(self._committed)
        return True

    @property
    def is_auditing(self) -> bool:
        """Whether an audit has begun whose result no `tick` has taken."""
        return self._audit is not None

    def compare(self, wanted: ServiceRouting, node: NodeRouting) -> StateDiff:
        """Compare the kernel state of one Service with the desired state; KernelError."""
        return compare(self._netlink, wanted, self._options_for(node))

    def check_base_rules(self, node: NodeRouting) -> tuple[str, ...]:
        """Name the base rules, chains and sets that have changed; KernelError."""
        return check_base_rules(self._netlink, base_rules(self._options_for(node)))

    def table_usage(self) -> tuple[TableUsage, ...]:
        """Count each set's elements; KernelError."""
        # A socket of its own: this is called in any thread.
        with closing(Nfnetlink()) as netlink:
            return table_usage(netlink)

    def refused_clients(self) -> Mapping[ObjectName, Mapping[bytes, int]]:
        """Count each Service's connections of late whose client was not learned; KernelError."""
        # Without a chain that learns, no connection can be refused.
        if self._writer.loaded is None or not any(map(chains.is_learning, self._writer.chains)):
            return {}
        return self._affinity.refused(self._committed.services, self._committed.node)

    def commit(self, plan: NftablesPlan) -> tuple[Failure, ...]:
        """Write a plan and remember it; return the Services left out."""
        written, failures = self._writer.write(plan)
        # Compares the plan with the last commit, so `remember` comes after it.
        self._affinity.after_commit(written, self._committed.services, self._committed.node)
        self._committed.remember(
            written.services, written.shared, written.node, whole=written.whole
        )
        if plan.reload:
            # Loading deletes chains made on demand, and with the table all that is in it.
            self._offload.apply(self._offload.plan())
        elif plan.whole or plan.offload:
            self._offload.apply(plan.offload)
        return failures

    def wait_for_devices(self) -> bool:
        """Block until devices change that may be on the fast path; False after `close`."""
        return self._offload.wait()

    def devices_changed(self) -> None:
        """Bind new devices to the flowtable, and release others. Raises KernelError."""
        plan = self._offload.plan_devices()
        if plan:
            self._offload.apply(plan)

    def flow_offload(self) -> FlowOffloadState | None:
        """Return the state of the fast path; None without `--flow-offload`. Any thread."""
        return self._offload.state()

    def wait_for_drift(self) -> Drift | None:
        """Block until another program writes to the table; None after `close`."""
        foreign = self._monitor.wait()
        if foreign is None:
            self._monitor.close()
            return None
        return Drift(foreign.by, foreign.sets)

    def tick(self) -> Drift | None:
        """Delete unused chains, and stale affinities again a second or two after a deletion.

        Try changes of flow offload again that failed.

        Return a drift if an audit has ended and found one.
        """
        self._monitor.keep_listening()
        services = self._committed.services.values()
        self._affinity.tick(services, self._committed.node)
        self._offload.retry()
        self._writer.chains -= self._unused_chains.delete(
            self._netlink, self._writer.chains, services
        )
        if self._audit is None or not self._audit.has_ended:
            return None
        audit, self._audit = self._audit, None
        sets = audit.differing(self._netlink)
        options = self._options_for(self._committed.node)
        is_intact = self._writer.is_intact(options) and self._offload.is_intact()
        if sets is None or not is_intact:
            return Drift("")
        return Drift("", sets) if sets else None

    def cleanup(self) -> None:
        """Delete the table; idempotent. Raises KernelError."""
        delete_table(self._netlink, TABLE)

    def close(self) -> None:
        """Close the sockets; the rules stay."""
        self._monitor.end()
        self._offload.close()
        self._netlink.close()

    def _read_table(self) -> Table:
        # Used once: later read-backs are made because the kernel state is in doubt.
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            held = ahead.take(read_generation(self._netlink.get(get_generation())))
            # The search for unreachable endpoints goes on in the thread.
            return held if held is not None else read_table(self._netlink, reachable=True)
        return read_table(self._netlink)

    def _options_for(self, node: NodeRouting) -> NftablesOptions:
        families = frozenset(network.family for network in node.pod_networks)
        return msgspec.structs.replace(self._options, pod_families=families)


def _unusable(error: KernelError) -> UsageError:
    if isinstance(error, PermissionKernelError):
        return UsageError("no permission to program nf_tables: run as root, or with CAP_NET_ADMIN")
    return UsageError(f"this kernel has no nf_tables: load the module nf_tables ({error})")
