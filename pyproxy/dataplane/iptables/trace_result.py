"""What the rules did with a packet, in the words of every proxy mode: values in, values out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pyproxy.dataplane.iptables import names
from pyproxy.dataplane.iptables.rules import (
    ACCEPT,
    DROP,
    MASQUERADE,
    RETURN,
    Jump,
    Rule,
    SetMark,
    Translate,
)
from pyproxy.dataplane.iptables.tracer import Step, Way
from pyproxy.dataplane.packets import (
    Delivered,
    Dropped,
    DropReason,
    Masquerade,
    Packet,
    Rejected,
    RejectWith,
    TracePath,
    TraceResult,
    TraceStep,
    Untouched,
    Verdict,
)
from pyproxy.model.address import backend

_ENDS = {
    ACCEPT: "let through",
    DROP: "dropped",
    MASQUERADE: "masqueraded",
    RETURN: "back to where it came from",
}
_ANSWERS = {"reset": RejectWith.TCP_RESET, "unreachable": RejectWith.ICMP}


def trace_result(packet: Packet, ways: Sequence[Way], remarks: tuple[str, ...] = ()) -> TraceResult:
    """Tell all that may become of a packet, and what a reader must know besides."""
    known = "" if packet.new else "goes the way of the first packet of its connection"
    first = (TraceStep("conntrack", known),) if known else ()
    paths = (
        TracePath(_verdict(packet, way), way.probability, (*first, *map(_step, way.steps)))
        for way in ways
    )
    return TraceResult(packet, tuple(paths), (*remarks, *_ageing(ways)))


def _verdict(packet: Packet, way: Way) -> Verdict:
    if way.ended == "drop":
        return Dropped(_why(way))
    if way.ended:
        return Rejected(_ANSWERS[way.ended])
    masquerade = Masquerade.NONE
    if way.masqueraded:
        to_itself = packet.source == way.destination
        masquerade = Masquerade.HAIRPIN if to_itself else Masquerade.MARK
    if way.translated:
        return Delivered(backend(way.destination, way.port), masquerade)
    return Untouched(masquerade)


def _why(way: Way) -> DropReason:
    last = way.steps[-1].chain
    if last == names.FIREWALL:
        return DropReason.LOOPBACK
    asked = any(names.is_firewall(chain) for chain in map(_leads_to, way.steps))
    admitted = any(names.is_firewall(step.chain) for step in way.steps)
    if names.is_firewall(last) or (asked and not admitted):
        return DropReason.SOURCE_RANGES
    return DropReason.POLICY


def _leads_to(step: Step) -> str:
    return step.rule.target.chain if isinstance(step.rule.target, Jump) else ""


def _step(step: Step) -> TraceStep:
    where, rule = f"{step.table} {step.chain}", step.rule
    return TraceStep(where, _did(rule), f"-A {step.chain} {rule.text}")


def _did(rule: Rule) -> str:
    match rule.target:
        case Jump(chain=chain):
            if rule.seen:
                return f"the client had this endpoint before: on to {chain}"
            by_number = " by a random number" if rule.share else ""
            return f"on to {chain}{by_number}"
        case Translate():
            return "translated to an endpoint" + (" by a random number" if rule.share else "")
        case SetMark(on=on):
            return "to be masqueraded" if on else "its mark is taken off"
        case end:
            return _ENDS.get(end, "refused")


def _ageing(ways: Sequence[Way]) -> Iterator[str]:
    times = {
        step.rule.seen.seconds for way in ways for step in way.steps if step.rule.seen is not None
    }
    for seconds in sorted(times - {0}):
        yield (
            "the client is taken for one that was sent there before: after "
            f"{seconds} s without a new connection that is forgotten"
        )
