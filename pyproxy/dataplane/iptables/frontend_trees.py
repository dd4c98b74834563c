"""The trees of one family: which frontends there are, and the chains that lead to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property

from pyproxy.dataplane.iptables import names
from pyproxy.dataplane.iptables.fixed import FILTER, NAT
from pyproxy.dataplane.iptables.rules import Jump, Rule
from pyproxy.dataplane.iptables.services import Part
from pyproxy.dataplane.iptables.tree import Tree, number
from pyproxy.model.address import Address, Family, Network

_FIRST_REFUSED = Rule(target=Jump(names.EXTERNAL_SERVICES))


class FrontendTrees:
    """The frontends that are served, those that are refused, and cluster IPs with their users.

    A cluster IP is refused on the ports that no Service has there, when a packet to it would be
    sent on: one that the node itself has an interface with stays the node's own.
    """

    def __init__(
        self,
        family: Family,
        served: Mapping[int, Rule] | None = None,
        refused: Mapping[int, Rule] | None = None,
        cluster_ips: Counter[Address] | None = None,
    ) -> None:
        self._family = family
        self._served = served or {}
        self._refused = refused or {}
        self._cluster_ips = cluster_ips or Counter()

    def changed(self, before: Iterable[Part], after: Iterable[Part]) -> FrontendTrees:
        """Give the forest where `after` stands in the place of `before`."""
        served, refused = dict(self._served), dict(self._refused)
        cluster_ips = Counter(self._cluster_ips)
        for part in before:
            for each in part.served:
                served.pop(each, None)
            for each in part.refused:
                refused.pop(each, None)
            cluster_ips.subtract(part.cluster_ips)
        for part in after:
            served.update(part.served)
            refused.update(part.refused)
            cluster_ips.update(part.cluster_ips)
        cluster_ips = +cluster_ips
        if (served, refused) == (self._served, self._refused) and (
            cluster_ips.keys() == self._cluster_ips.keys()
        ):
            same = FrontendTrees(self._family, self._served, self._refused, cluster_ips)
            same.__dict__["chains"] = self.chains
            return same
        return FrontendTrees(self._family, served, refused, cluster_ips)

    @cached_property
    def chains(self) -> dict[str, dict[str, tuple[Rule, ...]]]:
        """All chains of the trees, by their table."""
        refused = Tree(self._family, names.EXTERNAL_SERVICES, names.REFUSED_TREE)
        addresses = Tree(self._family, names.SERVICES, names.SERVICE_TREE).chains(
            {number(address): self._refuse(address) for address in self._cluster_ips}
        )
        addresses[names.SERVICES] = (_FIRST_REFUSED, *addresses[names.SERVICES])
        served = Tree(self._family, names.SERVICES, names.SERVICE_TREE)
        return {
            FILTER: refused.chains(self._refused) | addresses,
            NAT: served.chains(self._served),
        }

    def _refuse(self, address: Address) -> Rule:
        to = Network(address, self._family.bits)
        return Rule(destination=to, target=Jump(names.REFUSE, returns=False))
