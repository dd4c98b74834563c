"""The trees of one family: its frontends, and the chains that lead to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property

from pyproxy.dataplane.iptables.base_rules import FILTER, NAT
from pyproxy.dataplane.iptables.rules import Jump, Rule
from pyproxy.dataplane.iptables.services import Part
from pyproxy.dataplane.iptables.tree import Tree, number
from pyproxy.model.address import Address, Family, Network
from pyproxy.xtables import kube_names

# Frontends without endpoints come first, since some drop: a cluster IP's rule rejects every port.
_REFUSED_FIRST = Rule(target=Jump(kube_names.EXTERNAL_SERVICES))


class FrontendTrees:
    """Frontends with endpoints, frontends without, and the number of Services of each cluster IP.

    A packet to a port of a cluster IP that no Service has is rejected if the node would forward it.
    If the address is on an interface of the node, the packet is left to the node.
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
        """Return the trees with `after` in the place of `before`; both are of the same Services."""
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
        # Unary plus leaves out addresses that no Service has any more.
        cluster_ips = +cluster_ips
        if (served, refused) == (self._served, self._refused) and (
            cluster_ips.keys() == self._cluster_ips.keys()
        ):
            # The chains depend on the addresses alone, so a cached tree is taken over.
            same = FrontendTrees(self._family, self._served, self._refused, cluster_ips)
            same.__dict__["chains"] = self.chains
            return same
        return FrontendTrees(self._family, served, refused, cluster_ips)

    @cached_property
    def chains(self) -> dict[str, dict[str, tuple[Rule, ...]]]:
        """All chains of the trees, by table."""
        refused = Tree(self._family, kube_names.EXTERNAL_SERVICES, kube_names.REFUSED_TREE)
        addresses = Tree(self._family, kube_names.SERVICES, kube_names.SERVICE_TREE).chains(
            {number(address): self._refuse(address) for address in self._cluster_ips}
        )
        addresses[kube_names.SERVICES] = (_REFUSED_FIRST, *addresses[kube_names.SERVICES])
        served = Tree(self._family, kube_names.SERVICES, kube_names.SERVICE_TREE)
        return {
            FILTER: refused.chains(self._refused) | addresses,
            NAT: served.chains(self._served),
        }

    def _refuse(self, address: Address) -> Rule:
        to = Network(address, self._family.bits)
        return Rule(destination=to, target=Jump(kube_names.REFUSE, returns=False))
