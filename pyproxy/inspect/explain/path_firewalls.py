"""Rules of other programs on the way of a Service's packets."""

from __future__ import annotations

from collections.abc import Iterator

from pyproxy.hostnet.firewall.bits import DoubtKind
from pyproxy.hostnet.firewall.evaluator import Certainty
from pyproxy.hostnet.firewall.evaluator import Finding as RuleFinding
from pyproxy.hostnet.firewall.facts import FirewallFacts, Stopped
from pyproxy.hostnet.firewall.hook_packet import ANY_CLIENT
from pyproxy.hostnet.firewall.owners import UNKNOWN, Owner, owner_of
from pyproxy.hostnet.firewall.verdicts import Action
from pyproxy.hostnet.not_read import NotRead
from pyproxy.inspect.explain.findings import Finding, doubt, merged
from pyproxy.inspect.explain.path_offload import may_be_offloaded, offload
from pyproxy.inspect.explain.path_transforms import transforms
from pyproxy.inspect.explain.step import Result, Step, not_checked
from pyproxy.inspect.facts import Facts
from pyproxy.inspect.humanize import count, listed
from pyproxy.model.address import Protocol, backend_text

NAME = "firewalls"

_RESULTS = {
    Certainty.CERTAIN: Result.FAILED,
    Certainty.PARTLY: Result.FAILED,
    Certainty.DEPENDS: Result.UNDECIDED,
    Certainty.UNDECIDED: Result.UNDECIDED,
}


def firewalls(facts: Facts) -> Step:
    """Check that no rule of another program stops the packets or their replies.

    With flow offload, a note names policy engines whose rules offloaded packets do not meet.
    """
    part = facts.path.firewalls
    if isinstance(part, NotRead):
        return not_checked(NAME, part)
    others = transforms(facts.path.transforms, facts.path.paths.paths)
    fast = may_be_offloaded(facts)
    found = (_finding(each, fast) for each in part.findings)
    findings = [*found, *_unread(part), *others, *offload(facts, part)]
    return merged(NAME, findings, f"{facts.path.paths}: {_passed(part)}")


def _passed(part: FirewallFacts) -> str:
    if not part.chains:
        return "packets meet no rule of another program"
    owners = sorted({owner_of(*chain).name for chain in (*part.chains, *part.entered)} - {""})
    names = f" ({listed(owners)})" if owners else ""
    return f"packets pass {count(len(part.chains), 'chain')} of other programs{names}"


def _unread(part: FirewallFacts) -> Iterator[Finding]:
    for reason in part.unread:
        yield doubt(None, f"not read: {reason}")


def _finding(stopped: Stopped, fast: bool) -> Finding:
    found = stopped.finding
    owner = _owner(stopped)
    message = f"{_rule(found, owner)} {_does(stopped)}"
    result = _RESULTS[found.certainty]
    reasons = listed([each.what for each in found.doubts], 3)
    if found.certainty is Certainty.UNDECIDED:
        message = f"it is undecided whether {message}: pyproxy cannot evaluate {_unreadable(found)}"
    elif found.certainty is Certainty.DEPENDS:
        message += f", depending on {reasons}"
        if ANY_CLIENT[0] in found.doubts:
            message += ": state it with --from"
    elif found.certainty is Certainty.PARTLY:
        message += f", by {reasons}"
    elif found.action is Action.DIVERT:
        result = Result.UNDECIDED
        message += ": pyproxy cannot know what becomes of them"
    elif fast and stopped.is_later and stopped.path.leaving.protocol is Protocol.UDP:
        # The reply offloads the connection. TCP's ACK has to pass first.
        result = Result.UNDECIDED
        message += ", unless --flow-offload takes the connection off that chain"
    endpoint = backend_text(stopped.path.leaving.target) if stopped.is_translated else ""
    fix = _fix(found, owner) if result is Result.FAILED else ""
    return Finding(result, message, fix, endpoint)


def _unreadable(found: RuleFinding) -> str:
    kinds = [each.what for each in found.doubts if each.kind is DoubtKind.UNREADABLE]
    return listed(kinds, 3)


def _owner(stopped: Stopped) -> Owner:
    found = stopped.finding
    owner = owner_of(found.table, found.chain)
    if owner is not UNKNOWN:
        return owner
    # A base chain with a usual name may be of any program that has chains there.
    related = dict.fromkeys(owner_of(found.table, name) for name in stopped.related)
    related.pop(UNKNOWN, None)
    named = [each for each in related if each.name != "kubelet"]
    if not named:
        return UNKNOWN
    return Owner(" or ".join(each.name for each in named), named[0].fix)


def _rule(found: RuleFinding, owner: Owner) -> str:
    if found.place:
        handle = found.place.startswith("handle ")
        place = f"the rule with {found.place}" if handle else found.place
    else:
        place = "the rest" if found.doubts and found.note else "the policy"
    whose = f" ({owner.name})" if owner.name else ""
    return f"{place} of chain {found.chain} in table {found.table}{whose}"


def _does(stopped: Stopped) -> str:
    found, path = stopped.finding, stopped.path
    origin = path.origin.value
    frontend = backend_text(path.arriving.target)
    if stopped.is_reply:
        packets = f"the replies of {{}} to {origin}" if stopped.is_translated else "the replies"
    else:
        packets = "later packets of a connection" if stopped.is_later else "packets"
        packets += f" from {origin} to {'{}' if stopped.is_translated else frontend}"
    if found.action is Action.NOTRACK:
        return f"takes {packets} out of conntrack, so that nothing translates them"
    if found.action is Action.TRANSLATE:
        note = f" {found.note}" if found.note else ""
        return f"translates {packets}{note} before pyproxy does"
    if found.action is Action.DIVERT:
        return f"passes {packets} {found.note}"
    verb = "rejects" if found.action is Action.REJECT else "drops"
    part = "a part of " if found.certainty is Certainty.PARTLY else ""
    return f"{verb} {part}{packets}"


def _fix(found: RuleFinding, owner: Owner) -> str:
    shown = _listing(found)
    if found.action is Action.NOTRACK:
        return f"exclude the Service's addresses and the pods from that rule: {shown}"
    if found.action is Action.TRANSLATE:
        return f"remove that rule, or use another address or port: {shown}"
    if owner.fix:
        return owner.fix
    return f"accept the packets of pods before that rule: {shown}"


def _listing(found: RuleFinding) -> str:
    """Return the command that lists a chain with the numbers of its rules."""
    program, _, table = found.table.partition(" ")
    if program.endswith("-legacy"):
        return f"{program} -t {table} -nvL {found.chain} --line-numbers"
    return f"nft -a list chain {found.table} {found.chain}"
