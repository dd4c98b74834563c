"""What the agent asks of a dataplane, whichever kernel subsystem is behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar, runtime_checkable

import msgspec

from pyproxy.errors import KernelError
from pyproxy.model.address import Address, Network
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting


class NodeRouting(msgspec.Struct, frozen=True):
    """What the fixed rules need to know of the node: who is a pod, and where node ports are."""

    pod_networks: tuple[Network, ...] = ()
    node_port_addresses: tuple[Address, ...] = ()


class Changes(msgspec.Struct, frozen=True):
    """What is to be different after the next commit; None stands for a Service that is gone."""

    services: Mapping[ObjectName, ServiceRouting | None]
    node: NodeRouting | None = None


class Plan(Protocol):
    """One transaction as a value: it can be counted, printed and compared before it is sent."""

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        ...

    def lines(self) -> Iterator[str]:
        """Spell out the transaction as a person would type it."""
        ...

    def counts(self) -> Mapping[str, int]:
        """How many objects of each kind it writes: elements, chains, rules."""
        ...


P = TypeVar("P", bound=Plan)


class Drift(msgspec.Struct, frozen=True):
    """Somebody else has written to what is ours.

    `by` is the program, such as "nft (pid 4711)", empty where that is not known.
    """

    by: str


class Failure(msgspec.Struct, frozen=True):
    """A Service that the kernel would not take, set aside so that the rest could go on."""

    name: ObjectName
    error: KernelError


class StateDiff(msgspec.Struct, frozen=True):
    """How what the kernel holds of one Service differs from what it should, in lines for people.

    `rules` is what is amiss with the part that all Services share. `kind` is what the lines name.
    """

    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    kind: str = "element"

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.rules)


class TableUsage(msgspec.Struct, frozen=True):
    """How full a part of the kernel's tables is; `limit` is 0 where there is none of its own."""

    name: str
    held: int
    limit: int = 0


@runtime_checkable
class Packed(Protocol):
    """A plan that goes over netlink."""

    def netlink(self) -> Iterator[str]:
        """Write its messages in hexadecimal, each with what it is for."""
        ...


@runtime_checkable
class Readable(Protocol):
    """A dataplane that can be asked what the kernel holds of one Service, for what that costs.

    Its methods read, and remember nothing. All raise KernelError.
    """

    def compare(self, wanted: ServiceRouting, node: NodeRouting) -> StateDiff:
        """Compare what the kernel holds of one Service with what it should."""
        ...

    def check_base_rules(self, node: NodeRouting) -> tuple[str, ...]:
        """Name what is not as it should be of the part that all Services share."""
        ...

    def fill(self) -> tuple[TableUsage, ...]:
        """Say how full the tables are, in whichever thread it is called in.

        It costs little: what only much reading would tell is told as it is remembered.
        """
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """A dataplane that can begin to read the kernel before the first `plan_full` asks for it."""

    def read_ahead(self) -> None:
        """Begin, and return at once; the thread has the rights of the calling one.

        Raises KernelError.
        """
        ...


class Dataplane(Protocol[P]):
    """One way to program the kernel.

    A dataplane remembers what it last committed. `plan` and `commit` are apart so that the agent
    (or a person) can look at a plan without anything being written.
    """

    @property
    def name(self) -> str:
        """The proxy mode, as `--proxy-mode` has it."""
        ...

    @property
    def messages_sent(self) -> int:
        """How many messages have gone to the kernel, or lines to the program that writes there."""
        ...

    @property
    def bytes_sent(self) -> int:
        """How many bytes those were."""
        ...

    def prepare(self) -> None:
        """Get ready to write, and find out whether this machine can do it at all.

        Raises UsageError where it cannot.
        """
        ...

    def prepare_to_read(self) -> None:
        """Get ready to read only: `plan_full` works afterwards, and nothing has been written.

        Raises UsageError where this machine cannot do it at all.
        """
        ...

    def plan(self, changes: Changes) -> P:
        """Compare what changed with what was committed last; the kernel is not asked."""
        ...

    def plan_full(self, services: Iterable[ServiceRouting], node: NodeRouting) -> P:
        """Read the kernel back and plan from it to the whole desired state. Raises KernelError."""
        ...

    def commit(self, plan: P) -> tuple[Failure, ...]:
        """Write a plan and remember it; the Services it had to leave out.

        It is one transaction, or, so that nobody else has to wait for long, several where it is
        large: each Service is wholly as it was until it is wholly as it is to be.

        A plan with nothing to write is remembered too: what the kernel held already is what the
        next plan starts from.
        Raises TransientKernelError, OutOfStepError (the agent then asks for a plan_full) and
        PermissionKernelError. Nothing of the transaction that failed has been written then, while
        others may have been.
        """
        ...

    def wait_for_drift(self) -> Drift | None:
        """Wait, in a thread of its own, for somebody else's write; None after `close`."""
        ...

    def tick(self) -> Drift | None:
        """Do what is due now, called about once a second in the thread that commits.

        Tells of somebody else's write that only looking brings to light. Raises KernelError.
        """
        ...

    def cleanup(self) -> None:
        """Remove all that is ours and nothing else; may be called when there is nothing."""
        ...

    def close(self) -> None:
        """Give back sockets; the rules stay."""
        ...
