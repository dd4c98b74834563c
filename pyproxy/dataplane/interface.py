"""The contract between the agent and a dataplane, whichever kernel subsystem is behind it.

A dataplane is a `Writer` and an `Inspector`. Both are mandatory, and mypy checks each dataplane
against them where its package declares its proxy mode (`mode.py`).

Threads: unless a method says otherwise, it is called in one thread, the one that commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from pyproxy.errors import KernelError
from pyproxy.model.address import FAMILIES, Address, Family, Network
from pyproxy.model.objects import ObjectName
from pyproxy.policy.reserved_frontends import Reserved
from pyproxy.policy.routing import ServiceRouting

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


class NodeRouting(msgspec.Struct, frozen=True):
    """The node's part in the base rules: networks of pods, and addresses of node ports.

    Dataplanes ignore the rest. `reserved` is the node's part in the Services' routings. `large`
    are local networks that serve node ports beside `node_port_addresses`, and `left_out` those that
    should, with too many addresses. `programmable` are the families that the dataplane can write.
    """

    pod_networks: tuple[Network, ...] = ()
    node_port_addresses: tuple[Address, ...] = ()
    reserved: Reserved = Reserved()
    large: tuple[Network, ...] = ()
    left_out: tuple[Network, ...] = ()
    programmable: frozenset[Family] = FAMILIES

    def has_node_ports(self, address: Address) -> bool:
        """Return whether node ports are served at an address."""
        return address in self.node_port_addresses or any(address in each for each in self.large)


class Changes(msgspec.Struct, frozen=True):
    """The part of the desired state that changed; None stands for a Service that is gone."""

    services: Mapping[ObjectName, ServiceRouting | None]
    node: NodeRouting | None = None


class StepLimits(msgspec.Struct, frozen=True):
    """How much a sync writes before it looks for new changes.

    `rows` is about the number of rows of a step. A Service of more than `large` rows waits for its
    turn. Where the mode `divides` such a Service, it is passed on in parts, each with one frontend
    and a `PartName`, as if they were Services.
    """

    rows: int
    large: int
    divides: bool = True


class Plan(Protocol):
    """One transaction as a value: it can be counted, printed and compared before it is sent.

    All methods are pure: they neither block nor change the plan.
    """

    def __bool__(self) -> bool:
        """Return whether there is anything to write."""
        ...

    def lines(self) -> Iterator[str]:
        """Yield the transaction in the syntax of the mode's own tool, for people."""
        ...

    def counts(self) -> Mapping[str, int]:
        """Count the objects that it writes by their kind: element, chain, rule."""
        ...

    def netlink(self) -> Iterator[str]:
        """Yield each netlink message in hexadecimal, after a few words about its purpose.

        Raises UsageError if this mode writes through a program instead of netlink.
        """
        ...


P = TypeVar("P", bound=Plan)


class Drift(msgspec.Struct, frozen=True):
    """A change to our objects by another program.

    `by` is that program, such as "nft (pid 4711)", empty if unknown. `sets` are the sets that it
    changed, of those that the mode has; None if any may have changed.
    """

    by: str
    sets: frozenset[str] | None = None


class Failure(msgspec.Struct, frozen=True):
    """A Service that the kernel rejected, left out of a commit so that the rest could go on."""

    name: ObjectName
    error: KernelError


class StateDiff(msgspec.Struct, frozen=True):
    """The difference between the kernel state and the desired state of one Service, for people.

    `rules` are the differences in the base rules. `kind` is the kind of object that the lines name.
    """

    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    kind: str = "element"

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.rules)


class TableUsage(msgspec.Struct, frozen=True):
    """The number of objects in one of the kernel's tables; `limit` is 0 if it has none."""

    name: str
    used: int
    limit: int = 0


class FlowOffloadState(msgspec.Struct, frozen=True):
    """The fast path of established connections.

    `devices` are those bound to it, in order. `refused` are those that the kernel refused to bind,
    with its error. `inactive` is the reason why there is no fast path, empty if there is. `added`
    counts the connections put on it since its rules were written.
    """

    devices: tuple[str, ...] = ()
    refused: Mapping[str, str] = {}
    inactive: str = ""
    added: int = 0


class EarlyWriter(Protocol):
    """Writes Services, until the `plan_full` that has all Services; a thread of its own sends."""

    def add(self, routing: ServiceRouting, size: int) -> None:
        """Have a Service of about `size` rows written, whose routing is most likely final.

        Blocks until the first Services are written. Otherwise takes the time of compiling and
        packing the rows.
        """
        ...


