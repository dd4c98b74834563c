"""The nftables dataplane: it remembers what it committed, and does all the I/O of its kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from functools import partial

import msgspec

from pyproxy.dataplane.diff import diff
from pyproxy.dataplane.interface import Changes, Drift, Failure, NodeRouting, StateDiff, TableUsage
from pyproxy.dataplane.nft.loader import (
    check_base_rules,
    delete_table,
    load,
    read_layout,
    require_nft,
    seal,
)
from pyproxy.dataplane.nft.readback import read_tables
from pyproxy.dataplane.nft.rows import SharedRow, node_rows
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables import chains
from pyproxy.dataplane.nftables.affinity import Expectations, expectations, loosened, stale
from pyproxy.dataplane.nftables.ahead import ReadAhead
from pyproxy.dataplane.nftables.base_rules import NftablesOptions, base_rules
from pyproxy.dataplane.nftables.compare import compare, table_usage
from pyproxy.dataplane.nftables.compile_all import whole
from pyproxy.dataplane.nftables.packing import Packed, pack, packed_ahead
from pyproxy.dataplane.nftables.parts import size
from pyproxy.dataplane.nftables.plan import NftablesPlan, shared_changes, targets, without
from pyproxy.dataplane.nftables.readback import (
    read_learned,
    read_table,
    recall,
)
from pyproxy.dataplane.nftables.rows import add_service, shared_rows
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.dataplane.slots import place_service
from pyproxy.errors import (
    KernelError,
    PermissionKernelError,
    RejectedError,
    StaleStateError,
    UsageError,
)
from pyproxy.model.address import Family
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import Shape, delete_elements, element_at
from pyproxy.netlink.kernel_errors import MessageError
from pyproxy.netlink.monitor import Monitor
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM, get_generation, read_generation
from pyproxy.policy.routing import ServiceRouting

Routings = Mapping[ObjectName, ServiceRouting | None]

_AT_ONCE = 10_000
"""Rows of a transaction: the kernel takes 1 to 10 microseconds for each, and nobody else can write
meanwhile. Fewer would take longer altogether, for each commit walks all verdict maps."""

_ANNOUNCED = 5_000
"""Rows at most that are written while we listen: the kernel tells us each of our own, too."""

_ROW_SIZE = 85
"""Bytes of a row in a large transaction, about: what has to fit into the send buffer."""


class NftablesDataplane:
    """Programs table `inet pyproxy` of the network namespace that it was made in."""

    name: str = "nftables"

    def __init__(self, options: NftablesOptions) -> None:
        self._options = options
        self._loaded: NftablesOptions | None = None
        self._node = NodeRouting()
        self._programmed: dict[ObjectName, ServiceRouting] = {}
        self._shared: Counter[SharedRow] = Counter()
        self._chains: set[str] = set()
        self._loads = 0
        self._just_forgot = self._forgot = False
        try:
            self._netlink = Nfnetlink()
            room = self._netlink.grow_send_buffer(_AT_ONCE * _ROW_SIZE)
        except KernelError as error:
            raise _unusable(error) from error
        self._at_once = min(_AT_ONCE, room // _ROW_SIZE)
        self._monitor = Monitor(TABLE, self._netlink.port)
        self._ahead: ReadAhead | None = None

    @property
    def messages_sent(self) -> int:
        """How many netlink messages have gone to the kernel, dumps aside."""
        return self._netlink.messages_sent

    @property
    def bytes_sent(self) -> int:
        """How many bytes have gone to the kernel, batch headers and dump requests included."""
        return self._netlink.bytes_sent

    def prepare(self) -> None:
        """Find out whether nft and nf_tables are here and may be used. Raises UsageError."""
        require_nft()
        self.prepare_to_read()
        try:
            delete_table(self._netlink, f"{TABLE}-none")
        except KernelError as error:
            raise _unusable(error) from error
        self._monitor.listen()

    def prepare_to_read(self) -> None:
        """Find out whether nf_tables is here and may be read. Raises UsageError."""
        try:
            read_tables(self._netlink)
        except KernelError as error:
            raise _unusable(error) from error

    def read_ahead(self) -> None:
        """Begin to read what the first `plan_full` will ask for; KernelError."""
        self._ahead = ReadAhead()

    def plan(self, changes: Changes) -> NftablesPlan:
        """Compare what changed with what was committed last; the kernel is not asked."""
        before: Table = {}
        after: Table = {}
        growth: Counter[SharedRow] = Counter()
        placed: dict[ObjectName, ServiceRouting | None] = {}
        for name, wanted in changes.services.items():
            old = self._programmed.get(name)
            new = place_service(old, wanted) if wanted else None
            if old == new:
                continue
            placed[name] = new
            if old:
                add_service(old, before)
            if new:
                add_service(new, after)
            self._count(growth, old, new)
        gone, come = shared_changes(self._shared, growth)
        before |= gone
        after |= come
        options = self._loaded or self._options_for(self._node)
        if changes.node is not None:
            before |= node_rows(self._node.pod_networks)
            after |= node_rows(changes.node.pod_networks)
            options = self._options_for(changes.node)
        delta = diff(before, after)
        return NftablesPlan(
            delta,
            placed,
            growth,
            options,
            tuple(name for name in chains.needed(targets(delta.add)) if name not in self._chains),
            changes.node,
            reload=options != self._loaded,
        )

    def plan_full(self, services: Iterable[ServiceRouting], node: NodeRouting) -> NftablesPlan:
        """Read the kernel back and plan from it to the whole desired state. Raises KernelError."""
        held = self._held()
        layout = read_layout(self._netlink, TABLE)
        options = self._options_for(node)
        self._loaded = options if base_rules(options).is_loaded(layout) else None
        # Of another version they may do something else; and whoever was at one part was at others.
        self._chains = chains.complete_chains(layout) if self._loaded else set()
        remembered = recall(held)
        placed = {wanted.name: remembered.place(wanted) for wanted in services}
        after = whole(placed.values(), node.pod_networks, self._at_once)
        delta = diff(held, after.table)
        needed = chains.needed(targets(after.table))
        return NftablesPlan(
            delta,
            placed,
            after.shared,
            options,
            tuple(name for name in needed if name not in self._chains),
            node,
            reload=self._loaded is None,
            whole=True,
            cuts=() if held else after.cuts,
        )

    def compare(self, wanted: ServiceRouting, node: NodeRouting) -> StateDiff:
        """Compare what the kernel holds of one Service with what it should; KernelError."""
        return compare(self._netlink, wanted, self._options_for(node))

    def check_base_rules(self, node: NodeRouting) -> tuple[str, ...]:
        """Name the fixed rules, chains and sets that are not as they should be; KernelError."""
        return check_base_rules(self._netlink, base_rules(self._options_for(node)))

    def table_usage(self) -> tuple[TableUsage, ...]:
        """Count each set's elements; KernelError."""
        # The agent's own socket is its thread's alone.
        with closing(Nfnetlink()) as netlink:
            return table_usage(netlink)

    def commit(self, plan: NftablesPlan) -> tuple[Failure, ...]:
        """Write a plan, in parts where it is large, and remember it; what it had to leave out."""
        if not (plan.whole and plan) and size(plan) <= _ANNOUNCED:
            return self._commit(plan)
        others = self._transactions_of_others()
        self._monitor.pause()
        try:
            return self._commit(plan)
        finally:
            self._monitor.listen()
            if self._transactions_of_others() != others:
                self._monitor.missed()

    def _transactions_of_others(self) -> int:
        done = read_generation(self._netlink.get(get_generation()))
        return (done - self._netlink.committed - self._loads) % (1 << 32)

    def _commit(self, plan: NftablesPlan) -> tuple[Failure, ...]:
        failures: list[Failure] = []
        left_out: list[Callable[[NftablesPlan], NftablesPlan]] = []
        with packed_ahead(plan, self._at_once) as packed:
            if plan.reload:
                load(self._netlink, base_rules(plan.options))
                self._loads += 1
                self._loaded = plan.options
            for each in packed:
                part = each
                for leave_out in left_out:
                    part = pack(leave_out(part.plan))
                while refusal := self._send(part):
                    found = self._blame(part, plan.services, refusal)
                    failures.append(Failure(found, refusal.error))
                    left_out.append(self._leaving_out(plan, found))
                    part, plan = pack(left_out[-1](part.plan)), left_out[-1](plan)
        if plan.reload:
            seal(self._netlink, base_rules(plan.options))
        self._forget_clients(plan)
        self._remember(plan)
        return tuple(failures)

    def wait_for_drift(self) -> Drift | None:
        """Wait, in a thread of its own, for somebody else's write; None after `close`."""
        foreign = self._monitor.wait()
        if foreign is None:
            self._monitor.close()
            return None
        return Drift(foreign.by)

    def tick(self) -> None:
        """Look once more for stale affinities, a second or two after any were deleted."""
        due, self._forgot, self._just_forgot = self._forgot, self._just_forgot, False
        if due:
            self._forget_stale(expectations(self._programmed.values()), all_known=True)

    def cleanup(self) -> None:
        """Delete the table; one that is not there is all right. Raises KernelError."""
        delete_table(self._netlink, TABLE)

    def close(self) -> None:
        """Give back the sockets; the rules stay."""
        self._monitor.end()
        self._netlink.close()

    def _held(self) -> Table:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            held = ahead.take(read_generation(self._netlink.get(get_generation())))
            if held is not None:
                return held
        return read_table(self._netlink)

    @staticmethod
    def _count(
        growth: Counter[SharedRow], old: ServiceRouting | None, new: ServiceRouting | None
    ) -> None:
        if old:
            growth.subtract(shared_rows(old))
        if new:
            growth.update(shared_rows(new))

    def _options_for(self, node: NodeRouting) -> NftablesOptions:
        families = frozenset(network.family for network in node.pod_networks)
        return msgspec.structs.replace(self._options, pod_families=families)

    def _send(self, part: Packed) -> MessageError | None:
        made = part.plan.chains
        first = [each for name in made for each in chains.chain(name)]
        messages = [*first, *(write.message for write in part.writes)]
        refusals = self._netlink.transact(messages, SUBSYSTEM)
        if not refusals:
            self._chains.update(made)
            return None
        refusal = refusals[0]
        return msgspec.structs.replace(refusal, index=refusal.index - len(first))

    def _forget_clients(self, plan: NftablesPlan) -> None:
        if plan.whole:
            held = [routing for routing in plan.services.values() if routing is not None]
            allowed = expectations(held)
        else:
            allowed = loosened(self._programmed, plan.services)
        if not (allowed or plan.whole):
            return
        self._forget_stale(allowed, all_known=plan.whole)
        # A packet that met the old rules may yet be learned.
        self._just_forgot |= bool(allowed and plan)

    def _forget_stale(self, allowed: Expectations, *, all_known: bool) -> None:
        for family in Family:
            learned = read_learned(self._netlink, family)
            self._delete_if_there(stale(learned, family, allowed, all_known=all_known))

    def _delete_if_there(self, table: Table) -> None:
        # An entry may time out between being read and being deleted.
        for name, rows in table.items():
            keys = list(rows)
            while keys:
                writes = list(delete_elements(TABLE, name, keys, Shape.EXACT))
                refusals = self._netlink.transact([write.message for write in writes], SUBSYSTEM)
                if not refusals:
                    break
                if not isinstance(refusals[0].error, StaleStateError):
                    raise refusals[0].error
                write = writes[refusals[0].index]
                place = element_at(write.message, refusals[0].offset)
                keys.remove(write.keys[place or 0])

    def _blame(self, part: Packed, services: Routings, refusal: MessageError) -> ObjectName:
        """Name the Service that was refused. Raises the refusal where it is none of these."""
        writes = part.writes
        rejected = isinstance(refusal.error, RejectedError)
        if rejected and 0 <= refusal.index < len(writes):
            write = writes[refusal.index]
            place = element_at(write.message, refusal.offset)
            key = write.keys[place] if place is not None and place < len(write.keys) else None
            for name in services:
                if key in self._rows_of(services, name).get(write.set_name, {}):
                    return name
        raise refusal.error

    def _leaving_out(
        self, plan: NftablesPlan, name: ObjectName
    ) -> Callable[[NftablesPlan], NftablesPlan]:
        # A whole plan counts from nothing, and so there is no old answer to count back to.
        growth = Counter[SharedRow]()
        old = None if plan.whole else self._programmed.get(name)
        self._count(growth, old, plan.services[name])
        rows = self._rows_of(plan.services, name)
        for (set_name, key), by in growth.items():
            # What it keeps stays, and what nobody else wants does not come.
            if by < 0 or plan.shared[set_name, key] <= by:
                rows.setdefault(set_name, {})[key] = b""
        return partial(without, name=name, rows=rows, growth=growth)

    def _rows_of(self, services: Routings, name: ObjectName) -> Table:
        rows: Table = {}
        for routing in (self._programmed.get(name), services[name]):
            if routing:
                add_service(routing, rows)
        return rows

    def _remember(self, plan: NftablesPlan) -> None:
        if plan.node is not None:
            self._node = plan.node
        if plan.whole:
            self._programmed.clear()
            self._shared.clear()
        for name, routing in plan.services.items():
            if routing is None:
                self._programmed.pop(name, None)
            else:
                self._programmed[name] = routing
        self._shared.update(plan.shared)
        fewer = [row for row, by in plan.shared.items() if by <= 0]
        for row in fewer:
            if self._shared[row] <= 0:
                del self._shared[row]


def _unusable(error: KernelError) -> UsageError:
    if isinstance(error, PermissionKernelError):
        return UsageError("no permission to program nf_tables: run as root, or with CAP_NET_ADMIN")
    return UsageError(f"this kernel has no nf_tables: load the module nf_tables ({error})")
