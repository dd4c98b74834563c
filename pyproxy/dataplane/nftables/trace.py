"""A packet, and what became of it: the values that `tracer` takes and gives."""

from __future__ import annotations

import enum
from fractions import Fraction
from itertools import takewhile

import msgspec

from pyproxy.dataplane.nftables import listing
from pyproxy.model.address import Address, Backend, Port, Protocol, backend, backend_text
from pyproxy.netlink.nftables import Value


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

    def __str__(self) -> str:
        source = backend_text(backend(self.source, Port(0))).rpartition(":")[0]
        target = backend_text(backend(self.destination, self.port))
        where = f"came in by {self.interface}" if self.interface else "sent by this machine"
        age = "" if self.new else ", of a connection that is known"
        return f"{source} -> {target}/{self.protocol.name.lower()}, {where}{age}"


class Element(msgspec.Struct, frozen=True):
    """An element of a set or map that the packet met, or that it leaves behind."""

    set_name: str
    key: bytes
    value: Value = b""

    def __str__(self) -> str:
        (text,) = listing.elements(self.set_name, {self.key: self.value})
        return f"{self.set_name} {{ {text} }}"


class Did(enum.Enum):
    """What a rule or an element did."""

    SHIELDED = "nobody else may send to a loopback address"
    ADMITTED = "a source range lets it in"
    KEPT_OUT = "no source range lets it in"
    MARKED = "to be masqueraded"
    WENT_ON = "goes on where its frontend says"
    VERDICT_DROP = "dropped where its frontend says"
    RETURNED = "the client had this endpoint before"
    PICKED = "translated to a random endpoint"
    MISSED = "every random number met an empty slot"
    REFUSED = "nobody serves this frontend"
    NO_SUCH_PORT = "nobody serves this port of the address"
    LEARNED = "the client will come back to this endpoint"
    UNMARKED = "masqueraded for its mark"
    HAIRPINNED = "masqueraded, for the endpoint would answer itself"
    KNOWN = "goes the way of the first packet of its connection"


class Step(msgspec.Struct, frozen=True):
    """One thing that happened, in which chain, and the element that made it happen if one did."""

    chain: str
    did: Did
    element: Element | None = None

    def __str__(self) -> str:
        by = f": {self.element}" if self.element else ""
        return f"{self.chain}: {self.did.value}{by}"


class Masquerade(enum.Enum):
    """Whether the receiver sees the sender's address or this machine's, and why."""

    NONE = "source kept"
    MARK = "masqueraded for its mark"
    HAIRPIN = "masqueraded as a hairpin"


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

    answer: Answer

    def __str__(self) -> str:
        return f"refused with {self.answer.value}"


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


class Way(msgspec.Struct, frozen=True):
    """One way through the table: with what probability it is taken, and where it ends.

    `learned` is the element of the affinity map that the packet adds, or whose timeout it renews.
    """

    fate: Fate
    probability: Fraction
    steps: tuple[Step, ...]
    learned: Element | None = None


class Trace(msgspec.Struct, frozen=True):
    """All that may become of a packet; the ways' probabilities add up to 1."""

    packet: Packet
    ways: tuple[Way, ...]

    def fates(self) -> dict[Fate, Fraction]:
        """Give the probability of each fate."""
        found: dict[Fate, Fraction] = {}
        for way in self.ways:
            found[way.fate] = found.get(way.fate, Fraction(0)) + way.probability
        return found

    def backends(self) -> frozenset[Backend]:
        """Give every endpoint that the packet may be delivered to."""
        fates = (way.fate for way in self.ways)
        return frozenset(fate.backend for fate in fates if isinstance(fate, Delivered))

    def __str__(self) -> str:
        parts = zip(*(way.steps for way in self.ways), strict=False)
        shared = [steps[0] for steps in takewhile(lambda steps: len(set(steps)) == 1, parts)]
        lines = [str(self.packet), *(f"  {step}" for step in shared)]
        for way in self.ways:
            lines += [f"  {step}" for step in way.steps[len(shared) :]]
            lines.append(f"  {float(way.probability):.4%} {way.fate}")
        return "\n".join(lines)
