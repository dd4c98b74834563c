"""The iptables dataplane: it writes with iptables-restore or netlink, and reads with iptables-save.

In the flavour nft, chains are written over netlink. iptables-nft-restore writes the rules of
built-in chains, and everything that the kernel rejects over netlink.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from pyproxy.dataplane.interface import (
    Changes,
    Drift,
    Failure,
    NodeRouting,
    StateDiff,
    StepLimits,
    TableUsage,
)
from pyproxy.dataplane.iptables import metrics
from pyproxy.dataplane.iptables.base_rules import TABLES, IptablesOptions
from pyproxy.dataplane.iptables.committed_state import CommittedTables, Saved
from pyproxy.dataplane.iptables.compare import check_base_rules, compare
from pyproxy.dataplane.iptables.drift_detector import DriftDetector
from pyproxy.dataplane.iptables.nft_writer import NftWriter
from pyproxy.dataplane.iptables.plan import IptablesPlan, TableName
from pyproxy.dataplane.iptables.rejections import Rejections
from pyproxy.dataplane.iptables.service_path import Read, read_base, read_path
from pyproxy.errors import (
    KernelError,
    PermissionKernelError,
    StaleStateError,
    TransientKernelError,
    UsageError,
)
from pyproxy.model.address import Family
from pyproxy.model.flavour import Flavour
from pyproxy.model.objects import ObjectName
from pyproxy.netlink import nfacct
from pyproxy.policy.routing import ServiceRouting
from pyproxy.xtables import kube_names
from pyproxy.xtables.nft_reader import NftReader
from pyproxy.xtables.nft_text import UnknownRuleError
from pyproxy.xtables.programs import Programs, RestoreError, detect_flavour
from pyproxy.xtables.removal import plan_removal

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger(__name__)

T = TypeVar("T")

# iptables-legacy reads a table, changes it, and replaces it as a whole, so its programs lock this
# file meanwhile. iptables-nft needs no lock: nf_tables commits transactions of changes.
_LOCK_FILE = Path("/run/xtables.lock")


class IptablesDataplane:
    """Programs pyproxy's chains in the network namespace that it was made in.

    Methods that run a program must be called in that namespace: all but `plan` and properties.
    `flavour` is None for the flavour that the node's other programs use.

    `rules_written` counts the rules of the last write, by table. `failures` counts failed writes
    of a family: those of a full plan (True) and of a partial one (False). `lock_waits` counts
    writes that found iptables' lock held by another program.
    """

    name: str = "iptables"
    step_limits = StepLimits(50_000, large=10_000, divides=False)

    def __init__(self, options: IptablesOptions, flavour: Flavour | None = None) -> None:
        self._options = options
        self.flavour = flavour or detect_flavour()
        self._programs = {family: Programs(family, self.flavour) for family in Family}
        self._committed = CommittedTables(options, tuple(self._programs))
        self._drift = DriftDetector(self.flavour)
        self._writer = NftWriter() if self.flavour is Flavour.NFT else None
        self._restores = 0
        self._restored_bytes = 0
        self._restored_tables = 0
        self._restore_seconds = 0.0
        self.lock_waits = 0
        self.rules_written: Mapping[TableName, int] = {}
        self.failures: Counter[tuple[Family, bool]] = Counter()
        self._creates_counters = False
        self._packets: nfacct.PacketCounters | None = None

    @property
    def messages_sent(self) -> int:
        """Netlink messages, and runs of iptables-restore."""
        return self._restores + (self._writer.messages_sent if self._writer else 0)

    @property
    def bytes_sent(self) -> int:
        """Bytes of netlink messages, and of iptables-restore's input."""
        return self._restored_bytes + (self._writer.bytes_sent if self._writer else 0)

    @property
    def kernel_seconds(self) -> float:
        """Seconds in which netlink messages were sent and iptables-restore ran."""
        return self._restore_seconds + (self._writer.send_seconds if self._writer else 0.0)

    @property
    def families(self) -> frozenset[Family]:
        """The families whose tables can be written, known after `prepare`."""
        return frozenset(self._programs)

    @property
    def rules(self) -> Mapping[TableName, int]:
        """The number of rules in pyproxy's chains of each table, as committed last."""
        return self._committed.rules

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of this mode, from counts that are kept anyway."""
        # A copy, because the agent's thread counts meanwhile.
        counts = metrics.Counts(
            self.rules,
            self.rules_written,
            self.failures.copy(),
            self.packets(),
            self.lock_waits,
        )
        return metrics.collect(counts)

    def packets(self) -> Mapping[str, int]:
        """Return the packets that rules with a counter met, by nfacct object. Blocks.

        Empty on a kernel without nfacct, and before `prepare`.
        """
        return self._packets.read() if self._packets is not None else {}

    def prepare(self) -> None:
        """Check that iptables' programs are installed and may write, in one family at least.

        The other family is not served, as in kube-proxy. Raises UsageError.
        """
        self._restrict(_try_write)
        self._creates_counters = True
        self._create_counters()
        self._committed = CommittedTables(self._options, tuple(self._programs))
        log.info("writing rules with iptables-%s", self.flavour.value)

    def prepare_to_read(self) -> None:
        """Check that the programs of one family at least are installed. Raises UsageError."""
        self._restrict(Programs.require)
        self._use_counters(kube_names.COUNTERS if nfacct.is_supported() else frozenset())
        self._committed = CommittedTables(self._options, tuple(self._programs))

    def read_ahead(self) -> None:
        """Do nothing: `plan_full` runs the programs of both families anyway."""

    def write_early(self, node: NodeRouting) -> None:
        """Return None: each write replaces the tables as a whole."""

    def plan(self, changes: Changes) -> IptablesPlan:
        """Compare what changed with the last commit; the kernel is not read."""
        return self._committed.plan(changes.services, changes.node)

    def plan_full(self, services: Iterable[ServiceRouting], node: NodeRouting) -> IptablesPlan:
        """Read the kernel back, and plan from there to the whole desired state."""
        self._drift.begin()
        if self._creates_counters:
            # A program that resets the firewall deletes the objects too once no rule names them.
            self._create_counters()
        return self._committed.plan_full(services, node, self._save())

    def plan_repair(self, sets: frozenset[str] | None) -> IptablesPlan | None:  # noqa: ARG002
        """Return None: the read-back takes most of the time of `plan_full`."""
        return None

    def start_audit(self) -> bool:
        """Return False: only a read-back compares."""
        return False

    def compare(self, wanted: ServiceRouting, node: NodeRouting) -> StateDiff:
        """Compare the kernel state of one Service, and the base rules, with the desired state."""
        found = self._read_chains(
            lambda read: compare(
                read_path(read, wanted, self._options, node, self._programs),
                wanted,
                self._options,
                node,
            )
        )
        # Where a rule is missing, a chain that was not read may show why.
        if found is None or found:
            return compare(self._save(), wanted, self._options, node)
        return found

    def check_base_rules(self, node: NodeRouting) -> tuple[str, ...]:
        """Return a line for each difference in the base rules."""
        found = self._read_chains(
            lambda read: check_base_rules(
                read_base(read, self._options, node, self._programs), self._options, node
            )
        )
        return found if found is not None else check_base_rules(self._save(), self._options, node)

    def table_usage(self) -> tuple[TableUsage, ...]:
        """Return the number of pyproxy's rules in each table, as committed last."""
        return tuple(
            TableUsage(f"{family.label} {table} rules", count)
            for (family, table), count in self.rules.items()
            if count
        )

    def refused_clients(self) -> Mapping[ObjectName, Mapping[bytes, int]]:
        """Return nothing: the kernel bounds session affinity in its own way."""
        return {}

    def commit(self, plan: IptablesPlan) -> tuple[Failure, ...]:
        """Write a plan, one transaction per table, and return the Services left out.

        If a table is rejected, the tables before it stay written. Only a read-back shows what was
        written, so a partial plan then raises StaleStateError.
        """
        try:
            self._write(plan)
        except RestoreError as error:
            if not plan.full:
                raise StaleStateError(str(error), 0) from error
            return Rejections(self._committed, self._write, self.plan_full).leave_out(plan, error)
        return ()

    def wait_for_devices(self) -> bool:
        """Return False: the rules name no device that comes and goes."""
        return False

    def devices_changed(self) -> None:
        """Do nothing."""

    def flow_offload(self) -> None:
        """Return None: there is no fast path."""

    def tick(self) -> Drift | None:
        """Return a change that another program made to iptables-legacy, which has no events."""
        return self._drift.poll()

    def wait_for_drift(self) -> Drift | None:
        """Block until another program writes to our tables; None after `close`."""
        return self._drift.wait()

    def cleanup(self) -> None:
        """Remove pyproxy's chains; one that other programs' rules jump to is emptied."""
        for family, saved in self._save().items():
            lines = [
                line
                for table in TABLES
                if table in saved and (removal := plan_removal(table, saved[table]))
                for line in removal.script()
            ]
            if lines:
                self._restore(self._programs[family], lines)
        # Only now, because the kernel refuses to delete an object that a rule names (EBUSY).
        nfacct.delete_counters(kube_names.COUNTERS)

    def close(self) -> None:
        """Close the sockets; the rules stay."""
        self._drift.close()
        if self._writer is not None:
            self._writer.close()
        if self._packets is not None:
            self._packets.close()

    def _create_counters(self) -> None:
        """Create the nfacct objects that are missing; rules have no counter if that fails."""
        try:
            counters = nfacct.create_counters(kube_names.COUNTERS)
        except KernelError as error:
            log.info("writing rules without counters until the next full sync: %s", error)
            counters = frozenset()
        self._use_counters(counters)
        if counters and self._packets is None:
            self._packets = nfacct.PacketCounters(kube_names.COUNTERS)

    def _use_counters(self, counters: frozenset[str]) -> None:
        if counters != self._options.counters:
            self._options = msgspec.structs.replace(self._options, counters=counters)
            self._committed.use(self._options)

    def _restrict(self, check: Callable[[Programs], None]) -> None:
        """Keep the families that pass a check. Raises UsageError if none does."""
        errors: dict[Family, UsageError] = {}
        for family, programs in self._programs.items():
            try:
                check(programs)
            except UsageError as failed:
                errors[family] = failed
        if len(errors) == len(self._programs):
            raise next(iter(errors.values()))
        for family, error in errors.items():
            log.warning("iptables mode without %s: %s", family.label, error)
            del self._programs[family]
        self._drift.watch(self._programs)

    def _read_chains(self, use: Callable[[Read], T]) -> T | None:
        """Have single chains read; None if the programs alone can read what is needed."""
        if self.flavour is Flavour.LEGACY:
            return None
        try:
            with contextlib.closing(NftReader()) as reader:
                return use(reader.chain)
        except (KernelError, UnknownRuleError) as error:
            log.debug("reading all chains with iptables-save: %r", error)
            return None

    def _save(self) -> Saved:
        return {family: programs.save() for family, programs in self._programs.items()}

    def _restore(self, programs: Programs, lines: Sequence[str]) -> None:
        if self.flavour is Flavour.LEGACY and _is_locked():
            self.lock_waits += 1
            log.info("waiting for %s, which another program holds", _LOCK_FILE)
        self._restores += 1
        began = time.monotonic()
        self._restored_bytes += programs.restore(lines)
        self._restore_seconds += time.monotonic() - began
        self._restored_tables += lines.count("COMMIT")

    def _write(self, plan: IptablesPlan, *, from_known: bool = True) -> None:
        with self._drift.writing(plan.growth(), self._transactions, from_known=from_known):
            for family, programs in self._programs.items():
                try:
                    if lines := self._write_over_netlink(family, plan):
                        self._restore(programs, lines)
                except KernelError:
                    self.failures[family, plan.full] += 1
                    raise
        self.rules_written = plan.rules_written()
        self._committed.remember_plan(plan)

    def _transactions(self) -> int:
        return self._restored_tables + (self._writer.transactions if self._writer else 0)

    def _write_over_netlink(self, family: Family, plan: IptablesPlan) -> list[str]:
        """Write what can be written over netlink, and return the rest for iptables-restore."""
        lines: list[str] = []
        for table in TABLES:
            change = plan.changes.get((family, table))
            if not change:
                continue
            # Tables are written in their order, so those behind one of the rest belong to it too.
            by_program = bool(lines) or change.changes_built_in
            if self._writer is not None:
                try:
                    if by_program:
                        self._writer.create(family, table, change)
                        change = change.without_created()
                    else:
                        self._writer.write(family, table, change)
                        continue
                except TransientKernelError:
                    # The program would meet the same error, and the next sync reads the table back.
                    raise
                except KernelError as error:
                    # iptables-nft-restore names the rule at fault, or succeeds.
                    log.info("not written over netlink, running iptables-nft-restore: %s", error)
            if change:
                lines += change.script(table)
        return lines


def _try_write(programs: Programs) -> None:
    """Check that the programs may write, by a write that changes nothing. Raises UsageError."""
    programs.require()
    try:
        programs.restore(["*nat", "COMMIT"])
    except PermissionKernelError as error:
        raise UsageError(
            f"no permission to use {programs}: run as root, or with CAP_NET_ADMIN and CAP_NET_RAW"
        ) from error
    except TransientKernelError as error:
        # Another program holds the lock, for example: the first sync is retried.
        log.debug("cannot check whether %s may write: %s", programs, error)
    except KernelError as error:
        raise UsageError(
            f"{programs} cannot write to the table nat: load the kernel's nat module ({error})"
        ) from error


def _is_locked() -> bool:
    # For the count and the log line only: closing the file frees the lock, and iptables-restore
    # waits for its own.
    try:
        with open(_LOCK_FILE, "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        log.debug("cannot open %s: %s", _LOCK_FILE, error)
    return False
