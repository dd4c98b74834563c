"""The text of rules, as iptables-save prints it, parsed into the values of `rules`: no I/O.

Only rules that `rules` can write are parsed; all others are other programs'.
"""

from __future__ import annotations

import re

from pyproxy.dataplane.iptables.rules import (
    ACCEPT,
    CERTAIN,
    DROP,
    MASQUERADE,
    RESET,
    RETURN,
    UNREACHABLE,
    Jump,
    Rule,
    Seen,
    SetMark,
    Target,
    Translate,
)
from pyproxy.model.address import Family, Mark, Network, Protocol, backend, parse_network
from pyproxy.model.destination import parse_destination
from pyproxy.xtables import kube_names

_ENDS = {end.text: end for end in (ACCEPT, DROP, RETURN, MASQUERADE, RESET, *UNREACHABLE.values())}
# Matches are in the order of `Rule.text`: iptables-save keeps the order in which they were written.
_RULE = re.compile(
    r"(?:(?P<not_source>! )?-s (?P<source>\S+) )?"
    r"(?:-d (?P<destination>\S+) )?"
    r"(?:(?P<not_interface>! )?-i (?P<interface>\S+) )?"
    r"(?:-p (?P<protocol>\w+) )?"
    r"(?:-m conntrack (?P<not_states>! )?--ctstate (?P<states>(?!DNAT )[A-Z,]+) )?"
    r"(?P<untranslated>-m conntrack ! --ctstate DNAT )?"
    r'(?:-m comment --comment (?P<comment>"[^"]*"|\w+) )?'
    r"(?:-m mark (?P<not_marked>! )?--mark (?P<marked>\w+)/(?P=marked) )?"
    r"(?:-m \w+ --dport (?P<low>\d+)(?::(?P<high>\d+))? )?"
    r"(?P<from_here>-m addrtype --src-type LOCAL )?"
    r"(?P<to_here>-m addrtype --dst-type LOCAL )?"
    r"(?:-m recent (?:--set|--rcheck --seconds (?P<seconds>\d+) --reap)"
    r" --name (?P<seen>\S+) --mask \S+ --rsource )?"
    r"(?:-m statistic --mode random --probability (?P<share>[0-9.]+) )?"
    r"(?:-m nfacct --nfacct-name  (?P<counter>\S+) )?"
    r"(?P<target>-[jg] .+)"
)
_MARK = re.compile(r"-j MARK --set-xmark (\w+)/(\w+)")
_TRANSLATE = re.compile(r"-j DNAT --to-destination (\S+)")
_JUMP = re.compile(r"-([jg]) (\S+)")


def parse_rule(text: str, family: Family) -> Rule | None:
    """Parse a rule's text behind its chain; None if `Rule.text` would not write it."""
    found = _RULE.fullmatch(text)
    if found is None:
        return None
    try:
        rule = _rule(found, family)
    except (ValueError, KeyError):
        return None
    # The pattern admits more than `Rule.text` writes, such as needless quotes: compare the texts.
    return rule if rule.text == text else None


def _rule(found: re.Match[str], family: Family) -> Rule:
    seen = None
    if found["seen"]:
        seen = Seen(found["seen"], family, int(found["seconds"] or 0))
    ports = None
    if found["low"]:
        ports = (int(found["low"]), int(found["high"] or found["low"]))
    return Rule(
        target=_target(found["target"]),
        source=_network(found["source"]),
        not_source=bool(found["not_source"]),
        destination=_network(found["destination"]),
        interface=found["interface"] or "",
        not_interface=bool(found["not_interface"]),
        protocol=Protocol[found["protocol"].upper()] if found["protocol"] else None,
        ports=ports,
        from_here=bool(found["from_here"]),
        to_here=bool(found["to_here"]),
        share=round(float(found["share"] or 0) * CERTAIN),
        seen=seen,
        states=found["states"] or "",
        not_states=bool(found["not_states"]),
        untranslated=bool(found["untranslated"]),
        marked=Mark(int(found["marked"], 16)) if found["marked"] else None,
        not_marked=bool(found["not_marked"]),
        counter=found["counter"] or "",
        comment=(found["comment"] or "").strip('"'),
    )


def _network(text: str | None) -> Network | None:
    return parse_network(text) if text else None


def _target(text: str) -> Target:
    if end := _ENDS.get(text):
        return end
    if mark := _MARK.fullmatch(text):
        return SetMark(Mark(int(mark[1], 16)), on=mark[2] != "0x0")
    if translate := _TRANSLATE.fullmatch(text):
        to = parse_destination(translate[1])
        return Translate(backend(to.address, to.port))
    # Without this test, an unknown target such as LOG would be read as a chain.
    if (jump := _JUMP.fullmatch(text)) and kube_names.is_iptables_mode(jump[2]):
        return Jump(jump[2], returns=jump[1] == "j")
    raise ValueError(f"{text!r} is not a target that pyproxy writes")
