"""The trees of one family: its frontends, and the chains that lead to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from functools import cached_property

from pyproxy.dataplane.iptables import chain_names
from pyproxy.dataplane.iptables.base_rules import FILTER, NAT
from pyproxy.dataplane.iptables.rules import RETURN, Jump, Rule
from pyproxy.dataplane.iptables.services import Part
from pyproxy.dataplane.iptables.tree import (
    NODE_ADDRESSES_DEEPEST,
    NODE_PORTS_DEEPEST,
    Leaves,
    Tree,
    number,
)
from pyproxy.model.address import Address, Family, Network, family_of, parse_network
from pyproxy.xtables import kube_names

_AllLeaves = tuple[Leaves, ...]
_NO_LEAVES: _AllLeaves = ({}, {}, {}, {})
_Covered = dict[int, tuple[Rule, ...]]
_AllCovered = tuple[_Covered, ...]
_NONE_COVERED: _AllCovered = ({}, {}, {}, {})

# The kernel's local addresses that serve no node ports, unless one of the addresses is among them.
_NOT_LOCAL = {
    Family.IPV4: tuple(map(parse_network, ("127.0.0.0/8", "169.254.0.0/16"))),
    Family.IPV6: tuple(map(parse_network, ("::1/128", "fe80::/10"))),
}

# Frontends without endpoints come first, since some drop: a cluster IP's rule rejects every port.
_REFUSED_FIRST = Rule(target=Jump(kube_names.EXTERNAL_SERVICES))


def _leaves(part: Part) -> _AllLeaves:
    return part.served, part.refused, part.node_served, part.node_refused


def _add(leaves: dict[int, Rule], covered: _Covered, key: int, rule: Rule) -> None:
    held = leaves.get(key)
    if held is not None and held != rule:
        covered[key] = (*covered.get(key, ()), held)
    leaves[key] = rule


def _remove(leaves: dict[int, Rule], covered: _Covered, key: int, rule: Rule) -> None:
    rest = list(covered.pop(key, ()))
    if leaves.get(key) != rule:
        # Another Service has the frontend.
        rest = [each for each in rest if each != rule]
    elif rest:
        leaves[key] = rest.pop()
    else:
        del leaves[key]
    if rest:
        covered[key] = tuple(rest)


class FrontendTrees:
    """Frontends with endpoints, frontends without, and the number of Services of each cluster IP.

    A Service that the kernel rejected keeps its frontends, which others may have now. The last one
    that was added is served, and the others take its place when it is removed.

    With `all_local` every local address of the node serves node ports, also those in none of the
    trees yet, and those of local routes to networks.

    A packet to a port of a cluster IP that no Service has is rejected if the node would forward it.
    If the address is on an interface of the node, the packet is left to the node.
    """

    def __init__(
        self,
        family: Family,
        leaves: _AllLeaves = _NO_LEAVES,
        covered: _AllCovered = _NONE_COVERED,
        cluster_ips: Counter[Address] | None = None,
        addresses: frozenset[Address] = frozenset(),
        *,
        all_local: bool = False,
    ) -> None:
        self._family = family
        self._all_local = all_local
        self._leaves = leaves
        self._covered = covered
        self._cluster_ips = cluster_ips or Counter()
        self._addresses = addresses

    def changed(
        self,
        before: Iterable[Part],
        after: Iterable[Part],
        node_addresses: Collection[Address] = (),
    ) -> FrontendTrees:
        """Return the trees with `after` in the place of `before`; both are of the same Services.

        `node_addresses` are the addresses of node ports, of both families.
        """
        addresses = frozenset(each for each in node_addresses if family_of(each) is self._family)
        leaves = [dict(each) for each in self._leaves]
        covered = [dict(each) for each in self._covered]
        cluster_ips = Counter(self._cluster_ips)
        for part in before:
            for tree, under, of_part in zip(leaves, covered, _leaves(part), strict=True):
                for key, rule in of_part.items():
                    _remove(tree, under, key, rule)
            cluster_ips.subtract(part.cluster_ips)
        for part in after:
            for tree, under, of_part in zip(leaves, covered, _leaves(part), strict=True):
                for key, rule in of_part.items():
                    _add(tree, under, key, rule)
            cluster_ips.update(part.cluster_ips)
        # Unary plus leaves out addresses that no Service has any more.
        cluster_ips = +cluster_ips
        if (
            tuple(leaves) == self._leaves
            and addresses == self._addresses
            and cluster_ips.keys() == self._cluster_ips.keys()
        ):
            # The chains depend on the addresses alone, so a cached tree is taken over.
            same = self._with(self._leaves, tuple(covered), cluster_ips, addresses)
            same.__dict__["chains"] = self.chains
            return same
        return self._with(tuple(leaves), tuple(covered), cluster_ips, addresses)

    def _with(
        self,
        leaves: _AllLeaves,
        covered: _AllCovered,
        cluster_ips: Counter[Address],
        addresses: frozenset[Address],
    ) -> FrontendTrees:
        return FrontendTrees(
            self._family, leaves, covered, cluster_ips, addresses, all_local=self._all_local
        )

    @cached_property
    def chains(self) -> dict[str, dict[str, tuple[Rule, ...]]]:
        """All chains of the trees, by table."""
        refused = Tree(self._family, kube_names.EXTERNAL_SERVICES, kube_names.REFUSED_TREE)
        addresses = Tree(self._family, kube_names.SERVICES, kube_names.SERVICE_TREE).chains(
            {number(address): self._refuse(address) for address in self._cluster_ips}
        )
        addresses[kube_names.SERVICES] = (_REFUSED_FIRST, *addresses[kube_names.SERVICES])
        served = Tree(self._family, kube_names.SERVICES, kube_names.SERVICE_TREE)
        of_served, of_refused, node_served, node_refused = self._leaves
        return {
            FILTER: self._with_node_ports(refused.chains(of_refused), refused, node_refused)
            | addresses,
            NAT: self._with_node_ports(served.chains(of_served), served, node_served),
        }

    def _with_node_ports(
        self, chains: dict[str, tuple[Rule, ...]], tree: Tree, leaves: Leaves
    ) -> dict[str, tuple[Rule, ...]]:
        """Add a tree of the node's addresses, each of which leads to a tree of node ports."""
        if not (leaves and (self._addresses or self._all_local)):
            return chains
        names = chain_names.node_ports(tree.prefix)
        addresses = Tree(
            self._family, names.addresses, names.address_branches, NODE_ADDRESSES_DEEPEST
        )
        ports = Tree(
            self._family, names.ports, names.port_branches, NODE_PORTS_DEEPEST, anywhere=True
        )
        to_ports = Jump(names.ports, returns=False)
        found = chains | ports.chains(leaves)
        found |= addresses.chains(
            {
                number(each): Rule(destination=Network(each, self._family.bits), target=to_ports)
                for each in self._addresses
            }
        )
        # A packet to another port of the node comes back from there.
        found[tree.root] = (Rule(target=Jump(names.addresses)), *found[tree.root])
        if self._all_local:
            # Last, so that a frontend of this address and port comes first.
            found[tree.root] += (
                *(Rule(destination=each, target=RETURN) for each in _NOT_LOCAL[self._family]),
                Rule(to_here=True, target=to_ports),
            )
        return found

    def _refuse(self, address: Address) -> Rule:
        to = Network(address, self._family.bits)
        return Rule(destination=to, target=Jump(kube_names.REFUSE, returns=False))
