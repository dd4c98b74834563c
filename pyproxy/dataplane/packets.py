"""Packets and their verdicts: the types that the packet tracers of all proxy modes share."""

from __future__ import annotations

import enum
from fractions import Fraction
from itertools import takewhile
from typing import Protocol as Interface

import msgspec

from pyproxy.model.address import (
    Address,
    Backend,
    Family,
    Port,
    Protocol,
    backend,
    backend_text,
    family_of,
)


class Packet(msgspec.Struct, frozen=True):
    """A packet as it enters the node's network namespace; `port` is its destination port.

    `interface` is the input interface, empty for a packet that the node sends. `new` is true for
    the first packet of a connection.
    """

    source: Address
    destination: Address
    protocol: Protocol
    port: Port
    interface: str = ""
    new: bool = True

    @property
    def family(self) -> Family:
        """The family of its addresses."""
        return family_of(self.destination)

    def __str__(self) -> str:
        source = backend_text(backend(self.source, Port(0))).rpartition(":")[0]
        target = backend_text(backend(self.destination, self.port))
        where = f"came in by {self.interface}" if self.interface else "sent by this node"
        age = "" if self.new else ", of an established connection"
        return f"{source} -> {target}/{self.protocol.name.lower()}, {where}{age}"


class Masquerade(enum.Enum):
    """Whether the receiver sees the sender's address or the node's, and why."""

    NONE = "source kept"
    MARK = "masqueraded by its mark"
    HAIRPIN = "masqueraded as a hairpin"
    SERVICE_ADDRESS = "masqueraded because its source is a service address"
    CONNTRACK = "masqueraded as the first packet of its flow was"


class RejectWith(enum.Enum):
    """The reply to a rejected packet, as in nft's `reject with`."""

    TCP_RESET = "a TCP reset"
    ICMP = "an ICMP error"


class DropReason(enum.Enum):
    """Why a packet is dropped."""

    LOOPBACK = "only the node itself may send to a loopback address"
    SOURCE_RANGES = "its source is in no source range"
    POLICY = "no endpoint that the traffic policy allows"


class Delivered(msgspec.Struct, frozen=True):
    """Translated to an endpoint."""

    backend: Backend
    masquerade: Masquerade = Masquerade.NONE

    def __str__(self) -> str:
        return f"delivered to {backend_text(self.backend)}, {self.masquerade.value}"


class Rejected(msgspec.Struct, frozen=True):
    """Discarded with a reply, so that the client fails at once."""

    reject_with: RejectWith

    def __str__(self) -> str:
        return f"rejected with {self.reject_with.value}"


class Dropped(msgspec.Struct, frozen=True):
    """Discarded without a reply."""

    reason: DropReason

    def __str__(self) -> str:
        return f"dropped: {self.reason.value}"


class Untouched(msgspec.Struct, frozen=True):
    """Sent on to its own destination; the tracer does not know whether a program listens there."""

    masquerade: Masquerade = Masquerade.NONE

    def __str__(self) -> str:
        return f"destination unchanged, {self.masquerade.value}"


Verdict = Delivered | Rejected | Dropped | Untouched


class TraceStep(msgspec.Struct, frozen=True):
    """One action on a packet: the chain or table, the action, and the rule or element behind it.

    `by` is the rule or element as the kernel's own tool would write it, empty where there is none.
    """

    chain: str
    action: str
    by: str = ""

    def __str__(self) -> str:
        by = f": {self.by}" if self.by else ""
        return f"{self.chain}: {self.action}{by}"


class Offload(msgspec.Struct, frozen=True):
    """Whether the packet's connection leaves for the fast path, and when.

    It does after `packets` of both directions and `seconds`, or never for the `reason`. `by` is the
    element behind either, as in `TraceStep`.
    """

    packets: int = 0
    seconds: int = 0
    reason: str = ""
    by: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"not offloaded: {self.reason}"
        seconds = f", and {self.seconds} s" if self.seconds else ""
        return f"offloaded after {self.packets} packets of both directions together{seconds}"


class TracePath(msgspec.Struct, frozen=True):
    """One path that a packet may take: its steps, its verdict, and the probability of both.

    `offload` is None without a fast path for connections to Services.
    """

    verdict: Verdict
    # Not a float, so that probabilities add up to exactly 1.
    probability: Fraction
    steps: tuple[TraceStep, ...]
    offload: Offload | None = None


class TraceResult(msgspec.Struct, frozen=True):
    """All paths that a packet may take; their probabilities add up to 1.

    `remarks` are sentences that limit how far the result can be relied on.
    """

    packet: Packet
    paths: tuple[TracePath, ...]
    remarks: tuple[str, ...] = ()

    def shared_steps(self) -> tuple[TraceStep, ...]:
        """Return the steps that all paths begin with."""
        columns = zip(*(path.steps for path in self.paths), strict=False)
        return tuple(same[0] for same in takewhile(lambda each: len(set(each)) == 1, columns))

    def verdicts(self) -> dict[Verdict, Fraction]:
        """Return the probability of each verdict."""
        found: dict[Verdict, Fraction] = {}
        for path in self.paths:
            found[path.verdict] = found.get(path.verdict, Fraction(0)) + path.probability
        return found

    def __str__(self) -> str:
        shared = self.shared_steps()
        lines = [str(self.packet), *(f"  {step}" for step in shared)]
        for path in self.paths:
            lines += [f"  {step}" for step in path.steps[len(shared) :]]
            lines.append(f"  {float(path.probability):.4%} {path.verdict}")
        return "\n".join([*lines, *self.remarks])


class PacketTracer(Interface):
    """Computes what the kernel's present state does with a packet, in one proxy mode.

    Made and used in one thread, in the node's network namespace. Sends no packet, writes nothing.
    """

    def trace(self, packet: Packet) -> TraceResult:
        """Return the paths of a packet through the state that the kernel holds now.

        Blocks while it reads the kernel. Raises KernelError, and UsageError where the kernel holds
        nothing of this mode.
        """
        ...

    def close(self) -> None:
        """Close its sockets; idempotent."""
        ...
