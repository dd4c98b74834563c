"""The nftables dataplane: it remembers what it committed, and does all the I/O of its kind."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable

import msgspec

from pyproxy.dataplane.diff import diff
from pyproxy.dataplane.interface import Changes, Failure, NodeAnswer
from pyproxy.dataplane.nftables import chains, ruleset
from pyproxy.dataplane.nftables.affinity import expectations, loosened, stale
from pyproxy.dataplane.nftables.plan import NftablesPlan, shared_changes, without
from pyproxy.dataplane.nftables.readback import (
    read_chains,
    read_learned,
    read_table,
    read_tables,
    recall,
)
from pyproxy.dataplane.nftables.rows import SharedRow, add_service, node_rows, shared_rows
from pyproxy.dataplane.nftables.ruleset import Options
from pyproxy.dataplane.nftables.schema import TABLE, Table
from pyproxy.dataplane.slots import place_service
from pyproxy.errors import (
    KernelError,
    OutOfStepError,
    PermissionKernelError,
    RejectedError,
    UsageError,
)
from pyproxy.model.address import Family
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.nfnetlink import Nfnetlink, Refusal
from pyproxy.netlink.nftables import (
    SUBSYSTEM,
    ElementMessage,
    Shape,
    delete_elements,
    delete_table,
    element_at,
)
from pyproxy.policy.answer import ServiceAnswer

log = logging.getLogger(__name__)


class NftablesDataplane:
    """Programs table `inet pyproxy` of the network namespace that it was made in."""

    name = "nftables"

    def __init__(self, options: Options) -> None:
        self._options = options
        self._loaded: Options | None = None
        self._node = NodeAnswer()
        self._programmed: dict[ObjectName, ServiceAnswer] = {}
        self._shared: Counter[SharedRow] = Counter()
        self._chains: set[str] = set()
        self._netlink = Nfnetlink()

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
        if shutil.which("nft") is None:
            raise UsageError("nft is not on PATH: install the package nftables")
        try:
            read_tables(self._netlink)
            self._netlink.transact([delete_table(f"{TABLE}-none")], SUBSYSTEM)
        except PermissionKernelError as error:
            raise UsageError(
                "no permission to program nf_tables: run as root, or with CAP_NET_ADMIN"
            ) from error
        except KernelError as error:
            raise UsageError(
                f"this kernel has no nf_tables ({error}): load the module nf_tables"
            ) from error

    def plan(self, changes: Changes) -> NftablesPlan:
        """Compare what changed with what was committed last; the kernel is not asked."""
        before: Table = {}
        after: Table = {}
        growth: Counter[SharedRow] = Counter()
        placed: dict[ObjectName, ServiceAnswer | None] = {}
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
        options = self._loaded or self._options
        if changes.node is not None:
            before |= node_rows(self._node.pod_networks)
            after |= node_rows(changes.node.pod_networks)
            options = self._options_for(changes.node)
        return NftablesPlan(diff(before, after), placed, growth, options, changes.node)

    def replan(self, services: Iterable[ServiceAnswer], node: NodeAnswer) -> NftablesPlan:
        """Read the kernel back and plan from it to the whole desired state. Raises KernelError."""
        held = read_table(self._netlink)
        self._chains = read_chains(self._netlink)
        options = self._options_for(node)
        self._loaded = options if ruleset.marker(options) in self._chains else None
        remembered = recall(held)
        after = node_rows(node.pod_networks)
        shared: Counter[SharedRow] = Counter()
        placed: dict[ObjectName, ServiceAnswer | None] = {}
        for wanted in services:
            answer = remembered.place(wanted)
            placed[wanted.name] = answer
            add_service(answer, after)
            shared.update(shared_rows(answer))
        for set_name, key in shared:
            after.setdefault(set_name, {})[key] = b""
        return NftablesPlan(diff(held, after), placed, shared, options, node, whole=True)

    def commit(self, plan: NftablesPlan) -> tuple[Failure, ...]:
        """Write a plan in one transaction and remember it; the Services it had to leave out."""
        if plan.options != self._loaded:
            self._load(plan.options)
        failures: list[Failure] = []
        while refusal := self._send(plan):
            if not isinstance(refusal.error, RejectedError | OutOfStepError):
                raise refusal.error
            found = self._blame(plan, refusal)
            if found is None or isinstance(refusal.error, OutOfStepError):
                raise refusal.error
            failures.append(Failure(found, refusal.error))
            growth = Counter[SharedRow]()
            self._count(growth, self._programmed.get(found), plan.services[found])
            plan = without(plan, found, self._rows_of(plan, found), growth)
        self._forget_clients(plan)
        self._remember(plan)
        return tuple(failures)

    def cleanup(self) -> None:
        """Delete the table; one that is not there is all right. Raises KernelError."""
        refusals = self._netlink.transact([delete_table(TABLE)], SUBSYSTEM)
        if refusals and not isinstance(refusals[0].error, OutOfStepError):
            raise refusals[0].error

    def close(self) -> None:
        """Give back the socket; the rules stay."""
        self._netlink.close()

    @staticmethod
    def _count(
        growth: Counter[SharedRow], old: ServiceAnswer | None, new: ServiceAnswer | None
    ) -> None:
        if old:
            growth.subtract(shared_rows(old))
        if new:
            growth.update(shared_rows(new))

    def _options_for(self, node: NodeAnswer) -> Options:
        families = frozenset(network.family for network in node.pod_networks)
        return msgspec.structs.replace(self._options, pod_families=families)

    def _load(self, options: Options) -> None:
        text = ruleset.ruleset(options, read_chains(self._netlink))
        done = subprocess.run(
            ["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False
        )
        if done.returncode:
            words = " ".join(done.stderr.split())
            kind = PermissionKernelError if "not permitted" in words else RejectedError
            raise kind(f"nft did not load the ruleset: {words}", 0)
        self._loaded = options
        self._chains = read_chains(self._netlink)

    def _send(self, plan: NftablesPlan) -> Refusal | None:
        missing = [name for name in chains.needed(plan.targets()) if name not in self._chains]
        first = [each for name in missing for each in chains.chain(name, plan.options.mark)]
        writes = list(plan.messages())
        refusals = self._netlink.transact([*first, *(write.message for write in writes)], SUBSYSTEM)
        if not refusals:
            self._chains.update(missing)
            return None
        refusal = refusals[0]
        return msgspec.structs.replace(refusal, index=refusal.index - len(first))

    def _forget_clients(self, plan: NftablesPlan) -> None:
        if plan.whole:
            held = [answer for answer in plan.services.values() if answer is not None]
            allowed = expectations(held)
        else:
            allowed = loosened(self._programmed, plan.services)
        if not (allowed or plan.whole):
            return
        for family in Family:
            learned = read_learned(self._netlink, family)
            self._delete_if_there(stale(learned, family, allowed, all_known=plan.whole))

    def _delete_if_there(self, table: Table) -> None:
        # An entry may time out between being read and being deleted.
        for name, rows in table.items():
            keys = list(rows)
            while keys:
                writes = list(delete_elements(TABLE, name, keys, Shape.EXACT))
                refusals = self._netlink.transact([write.message for write in writes], SUBSYSTEM)
                if not refusals:
                    break
                if not isinstance(refusals[0].error, OutOfStepError):
                    raise refusals[0].error
                write = writes[refusals[0].index]
                place = element_at(write.message, refusals[0].offset)
                keys.remove(write.keys[place or 0])

    def _blame(self, plan: NftablesPlan, refusal: Refusal) -> ObjectName | None:
        writes: list[ElementMessage] = list(plan.messages())
        if not 0 <= refusal.index < len(writes):
            return None
        write = writes[refusal.index]
        place = element_at(write.message, refusal.offset)
        if place is None or place >= len(write.keys):
            return None
        key = write.keys[place]
        for name in plan.services:
            if key in self._rows_of(plan, name).get(write.set_name, {}):
                return name
        return None

    def _rows_of(self, plan: NftablesPlan, name: ObjectName) -> Table:
        rows: Table = {}
        for answer in (self._programmed.get(name), plan.services[name]):
            if answer:
                add_service(answer, rows)
        return rows

    def _remember(self, plan: NftablesPlan) -> None:
        if plan.node is not None:
            self._node = plan.node
        if plan.whole:
            self._programmed.clear()
            self._shared.clear()
        for name, answer in plan.services.items():
            if answer is None:
                self._programmed.pop(name, None)
            else:
                self._programmed[name] = answer
        self._shared.update(plan.shared)
        for row in [row for row in plan.shared if self._shared[row] <= 0]:
            del self._shared[row]
