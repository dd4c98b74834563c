"""The chains that are there whatever Services there are, and the rules that lead to them.

They are kube-proxy's, with these differences: what is refused is looked up in trees, and for
packets alone that no rule has translated; chains are entered by those packets alone that they are
for; and what others send to loopback addresses is dropped before it could be translated.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pyproxy.dataplane.iptables import names
from pyproxy.dataplane.iptables.rules import (
    ACCEPT,
    DROP,
    MASQUERADE,
    RESET,
    RETURN,
    UNREACHABLE,
    Jump,
    Rule,
    SetMark,
    Target,
)
from pyproxy.model.address import Family, Mark, Network, Protocol, parse_network

MANGLE, FILTER, NAT = TABLES = ("mangle", "filter", "nat")

HOOKS = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
"""The kernel's own chains."""

_LOOPBACK = {
    Family.IPV4: parse_network("127.0.0.0/8"),
    Family.IPV6: parse_network("::1/128"),
}


class Options(msgspec.Struct, frozen=True):
    """What the configuration says about the rules.

    Traffic is from a pod when it comes in by `pod_interface` (a name, or a prefix ending in `+`),
    or else when its source is in a pod network; a family that has neither is never masqueraded for
    coming from elsewhere. `shield_loopback` drops what others send to loopback addresses.
    `drop_invalid` drops packets that conntrack can make nothing of before they are forwarded.
    `counters` are nfacct's that rules may count into.
    """

    mark: Mark = Mark(1 << 14)
    masquerade_all: bool = False
    pod_interface: str = ""
    shield_loopback: bool = False
    drop_invalid: bool = True
    counters: frozenset[str] = frozenset()


class Pods(msgspec.Struct, frozen=True):
    """Who is a pod, in one family."""

    interface: str = ""
    networks: tuple[Network, ...] = ()

    @property
    def are_known(self) -> bool:
        """Whether anybody is."""
        return bool(self.interface or self.networks)

    def rules(self, target: Target) -> tuple[Rule, ...]:
        """Write what sends pods to `target`."""
        if self.interface:
            return (Rule(interface=self.interface, target=target),)
        return tuple(Rule(source=network, target=target) for network in self.networks)


def pods(family: Family, options: Options, networks: tuple[Network, ...]) -> Pods:
    """Say who is a pod in a family, of all the pod networks of a node."""
    if options.pod_interface:
        return Pods(options.pod_interface)
    return Pods("", tuple(each for each in networks if each.family is family))


def jumps(options: Options) -> Iterator[tuple[str, str, Rule]]:
    """Give the rules in the kernel's own chains: each with its table and its chain."""
    portals = "kubernetes service portals"
    for hook in ("PREROUTING", "OUTPUT"):
        yield NAT, hook, Rule(comment=portals, target=Jump(names.SERVICES))
    postrouting = "kubernetes postrouting rules"
    to_masquerade = Rule(comment=postrouting, marked=options.mark, target=Jump(names.POSTROUTING))
    yield NAT, "POSTROUTING", to_masquerade
    external = "kubernetes externally-visible service portals"
    yield FILTER, "INPUT", _untranslated(external, names.EXTERNAL_SERVICES)
    forwarding = "kubernetes forwarding rules"
    # Whatever is known of already, which is most, leaves by the first of these.
    known = Rule(states="NEW", not_states=True, comment=forwarding, target=Jump(names.FORWARD))
    yield FILTER, "FORWARD", known
    marked = Rule(comment=forwarding, marked=options.mark, target=Jump(names.ACCEPT))
    yield FILTER, "FORWARD", marked
    for hook in ("FORWARD", "OUTPUT"):
        yield FILTER, hook, _untranslated(portals, names.SERVICES)
    if options.shield_loopback:
        firewall = Rule(
            comment="kubernetes loopback addresses are for the node alone",
            target=Jump(names.FIREWALL),
        )
        yield MANGLE, "PREROUTING", firewall


def _untranslated(comment: str, chain: str) -> Rule:
    return Rule(states="NEW", untranslated=True, comment=comment, target=Jump(chain))


def chains(family: Family, options: Options, who: Pods) -> dict[str, dict[str, tuple[Rule, ...]]]:
    """Give the chains that have nothing to do with any Service, by their table."""
    set_mark = SetMark(options.mark)
    outsiders = (*who.rules(RETURN), Rule(target=set_mark))
    mangle: dict[str, tuple[Rule, ...]] = {names.CANARY: ()}
    if options.shield_loopback:
        shield = Rule(
            destination=_LOOPBACK[family],
            interface="lo",
            not_interface=True,
            states="INVALID,NEW,UNTRACKED",
            target=DROP,
        )
        mangle[names.FIREWALL] = (shield,)
    return {
        MANGLE: mangle,
        FILTER: {
            names.CANARY: (),
            names.FORWARD: tuple(_forward(options)),
            names.ACCEPT: (Rule(target=ACCEPT),),
            names.REFUSE: (
                Rule(protocol=Protocol.TCP, target=RESET),
                Rule(target=UNREACHABLE[family]),
            ),
        },
        NAT: {
            names.CANARY: (),
            names.MARK_MASQUERADE: (Rule(target=set_mark),),
            names.MARK_OUTSIDERS: outsiders if who.are_known else (),
            names.POSTROUTING: (
                Rule(target=SetMark(options.mark, on=False)),
                Rule(comment="kubernetes service traffic requiring SNAT", target=MASQUERADE),
            ),
        },
    }


def _forward(options: Options) -> Iterator[Rule]:
    yield Rule(
        comment="kubernetes forwarding conntrack rule",
        states="RELATED,ESTABLISHED",
        target=ACCEPT,
    )
    if options.drop_invalid:
        counter = names.INVALID_DROPPED if names.INVALID_DROPPED in options.counters else ""
        yield Rule(states="INVALID", counter=counter, target=DROP)