class Writer(Protocol[P]):
    """Program the kernel, in one network namespace: that in which the dataplane was made.

    A writer remembers what it last committed. `plan` and `commit` are apart so that the agent, or a
    command, can look at a plan without a write.
    """

    @property
    def name(self) -> str:
        """The proxy mode, as `--proxy-mode` has it. Any thread; does not block."""
        ...

    @property
    def families(self) -> frozenset[Family]:
        """The families that this machine lets the dataplane write; known after `prepare`."""
        ...

    @property
    def step_limits(self) -> StepLimits:
        """The size of a step in this mode; constant. Any thread; does not block."""
        ...

    @property
    def messages_sent(self) -> int:
        """Messages sent to the kernel so far, dumps not counted. Any thread; does not block.

        They are netlink messages, or invocations of the program that writes.
        """
        ...

    @property
    def bytes_sent(self) -> int:
        """Bytes sent to the kernel, or to the program that writes. Any thread; does not block."""
        ...

    @property
    def kernel_seconds(self) -> float:
        """Seconds so far that sending took, in which the kernel applies what it is sent.

        They are those of the system calls, or of the program that writes. Any thread; does not
        block.
        """
        ...

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics that this mode has beyond those of all modes.

        Any thread, at each scrape; does not block.
        """
        ...

    def prepare(self) -> None:
        """Check that this machine can be programmed, and open what `commit` needs.

        Called once, before all else. Blocks for a few requests to the kernel, or for a program.
        Raises UsageError if a program, a part of the kernel or a right is missing.
        """
        ...

    def read_ahead(self) -> None:
        """Start to read, in a thread of its own, what the first `plan_full` needs.

        Returns at once. The thread has the rights of the calling one. Does nothing where reading
        ahead would gain nothing. Called at most once, after `prepare`. Raises KernelError.
        """
        ...

    def write_early(self, node: NodeRouting) -> EarlyWriter | None:
        """Return a writer for the Services that are routed first, or None.

        It writes them before the first `plan_full`, into a kernel that holds nothing of the mode.
        The next call must be `plan_full` with the same `node`. None where the kernel holds
        anything, or the mode cannot write in parts. Blocks for a request. Raises KernelError.
        """
        ...

    def plan(self, changes: Changes) -> P:
        """Compare what changed with the last commit. Does not ask the kernel, and is idempotent."""
        ...

    def plan_full(self, services: Iterable[ServiceRouting], node: NodeRouting) -> P:
        """Read the kernel back, and plan from there to the whole desired state.

        Blocks for a read-back, seconds in a large cluster. Idempotent. Raises KernelError.
        """
        ...

    def plan_repair(self, sets: frozenset[str] | None) -> P | None:
        """Read back what another program may have changed, and plan back to the last commit.

        `sets` are those of the drifts since the last read-back. Returns None where only `plan_full`
        repairs. Blocks for a read-back. Idempotent. Raises KernelError.
        """
        ...

    def start_audit(self) -> bool:
        """Start to compare the kernel with the last commit, in a thread of its own.

        Changes are committed meanwhile. A later `tick` returns a drift if the two differ. Returns
        False where only a read-back compares them. Does not block. Raises KernelError.
        """
        ...

    def refused_clients(self) -> Mapping[ObjectName, Mapping[bytes, int]]:
        """Count connections of late that session affinity could not remember.

        By Service, and by its frontends in any form. A count that falls began anew.
        Their clients are balanced as without affinity. Empty if the mode has no bound for each
        Service. Blocks for a request; idempotent. Raises KernelError.
        """
        ...

    def commit(self, plan: P) -> tuple[Failure, ...]:
        """Write a plan and remember it; return the Services that had to be left out.

        A plan is one transaction, or, so that other writers do not wait for long, several if it is
        large: each Service changes as a whole. A plan without anything to write is remembered too,
        because the next plan starts from it. Blocks for the transaction. Not idempotent: a plan is
        committed once, and only if nothing was committed since it was made.

        Raises TransientKernelError, StaleStateError (the agent then calls `plan_full`) and
        PermissionKernelError. Nothing of the transaction that failed has been written, while
        earlier ones have been.
        """
        ...

    def wait_for_drift(self) -> Drift | None:
        """Block until another program has changed our objects; None after `close`.

        Called in a thread of its own. Raises KernelError, and may then be called again.
        """
        ...

    def wait_for_devices(self) -> bool:
        """Block until network devices change that the mode uses by name; False after `close`.

        Returns False at once in a mode that uses none. Called in a thread of its own. Raises
        KernelError, and may then be called again.
        """
        ...

    def devices_changed(self) -> None:
        """Follow changes that `wait_for_devices` reported.

        Blocks for a request, and for a transaction with a message per changed device. Idempotent.
        Raises KernelError.
        """
        ...

    def tick(self) -> Drift | None:
        """Do what is due by time, and return a drift that only polling or an audit finds.

        Called about every two seconds; blocks for a few requests, after an audit for some hundred.
        Raises KernelError.
        """
        ...

    def cleanup(self) -> None:
        """Remove all of our objects and nothing else. Blocks; idempotent. Raises KernelError."""
        ...

    def close(self) -> None:
        """Close the sockets; the rules stay. Any thread, once; `wait_for_drift` then returns."""
        ...


class Inspector(Protocol):
    """Read the kernel for commands, without any write.

    The methods block for what they read, are idempotent, and leave a writer's memory alone. They
    raise KernelError.
    """

    def prepare_to_read(self) -> None:
        """Check that this machine can be read; `plan_full` works afterwards.

        Raises UsageError if a program, a part of the kernel or a right is missing.
        """
        ...

    def compare(self, wanted: ServiceRouting, node: NodeRouting) -> StateDiff:
        """Compare the kernel state of one Service, and the base rules, with the desired state."""
        ...

    def check_base_rules(self, node: NodeRouting) -> tuple[str, ...]:
        """Return a line for each difference in the base rules; empty if there is none."""
        ...

    def flow_offload(self) -> FlowOffloadState | None:
        """Return the state of the fast path; None without `--flow-offload`.

        Any thread. Blocks for a request.
        """
        ...

    def table_usage(self) -> tuple[TableUsage, ...]:
        """Count the objects in each of our tables that has any, or a limit.

        Any thread. Reads little: a count that would take a whole read-back is the one of the last
        commit, so that it is missing in a process that has committed nothing.
        """
        ...


class Dataplane(Writer[P], Inspector, Protocol[P]):
    """One way to program the kernel, and to inspect what it holds."""
