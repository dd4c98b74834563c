"""The iptables dataplane: it remembers what it committed, and does all the I/O of its kind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

import msgspec

from pyproxy.dataplane.interface import Changes, Drift, Failure, NodeAnswer
from pyproxy.dataplane.iptables import names
from pyproxy.dataplane.iptables.fixed import TABLES, Options
from pyproxy.dataplane.iptables.memory import Memory
from pyproxy.dataplane.iptables.plan import IptablesPlan
from pyproxy.dataplane.iptables.programs import Flavour, Programs, RestoreError, detect
from pyproxy.dataplane.iptables.watch import LegacyTables, Sizes
from pyproxy.errors import OutOfStepError, UsageError
from pyproxy.model.address import Family
from pyproxy.model.objects import ObjectName
from pyproxy.policy.answer import ServiceAnswer

log = logging.getLogger(__name__)


class IptablesDataplane:
    """Programs the chains that are ours in the network namespace that it was made in.

    `flavour` is None for the one that the node's other programs use.
    """

    name: str = "iptables"

    def __init__(self, options: Options, flavour: Flavour | None = None) -> None:
        self._flavour = flavour or detect()
        self._programs = {family: Programs(family, self._flavour) for family in Family}
        self._memory = Memory(options, tuple(Family))
        self._closed = threading.Event()

    @property
    def messages_sent(self) -> int:
        """How many lines iptables-restore was given."""
        return sum(each.lines_written for each in self._programs.values())

    @property
    def bytes_sent(self) -> int:
        """How many bytes those were."""
        return sum(each.bytes_written for each in self._programs.values())

    def prepare(self) -> None:
        """Find out whether iptables' programs are here and may be used. Raises UsageError."""
        for programs in self._programs.values():
            programs.prepare()

    def plan(self, changes: Changes) -> IptablesPlan:
        """Compare what changed with what was committed last; the kernel is not asked."""
        return self._memory.plan(changes.services, changes.node)

    def replan(self, services: Iterable[ServiceAnswer], node: NodeAnswer) -> IptablesPlan:
        """Read the kernel back and plan from it to the whole desired state. Raises KernelError."""
        saved = {family: programs.save() for family, programs in self._programs.items()}
        return self._memory.plan_whole(services, node, saved)

    def commit(self, plan: IptablesPlan) -> tuple[Failure, ...]:
        """Write a plan, one transaction a table, and remember it; the Services left out."""
        for family, programs in self._programs.items():
            if lines := plan.script(family):
                try:
                    programs.restore(lines)
                except RestoreError as error:
                    at = lines[error.line - 1] if error.line else ""
                    raise OutOfStepError(f"{error}: {at}", 0) from error
        self._memory.remember(plan)
        return ()

    def tend(self) -> Drift | None:
        """Look whether somebody else has written to iptables-legacy, which announces nothing."""
        return None

    def wait_for_drift(self) -> Drift | None:
        """Wait, in a thread of its own, for somebody else's write; None after `close`."""
        self._closed.wait()
        return None

    def cleanup(self) -> None:
        """Remove all that is ours; one that others' rules lead to is emptied. Raises KernelError."""

    def close(self) -> None:
        """Give back sockets; the rules stay."""
        self._closed.set()
