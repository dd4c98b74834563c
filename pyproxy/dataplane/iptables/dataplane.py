"""The iptables dataplane: it remembers what it committed, and does all the I/O of its kind."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from pyproxy.dataplane.interface import Changes, Drift, Failure, NodeRouting, StateDiff, TableUsage
from pyproxy.dataplane.iptables import metrics, names
from pyproxy.dataplane.iptables.committed_state import CommittedState, Saved
from pyproxy.dataplane.iptables.compare import check_base_rules, compare
from pyproxy.dataplane.iptables.fixed import Options
from pyproxy.dataplane.iptables.plan import IptablesPlan, TableName, removal
from pyproxy.dataplane.iptables.programs import Programs, RestoreError, detect
from pyproxy.dataplane.iptables.watch import Watch
from pyproxy.errors import KernelError, StaleStateError
from pyproxy.model.address import Family
from pyproxy.model.flavour import Flavour
from pyproxy.model.objects import ObjectName
from pyproxy.netlink import nfacct
from pyproxy.policy.routing import ServiceRouting

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger(__name__)


class IptablesDataplane:
    """Programs the chains that are ours in the network namespace that it was made in.

    All that runs a program, which is all but `plan` and what tells of the past, must be called in
    that namespace. `flavour` is None for the one that the node's other programs use.

    `rules_written` are those that the last write took, by table, and `failures` counts the writes
    of a family that failed, those of everything (True) and those of what changed (False).
    """

    name: str = "iptables"

    def __init__(self, options: Options, flavour: Flavour | None = None) -> None:
        self._options = options
        self.flavour = flavour or detect()
        self._programs = {family: Programs(family, self.flavour) for family in Family}
        self._memory = CommittedState(options, tuple(Family))
        self._watch = Watch(self.flavour)
        self.rules_written: Mapping[TableName, int] = {}
        self.failures: Counter[tuple[Family, bool]] = Counter()

    @property
    def messages_sent(self) -> int:
        """How many times iptables-restore was run."""
        return sum(each.writes for each in self._programs.values())

    @property
    def bytes_sent(self) -> int:
        """How many bytes iptables-restore was given."""
        return sum(each.bytes_written for each in self._programs.values())

    @property
    def lock_waits(self) -> int:
        """How many times another program held iptables' lock."""
        return sum(each.lock_waits for each in self._programs.values())

    @property
    def rules(self) -> Mapping[TableName, int]:
        """How many rules each table has in chains of ours."""
        return self._memory.rules

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of this mode, from counts that are kept anyway."""
        # The metrics library takes long to import, and commands that only read need none of it.

        return metrics.collect(self)

    def prepare(self) -> None:
        """Find out whether iptables' programs are here and may be used. Raises UsageError."""
        for programs in self._programs.values():
            programs.prepare()
        self._count_into(nfacct.create_counters(names.COUNTERS))
        log.info("writing rules of the flavour %s", self.flavour.value)

    def prepare_to_read(self) -> None:
        """Find out whether iptables' programs are here. Raises UsageError."""
        for programs in self._programs.values():
            programs.require()
        self._count_into(names.COUNTERS if nfacct.is_supported() else frozenset())

    def read_ahead(self) -> None:
        """Do nothing: `plan_full` runs the programs of both families anyway."""

    def plan(self, changes: Changes) -> IptablesPlan:
        """Compare what changed with what was committed last; the kernel is not asked."""
        return self._memory.plan(changes.services, changes.node)

    def plan_full(self, services: Iterable[ServiceRouting], node: NodeRouting) -> IptablesPlan:
        """Read the kernel back and plan from it to the whole desired state. Raises KernelError."""
        self._watch.begin()
        return self._memory.plan_whole(services, node, self._save())

    def compare(self, wanted: ServiceRouting, node: NodeRouting) -> StateDiff:
        """Compare what the kernel holds of one Service with what it should; KernelError."""
        return compare(self._save(), wanted, self._options, node)

    def check_base_rules(self, node: NodeRouting) -> tuple[str, ...]:
        """Name what is not as it should be of the chains that all Services share; KernelError."""
        return check_base_rules(self._save(), self._options, node)

    def table_usage(self) -> tuple[TableUsage, ...]:
        """Count the rules of ours in each table, as they are remembered."""
        return tuple(
            TableUsage(f"{family.label} {table} rules", count)
            for (family, table), count in self.rules.items()
            if count
        )

    def commit(self, plan: IptablesPlan) -> tuple[Failure, ...]:
        """Write a plan, one transaction a table, and remember it; the Services left out.

        Where a table is refused, those before it in the plan have been written. Only the kernel
        can tell how far that was, so a plan that was made without asking it is not tried further.
        """
        try:
            self._write(plan)
        except RestoreError as error:
            if not plan.whole:
                raise StaleStateError(str(error), 0) from error
            return self._set_aside(plan, error)
        return ()

    def tick(self) -> Drift | None:
        """Look for what others have written to iptables-legacy, which announces nothing."""
        return self._watch.look()

    def wait_for_drift(self) -> Drift | None:
        """Wait, in a thread of its own, for somebody else's write; None after `close`."""
        return self._watch.wait()

    def cleanup(self) -> None:
        """Remove all that is ours; a chain that others' rules lead to is emptied."""
        for family, saved in self._save().items():
            self._programs[family].restore(removal(saved))
        nfacct.delete_counters(names.COUNTERS)

    def close(self) -> None:
        """Give back sockets; the rules stay."""
        self._watch.close()

    def _count_into(self, names: frozenset[str]) -> None:
        self._options = msgspec.structs.replace(self._options, counters=names)
        self._memory = CommittedState(self._options, tuple(Family))

    def _save(self) -> Saved:
        return {family: programs.save() for family, programs in self._programs.items()}

    def _write(self, plan: IptablesPlan, *, from_known: bool = True) -> None:
        with self._watch.writing(plan.growth(), from_known=from_known):
            for family, programs in self._programs.items():
                if lines := plan.script(family):
                    try:
                        programs.restore(lines)
                    except KernelError:
                        self.failures[family, plan.whole] += 1
                        raise
        self.rules_written = plan.rules_written()
        self._memory.remember(plan)

    def _set_aside(self, plan: IptablesPlan, error: RestoreError) -> tuple[Failure, ...]:
        """Write the plan without the Services at fault, which keep what was programmed of them."""
        failures: list[Failure] = []
        wanted = {name: routing for name, routing in plan.wanted.items() if routing is not None}
        node = plan.node or NodeRouting()
        while found := self._memory.owner(wanted.values(), node, error.line):
            failures.append(Failure(found, error))
            wanted = self._instead(wanted, [found])
            try:
                self._write(self.plan_full(wanted.values(), node))
            except RestoreError as again:
                error = again
            else:
                return tuple(failures)
        # iptables-legacy is often told no more than that something is wrong with the table.
        self._write(self.plan_full(self._instead(wanted, list(wanted)).values(), node))
        return (*failures, *self._try(list(wanted.values())))

    def _instead(
        self, wanted: dict[ObjectName, ServiceRouting], names: Iterable[ObjectName]
    ) -> dict[ObjectName, ServiceRouting]:
        before = {name: self._memory.routing(name) for name in names}
        return {
            name: routing
            for name, asked in wanted.items()
            if (routing := before.get(name, asked)) is not None
        }

    def _try(self, routings: list[ServiceRouting]) -> tuple[Failure, ...]:
        """Write these Services, and where that is refused each half of them alone."""
        plan = self._memory.plan({each.name: each for each in routings}, None)
        try:
            self._write(plan)
        except RestoreError as error:
            self._write(self._memory.undo(plan), from_known=False)
            if len(routings) == 1:
                return (Failure(routings[0].name, error),)
            middle = len(routings) // 2
            return (*self._try(routings[:middle]), *self._try(routings[middle:]))
        return ()
