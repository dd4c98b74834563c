"""The base rules: the chains that do not depend on Services, and the jumps that lead to them.

They are kube-proxy's, with these differences. Frontends without endpoints are looked up in trees,
and only for packets that no rule has translated. Jumps test for the packets that a chain is meant
for. Packets from other hosts to loopback addresses are dropped before they could be translated.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

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
from pyproxy.xtables import kube_names

# The order of writes. iptables-restore commits each table on its own: none spans two tables.
MANGLE, FILTER, NAT = TABLES = ("mangle", "filter", "nat")

"""The built-in chains."""

_LOOPBACK = {
    Family.IPV4: parse_network("127.0.0.0/8"),
    Family.IPV6: parse_network("::1/128"),
}


class IptablesOptions(msgspec.Struct, frozen=True):
    """The configuration of the rules.

    A packet is from a pod if it comes in by `pod_interface` (a name, or a prefix ending in `+`), or
    else if its source is in a pod network. Without either, no packet of the family is masqueraded
    because of its source. `shield_loopback` drops packets from other hosts to loopback addresses.
    `drop_invalid` drops packets in conntrack's state INVALID instead of forwarding them.
    `counters` are the nfacct objects that rules may increment. In `all_local` families, every
    address that the kernel takes for the node's own serves node ports.
    """

    mark: Mark = Mark(1 << 14)
    masquerade_all: bool = False
    pod_interface: str = ""
    shield_loopback: bool = False
    drop_invalid: bool = True
    counters: frozenset[str] = frozenset()
    all_local: frozenset[Family] = frozenset()


class Pods(msgspec.Struct, frozen=True):
    """How packets from pods are recognised, in one family."""

    interface: str = ""
    networks: tuple[Network, ...] = ()

    @property
    def are_known(self) -> bool:
        """Whether packets from pods can be recognised."""
        return bool(self.interface or self.networks)

    def rules(self, target: Target) -> tuple[Rule, ...]:
        """Return rules that send packets from pods to `target`."""
        if self.interface:
            return (Rule(interface=self.interface, target=target),)
        return tuple(Rule(source=network, target=target) for network in self.networks)


def pods_of(family: Family, options: IptablesOptions, networks: tuple[Network, ...]) -> Pods:
    """Return how packets from pods are recognised in a family, given all pod networks."""
    if options.pod_interface:
        return Pods(options.pod_interface)
    return Pods("", tuple(each for each in networks if each.family is family))


def jumps(options: IptablesOptions) -> Iterator[tuple[str, str, Rule]]:
    """Yield the rules in built-in chains, each with its table and its chain."""
    # The comments are kube-proxy's, so that its rules are taken over in place.
    portals = "kubernetes service portals"
    for hook in ("PREROUTING", "OUTPUT"):
        yield NAT, hook, Rule(comment=portals, target=Jump(kube_names.SERVICES))
    postrouting = "kubernetes postrouting rules"
    # kube-proxy tests the mark inside the chain, so that each new connection enters it. Here the
    # jump tests it, and the chain may rely on the bit being set.
    to_masquerade = Rule(
        comment=postrouting, marked=options.mark, target=Jump(kube_names.POSTROUTING)
    )
    yield NAT, "POSTROUTING", to_masquerade
    external = "kubernetes externally-visible service portals"
    yield FILTER, "INPUT", _untranslated(external, kube_names.EXTERNAL_SERVICES)
    forwarding = "kubernetes forwarding rules"
    # Most packets belong to known connections: the first test lets them pass.
    new = Rule(states="NEW", not_states=True, comment=forwarding, target=Jump(kube_names.FORWARD))
    yield FILTER, "FORWARD", new
    # A node port must work even if the policy of FORWARD, or a later rule, drops the packet.
    marked = Rule(comment=forwarding, marked=options.mark, target=Jump(kube_names.ACCEPT))
    yield FILTER, "FORWARD", marked
    for hook in ("FORWARD", "OUTPUT"):
        yield FILTER, hook, _untranslated(portals, kube_names.SERVICES)
    if options.shield_loopback:
        firewall = Rule(
            comment="kubernetes loopback addresses are for the node alone",
            target=Jump(kube_names.FIREWALL),
        )
        yield MANGLE, "PREROUTING", firewall


def _untranslated(comment: str, chain: str) -> Rule:
    # At each hook nat (-100) precedes filter (0), and the state DNAT means that nat found an
    # endpoint: such a packet needs no look-up among the frontends without endpoints.
    return Rule(states="NEW", untranslated=True, comment=comment, target=Jump(chain))


def base_chains(
    family: Family, options: IptablesOptions, pods: Pods
) -> dict[str, dict[str, tuple[Rule, ...]]]:
    """Return the chains that do not depend on Services, by table."""
    set_mark = SetMark(options.mark)
    mark_external = (*pods.rules(RETURN), Rule(target=set_mark))
    mangle: dict[str, tuple[Rule, ...]] = {kube_names.CANARY: ()}
    if options.shield_loopback:
        # CVE-2020-8558: with route_localnet, hosts on the link reach programs bound to 127.0.0.1.
        # mangle (-150) is after conntrack (-200), so that states are known, and before nat (-100).
        shield = Rule(
            destination=_LOOPBACK[family],
            interface="lo",
            not_interface=True,
            states="INVALID,NEW,UNTRACKED",
            target=DROP,
        )
        mangle[kube_names.FIREWALL] = (shield,)
    # kube-proxy's canary is an empty chain: its absence shows that a program flushed the table.
    return {
        MANGLE: mangle,
        FILTER: {
            kube_names.CANARY: (),
            kube_names.FORWARD: tuple(_forward(options)),
            kube_names.ACCEPT: (Rule(target=ACCEPT),),
            kube_names.REFUSE: (
                # REJECT takes tcp-reset only in a rule that matches TCP.
                Rule(protocol=Protocol.TCP, target=RESET),
                Rule(target=UNREACHABLE[family]),
            ),
        },
        NAT: {
            kube_names.CANARY: (),
            kube_names.MARK_MASQUERADE: (Rule(target=set_mark),),
            kube_names.MARK_EXTERNAL: mark_external if pods.are_known else (),
            kube_names.POSTROUTING: (
                # A packet that passes the hooks again, as in a tunnel, is not masqueraded twice.
                Rule(target=SetMark(options.mark, on=False)),
                Rule(comment="kubernetes service traffic requiring SNAT", target=MASQUERADE),
            ),
        },
    }


def _forward(options: IptablesOptions) -> Iterator[Rule]:
    yield Rule(
        comment="kubernetes forwarding conntrack rule",
        states="RELATED,ESTABLISHED",
        target=ACCEPT,
    )
    if options.drop_invalid:
        # nat skips INVALID packets, so that a reply would leave with the pod's own address, and its
        # receiver would reset the connection (kubernetes/kubernetes#74839).
        counter = (
            kube_names.INVALID_DROPPED if kube_names.INVALID_DROPPED in options.counters else ""
        )
        yield Rule(states="INVALID", counter=counter, target=DROP)
