"""Read the chains that packets of one Service pass, and the base rules, instead of all chains.

A packet's way through a tree of frontends is found in the rules as they are: each chain says which
one is next. If the way does not lead to the Service, only all chains together show why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.iptables import base_rules
from pyproxy.dataplane.iptables.base_rules import FILTER, NAT, TABLES, IptablesOptions
from pyproxy.dataplane.iptables.committed_state import Saved
from pyproxy.dataplane.iptables.rule_parser import parse_rule
from pyproxy.dataplane.iptables.rules import Jump, Rule
from pyproxy.dataplane.iptables.services import View, compile_service
from pyproxy.model.address import Address, Family, Port, Protocol, family_of
from pyproxy.policy.routing import ServiceRouting
from pyproxy.xtables import kube_names
from pyproxy.xtables.saved import SavedTable

Read = Callable[[Family, str, str], "list[str] | None"]
"""Returns the texts of a chain's rules, given its table, or None if there is no such chain."""

_TREES = (kube_names.SERVICE_TREE, kube_names.REFUSED_TREE)
_ROOTS = (kube_names.SERVICES, kube_names.EXTERNAL_SERVICES)


class _To(msgspec.Struct, frozen=True):
    """The destination of a packet; the address is None if the node has none for node ports."""

    address: Address | None
    protocol: Protocol
    port: Port

    def meets(self, rule: Rule) -> bool:
        """Return whether a rule of a tree may match such a packet."""
        return (
            (rule.destination is None or self._is_in(rule))
            and rule.protocol in (None, self.protocol)
            and (rule.ports is None or rule.ports[0] <= self.port <= rule.ports[1])
        )

    def _is_in(self, rule: Rule) -> bool:
        return (
            self.address is not None
            and rule.destination is not None
            and self.address in rule.destination
        )


def read_base(
    read: Read, options: IptablesOptions, node: NodeRouting, families: Iterable[Family]
) -> dict[Family, dict[str, SavedTable]]:
    """Read the base rules: pyproxy's constant chains, and the built-in chains with its jumps."""
    found = {}
    for family in families:
        pods = base_rules.pods_of(family, options, node.pod_networks)
        base = base_rules.base_chains(family, options, pods)
        names = {table: set(base[table]) for table in TABLES}
        for table, hook, _ in base_rules.jumps(options):
            names[table].add(hook)
        found[family] = {
            table: SavedTable(_chains(read, family, table, names[table])) for table in TABLES
        }
    return found


def read_path(
    read: Read,
    wanted: ServiceRouting,
    options: IptablesOptions,
    node: NodeRouting,
    families: Iterable[Family],
) -> Saved:
    """Read the chains of a Service, those that lead to it, and the base rules."""
    found = read_base(read, options, node, families)
    for family, tables in found.items():
        view = View(options, base_rules.pods_of(family, options, node.pod_networks))
        part = compile_service(wanted, family, view)
        destinations = frozenset(_destinations(wanted, family, node))
        for table, chains, leaves in (
            (NAT, part.nat, part.served or part.node_served),
            (FILTER, part.filter, part.refused or part.node_refused),
        ):
            # Chains of a table without any part of the Service cannot differ.
            if chains or leaves:
                more = _chains(read, family, table, chains)
                more |= _walk(read, family, table, destinations)
                tables[table] = SavedTable({**tables[table].chains, **more})
    return found


def _chains(read: Read, family: Family, table: str, names: Iterable[str]) -> dict[str, list[str]]:
    found = {name: read(family, table, name) for name in names}
    return {name: texts for name, texts in found.items() if texts is not None}


def _destinations(wanted: ServiceRouting, family: Family, node: NodeRouting) -> Iterator[_To]:
    own = next((each for each in node.node_port_addresses if family_of(each) is family), None)
    for port in wanted.ports:
        if port.family is family:
            for frontend in port.frontends:
                yield _To(frontend.address or own, port.protocol, frontend.port)


def _walk(
    read: Read, family: Family, table: str, destinations: frozenset[_To]
) -> dict[str, list[str]]:
    """Return the chains of the trees that packets to these destinations pass."""
    found: dict[str, list[str]] = {}
    queue = list(_ROOTS)
    seen = set(queue)
    for name in queue:
        texts = read(family, table, name)
        if texts is None:
            continue
        found[name] = texts
        for text in texts:
            # Rules of frontends, which leave the tree, need not be parsed.
            if not any(tree in text for tree in _TREES):
                continue
            rule = parse_rule(text, family)
            if rule is None or not isinstance(rule.target, Jump):
                continue
            to = rule.target.chain
            if to in seen or not to.startswith(_TREES):
                continue
            if any(each.meets(rule) for each in destinations):
                seen.add(to)
                queue.append(to)
    return found
