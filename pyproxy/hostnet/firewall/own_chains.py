"""Which tables and chains are pyproxy's, and what the evaluation takes them for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyproxy.hostnet.firewall.hook_packet import HookPacket
from pyproxy.hostnet.firewall.nft_tables import BaseChain
from pyproxy.hostnet.firewall.verdicts import ACCEPT, Chain, Chains, Effect, Rule
from pyproxy.netlink.nfnetlink import NFPROTO_INET
from pyproxy.xtables import kube_names

_TABLE = "pyproxy"
"""In ipvs mode, which has another table, nothing is evaluated."""

_SHIELD = ("pyproxy-node", "loopback-shield")
"""The only base chain of the table of settings, which iptables mode has."""

# Chains for Services and frontends: large, and checked by the steps before.
_LEFT_OUT = {
    kube_names.SERVICES,
    kube_names.EXTERNAL_SERVICES,
    kube_names.FIREWALL,
    kube_names.NODE_PORTS,
    kube_names.POSTROUTING,
    kube_names.REFUSE,
}


def is_own(base: BaseChain) -> bool:
    """Return whether a base chain is pyproxy's own."""
    own = base.table == _TABLE or (base.table, base.name) == _SHIELD
    return base.family == NFPROTO_INET and own


class _Translated:
    """The rule that stands for pyproxy's translation: no rule behind it translates again."""

    where = ""

    def apply(self, packet: HookPacket) -> Effect:
        """End the evaluation of the base chain."""
        return Effect(True, packet, (ACCEPT,))


class _Masqueraded:
    """The rule that stands for pyproxy's masquerading of the packets with its mark."""

    where = ""

    def apply(self, packet: HookPacket) -> Effect:
        """End the evaluation of the base chain if the packet has the mark."""
        if not packet.own_mark:
            return Effect(False, packet)
        return Effect(True, packet.with_source_translated(), (ACCEPT,))


class OwnChains:
    """The chains of a table, in which those of pyproxy's iptables mode are empty.

    In the table nat the chain of all Services ends the evaluation, because it translates, and that
    of masquerading does for packets with pyproxy's mark.
    """

    def __init__(self, chains: Chains, is_nat: bool) -> None:
        self._chains = chains
        self._is_nat = is_nat

    def title(self, name: str) -> str:
        """Return the name of a chain as its tool lists it."""
        return self._chains.title(name)

    def chain(self, name: str) -> Chain:
        """Return a chain by the name that a verdict has."""
        title = self.title(name)
        if title not in _LEFT_OUT:
            return self._chains.chain(name)
        rules = _NAT_RULES.get(title, ()) if self._is_nat else ()
        return Chain("", title, rules)


_NAT_RULES: Mapping[str, Sequence[Rule]] = {
    kube_names.SERVICES: (_Translated(),),
    kube_names.POSTROUTING: (_Masqueraded(),),
}
