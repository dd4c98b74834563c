"""The tracer's result in the terms that all proxy modes share: values in, values out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pyproxy.dataplane.iptables import chain_names
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
from pyproxy.dataplane.iptables.tracer import Path, Step
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
from pyproxy.xtables import kube_names

_ENDS = {
    ACCEPT: "accepted",
    DROP: "dropped",
    MASQUERADE: "masqueraded",
    RETURN: "return to the calling chain",
}
_REJECTS = {"reset": RejectWith.TCP_RESET, "unreachable": RejectWith.ICMP}


def trace_result(
    packet: Packet, paths: Sequence[Path], remarks: tuple[str, ...] = ()
) -> TraceResult:
    """Return all paths that a packet may take, with remarks for the reader."""
    established = "" if packet.new else "takes the path of the first packet of its connection"
    first = (TraceStep("conntrack", established),) if established else ()
    results = tuple(
        TracePath(_verdict(packet, path), path.probability, (*first, *map(_step, path.steps)))
        for path in paths
    )
    return TraceResult(packet, results, (*remarks, *_affinity_remarks(paths)))


def _verdict(packet: Packet, path: Path) -> Verdict:
    if path.ended == "drop":
        return Dropped(_drop_reason(path))
    if path.ended:
        return Rejected(_REJECTS[path.ended])
    masquerade = Masquerade.NONE
    if path.masqueraded:
        to_itself = packet.source == path.destination
        masquerade = Masquerade.HAIRPIN if to_itself else Masquerade.MARK
    if path.translated:
        return Delivered(backend(path.destination, path.port), masquerade)
    return Untouched(masquerade)


def _drop_reason(path: Path) -> DropReason:
    last = path.steps[-1].chain
    if last == kube_names.FIREWALL:
        return DropReason.LOOPBACK
    # In nat, KUBE-FW drops nothing: a source in no range returns untranslated, and filter drops it.
    # So a path that entered KUBE-FW and matched no rule there was dropped for its source.
    tested = any(chain_names.is_source_ranges(chain) for chain in map(_next_chain, path.steps))
    admitted = any(chain_names.is_source_ranges(step.chain) for step in path.steps)
    if chain_names.is_source_ranges(last) or (tested and not admitted):
        return DropReason.SOURCE_RANGES
    return DropReason.POLICY


def _next_chain(step: Step) -> str:
    return step.rule.target.chain if isinstance(step.rule.target, Jump) else ""


def _step(step: Step) -> TraceStep:
    where, rule = f"{step.table} {step.chain}", step.rule
    return TraceStep(where, _action(rule), f"-A {step.chain} {rule.text}")


def _action(rule: Rule) -> str:
    match rule.target:
        case Jump(chain=chain, returns=returns):
            if rule.seen:
                return f"the client had this endpoint before: go to {chain}"
            by_number = " by a random number" if rule.share else ""
            return f"{'jump' if returns else 'go'} to {chain}{by_number}"
        case Translate():
            return "translated to an endpoint" + (" by a random number" if rule.share else "")
        case SetMark(on=on):
            return "marked for masquerading" if on else "mark cleared"
        case end:
            return _ENDS.get(end, "rejected")


def _affinity_remarks(paths: Sequence[Path]) -> Iterator[str]:
    times = {
        step.rule.seen.seconds
        for path in paths
        for step in path.steps
        if step.rule.seen is not None
    }
    for seconds in sorted(times - {0}):
        yield (
            "the client has session affinity to an endpoint, which the kernel forgets after "
            f"{seconds} s without a new connection"
        )
