"""What the table did with a packet, element by element: what `tracer` gives."""

from __future__ import annotations

import enum
from fractions import Fraction

import msgspec

from pyproxy.dataplane.nftables import listing
from pyproxy.dataplane.packets import Delivered, Packet, TracePath, TraceResult, TraceStep, Verdict
from pyproxy.model.address import Backend
from pyproxy.netlink.elements import Value


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
    NO_ENDPOINT_SERVICES = "nobody serves this frontend"
    NO_SUCH_PORT = "nobody serves this port of the address"
    LEARNED = "the client will come back to this endpoint"
    UNMARKED = "masqueraded by its mark"
    HAIRPINNED = "masqueraded, for the endpoint would answer itself"
    KNOWN = "goes the way of the first packet of its connection"


class Step(msgspec.Struct, frozen=True):
    """One thing that happened, in which chain, and the element that made it happen if one did."""

    chain: str
    did: Did
    element: Element | None = None

    def trace_step(self) -> TraceStep:
        """Tell it in words."""
        return TraceStep(self.chain, self.did.value, str(self.element or ""))


class Way(msgspec.Struct, frozen=True):
    """One way through the table: with what probability it is taken, and where it ends.

    `learned` is the element of the affinity map that the packet adds, or whose timeout it renews.
    """

    verdict: Verdict
    probability: Fraction
    steps: tuple[Step, ...]
    learned: Element | None = None


class Trace(msgspec.Struct, frozen=True):
    """All that may become of a packet; the ways' probabilities add up to 1."""

    packet: Packet
    ways: tuple[Way, ...]

    def verdicts(self) -> dict[Verdict, Fraction]:
        """Give the probability of each verdict."""
        found: dict[Verdict, Fraction] = {}
        for way in self.ways:
            found[way.verdict] = found.get(way.verdict, Fraction(0)) + way.probability
        return found

    def backends(self) -> frozenset[Backend]:
        """Give every endpoint that the packet may be delivered to."""
        verdicts = (way.verdict for way in self.ways)
        return frozenset(verdict.backend for verdict in verdicts if isinstance(verdict, Delivered))

    def result(self, remarks: tuple[str, ...] = ()) -> TraceResult:
        """Tell it in the words of every proxy mode."""
        paths = (
            TracePath(way.verdict, way.probability, tuple(map(Step.trace_step, way.steps)))
            for way in self.ways
        )
        return TraceResult(self.packet, tuple(paths), remarks)

    def __str__(self) -> str:
        return str(self.result())
