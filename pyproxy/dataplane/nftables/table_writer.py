"""Writing plans into the kernel's table, in transactions that it takes or refuses as a whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from pyproxy.dataplane.committed_state import CommittedState, Routings
from pyproxy.dataplane.diff import Delta
from pyproxy.dataplane.interface import Failure, NodeRouting
from pyproxy.dataplane.nft.base_rules import BaseRules, Names
from pyproxy.dataplane.nft.loader import begin_load, finish_load, load_rules, read_layout
from pyproxy.dataplane.nft.own_transactions import without_notifications
from pyproxy.dataplane.nft.rows import SharedRow
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables import chains
from pyproxy.dataplane.nftables.base_rules import NftablesOptions, base_rules
from pyproxy.dataplane.nftables.batches import PackedBatch, pack, packed_batches, row_count
from pyproxy.dataplane.nftables.compile import add_service
from pyproxy.dataplane.nftables.early_writer import EarlyWriter
from pyproxy.dataplane.nftables.plain_rows import PlainRows
from pyproxy.dataplane.nftables.plan import NftablesPlan, postpone_removals, targets, without
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.errors import RejectedError
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import element_at
from pyproxy.netlink.kernel_errors import MessageError
from pyproxy.netlink.monitor import Monitor
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM

BATCH_ROWS = 10_000
"""Rows of a transaction. The kernel takes 1 to 10 microseconds for each, and other programs cannot
write meanwhile. Smaller batches take longer in all: each commit walks all verdict maps."""

_MONITORED_ROWS = 5_000
"""Rows at most that are written while the monitor listens: the kernel notifies of our own too."""

_ROW_SIZE = 85
"""Bytes of a row in a large transaction, about: what has to fit into the send buffer."""


class TableWriter:
    """Writes plans, and knows which base rules and on-demand chains the table has.

    `loaded` are the options of the base rules in the kernel, None if they are not this version's.
    One thread at a time; all methods block for the kernel. Raises KernelError.
    """

    def __init__(
        self, netlink: Nfnetlink, monitor: Monitor, committed: CommittedState[SharedRow]
    ) -> None:
        self._netlink = netlink
        self._monitor = monitor
        self._committed = committed
        room = netlink.grow_send_buffer(BATCH_ROWS * _ROW_SIZE)
        self.batch_rows = min(BATCH_ROWS, room // _ROW_SIZE)
        self.loaded: NftablesOptions | None = None
        self.chains: set[str] = set()

    def missing_chains(self, table: Table) -> tuple[str, ...]:
        """Return the on-demand chains that rows lead to and the kernel does not have."""
        return tuple(name for name in chains.needed(targets(table)) if name not in self.chains)

    def read_rules(self, options: NftablesOptions) -> Names:
        """Note which rules the kernel has; return what else of the base rules it lacks."""
        layout = read_layout(self._netlink, TABLE)
        base = base_rules(options)
        self.loaded = options if base.is_loaded(layout) else None
        # Chains of another version may have the same names and other rules. A program that changed
        # the base rules may have changed these too.
        self.chains = chains.complete_chains(layout) if self.loaded else set()
        return base.missing(layout)

    def is_intact(self, options: NftablesOptions) -> bool:
        """Return whether the kernel has the base rules, and the chains that were written."""
        layout = read_layout(self._netlink, TABLE)
        base = base_rules(options)
        is_complete = base.is_loaded(layout) and not base.missing(layout)
        return is_complete and self.chains <= chains.complete_chains(layout)

    def early_writer(self, node: NodeRouting, options: NftablesOptions) -> EarlyWriter:
        """Return a writer of Services into a table that does not exist yet.

        Until it has finished, its thread alone uses the socket.
        """
        base = base_rules(options)

        def session(write_all: Callable[[], None]) -> None:
            with without_notifications(self._netlink, self._monitor):
                begin_load(self._netlink, base)
                write_all()
                finish_load(self._netlink, base, self.chains)
                self.loaded = options

        def packed(rows: Table, plain: PlainRows) -> PackedBatch:
            # No Service is named, because an error ends all early writes.
            made = tuple(chains.needed(targets(rows) | plain.targets))
            batch = pack(NftablesPlan(Delta({}, rows), {}, {}, options, made))
            return PackedBatch(batch.plan, (*batch.writes, *plain.messages()))

        def write(batch: PackedBatch) -> None:
            # Known only now: the batch before may have made the same chains.
            new = tuple(name for name in batch.plan.chains if name not in self.chains)
            plan = msgspec.structs.replace(batch.plan, chains=new)
            rejected = self._send(PackedBatch(plan, batch.writes))
            if rejected is not None:
                raise rejected.error

        return EarlyWriter(node, session, packed, write, self.batch_rows)

    def write(self, plan: NftablesPlan) -> tuple[NftablesPlan, tuple[Failure, ...]]:
        """Write a plan, in batches if it is large; return it without the Services that failed.

        Large plans are written with the monitor paused. Writes of other programs are then found by
        nf_tables' generation, which each transaction increments.
        """
        # Base rules are loaded through nft, whose notifications would look foreign.
        if not plan.reload and row_count(plan) <= _MONITORED_ROWS:
            return self._write_all(plan)
        with without_notifications(self._netlink, self._monitor):
            return self._write_all(plan)

    def _write_all(self, plan: NftablesPlan) -> tuple[NftablesPlan, tuple[Failure, ...]]:
        failures: list[Failure] = []
        if not plan.reload:
            return self._write(plan, failures), tuple(failures)
        base = base_rules(plan.options)
        first, later = postpone_removals(plan)
        written = self._write(first, failures, base)
        load_rules(self._netlink, base)
        for failure in failures:
            later = self._leaving_out(later, failure.name)(later)
        if later.delta:
            self._write(later, failures)
        finish_load(self._netlink, base, self.chains)
        return written, tuple(failures)

    def _write(
        self, plan: NftablesPlan, failures: list[Failure], base: BaseRules | None = None
    ) -> NftablesPlan:
        """Write the elements of a plan; return it without the Services added to `failures`."""
        left_out: list[Callable[[NftablesPlan], NftablesPlan]] = []
        # Packing starts before nft does: both take their time, in different processes.
        with packed_batches(plan, self.batch_rows) as packed:
            if base is not None:
                begin_load(self._netlink, base)
                self.loaded = plan.options
            for each in packed:
                batch = each
                # This batch was packed before the earlier one failed.
                for leave_out in left_out:
                    batch = pack(leave_out(batch.plan))
                while rejected := self._send(batch):
                    found = self._service_at_fault(batch, plan.services, rejected)
                    failures.append(Failure(found, rejected.error))
                    left_out.append(self._leaving_out(plan, found))
                    batch, plan = pack(left_out[-1](batch.plan)), left_out[-1](plan)
        return plan

    def _send(self, batch: PackedBatch) -> MessageError | None:
        made = batch.plan.chains
        # A verdict can name a chain only if it exists, or is earlier in the batch.
        first = [each for name in made for each in chains.chain(name)]
        messages = [*first, *(write.message for write in batch.writes)]
        errors = self._netlink.transact(messages, SUBSYSTEM)
        if not errors:
            self.chains.update(made)
            return None
        # An index below 0 then means the batch or a chain: no Service is at fault.
        return msgspec.structs.replace(errors[0], index=errors[0].index - len(first))

    def _service_at_fault(
        self, batch: PackedBatch, services: Routings, rejected: MessageError
    ) -> ObjectName:
        """Return the Service whose element was rejected; raise the error if it is none of these."""
        writes = batch.writes
        # Other errors, such as ENOMEM or ENOENT, concern the transaction and not one Service.
        if isinstance(rejected.error, RejectedError) and 0 <= rejected.index < len(writes):
            write = writes[rejected.index]
            place = element_at(write.message, rejected.offset)
            key = write.keys[place] if place is not None and place < len(write.keys) else None
            for name in services:
                if key in self._rows_of(services, name).get(write.set_name, {}):
                    return name
        raise rejected.error

    def _leaving_out(
        self, plan: NftablesPlan, name: ObjectName
    ) -> Callable[[NftablesPlan], NftablesPlan]:
        growth = self._committed.growth_of(name, plan.services, whole=plan.whole)
        rows = self._rows_of(plan.services, name)
        for (set_name, key), by in growth.items():
            # Shared rows that it keeps stay, and those that only it needs are not added.
            if by < 0 or plan.shared[set_name, key] <= by:
                rows.setdefault(set_name, {})[key] = b""
        return partial(without, name=name, rows=rows, growth=growth)

    def _rows_of(self, services: Routings, name: ObjectName) -> Table:
        rows: Table = {}
        for routing in self._committed.of(name, services):
            add_service(routing, rows)
        return rows
