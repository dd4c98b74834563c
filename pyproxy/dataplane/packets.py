"""A packet and its fate, in words that every proxy mode has: what tracers take and give."""

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
    """A packet as it enters the table; `port` is its destination port.

    `interface` is the name of the one that it came in by, empty for a packet that this machine
    sends itself. `new` says that it is the first of its connection.
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
        where = f"came in by {self.interface}" if self.interface else "sent by this machine"
        age = "" if self.new else ", of a connection that is known"
        return f"{source} -> {target}/{self.protocol.name.lower()}, {where}{age}"


class Masquerade(enum.Enum):
    """Whether the receiver sees the sender's address or this machine's, and why."""

    NONE = "source kept"
    MARK = "masqueraded for its mark"
    HAIRPIN = "masqueraded as a hairpin"
    CONNTRACK = "masqueraded as the flow's first packet was"


class Answer(enum.Enum):
    """How a packet is refused."""

    TCP_RESET = "a TCP reset"
    ICMP = "an ICMP error"


class Why(enum.Enum):
    """Why a packet is dropped."""

    LOOPBACK = "a loopback address is this machine's alone"
    SOURCE_RANGES = "its source is in no source range"
    POLICY = "no endpoint that the traffic policy allows"


class Delivered(msgspec.Struct, frozen=True):
    """Translated to an endpoint."""

    backend: Backend
    masquerade: Masquerade = Masquerade.NONE

    def __str__(self) -> str:
        return f"delivered to {backend_text(self.backend)}, {self.masquerade.value}"


class Refused(msgspec.Struct, frozen=True):
    """Answered at once that nobody is there."""

    routing: Answer

    def __str__(self) -> str:
        return f"refused with {self.routing.value}"


class Dropped(msgspec.Struct, frozen=True):
    """Dropped without a word."""

    why: Why

    def __str__(self) -> str:
        return f"dropped: {self.why.value}"


class Untouched(msgspec.Struct, frozen=True):
    """Left with its destination; whether anybody is there is not the table's concern."""

    masquerade: Masquerade = Masquerade.NONE

    def __str__(self) -> str:
        return f"left with its destination, {self.masquerade.value}"


Fate = Delivered | Refused | Dropped | Untouched


class Stage(msgspec.Struct, frozen=True):
    """One thing that happened to a packet: in which chain, what, and what made it happen.

    `by` is the rule or the element as the kernel's own tool would write it, empty where none did.
    """

    chain: str
    did: str
    by: str = ""

    def __str__(self) -> str:
        by = f": {self.by}" if self.by else ""
        return f"{self.chain}: {self.did}{by}"


class Course(msgspec.Struct, frozen=True):
    """One way that a packet may go: with what probability, by which stages, and its end."""

    fate: Fate
    probability: Fraction
    stages: tuple[Stage, ...]


class TraceResult(msgspec.Struct, frozen=True):
    """All that may become of a packet; the courses' probabilities add up to 1.

    `remarks` are what a reader must know to trust it, a sentence each.
    """

    packet: Packet
    courses: tuple[Course, ...]
    remarks: tuple[str, ...] = ()

    def shared(self) -> tuple[Stage, ...]:
        """Give the stages that come first on every course."""
        parts = zip(*(course.stages for course in self.courses), strict=False)
        return tuple(part[0] for part in takewhile(lambda part: len(set(part)) == 1, parts))

    def fates(self) -> dict[Fate, Fraction]:
        """Give the probability of each fate."""
        found: dict[Fate, Fraction] = {}
        for course in self.courses:
            found[course.fate] = found.get(course.fate, Fraction(0)) + course.probability
        return found

    def __str__(self) -> str:
        shared = self.shared()
        lines = [str(self.packet), *(f"  {stage}" for stage in shared)]
        for course in self.courses:
            lines += [f"  {stage}" for stage in course.stages[len(shared) :]]
            lines.append(f"  {float(course.probability):.4%} {course.fate}")
        return "\n".join([*lines, *self.remarks])


class PacketTracer(Interface):
    """What a proxy mode offers to whoever asks what becomes of a packet."""

    def trace(self, packet: Packet) -> TraceResult:
        """Follow a packet through what the kernel holds at this moment. Raises KernelError.

        Raises UsageError where the kernel holds nothing of this mode.
        """
        ...

    def close(self) -> None:
        """Give back what it holds open."""
        ...
