"""Connections by frontend and endpoint, from the packet counters of the rules in nat.

nat sees only the first packet of a connection, so a rule's packets are connections. A counter
starts at 0 when its chain is written, as when an endpoint is added to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pyproxy.dataplane.connections import Counted, Totals, is_selected
from pyproxy.dataplane.iptables.base_rules import NAT
from pyproxy.dataplane.iptables.rule_parser import parse_rule
from pyproxy.dataplane.iptables.rules import Jump, Translate
from pyproxy.errors import KernelError, PyproxyError, UsageError
from pyproxy.model.address import Family, backend_text
from pyproxy.model.flavour import Flavour
from pyproxy.xtables import kube_names
from pyproxy.xtables.programs import Programs
from pyproxy.xtables.saved import CountedRule, target

# A tree begins at its root, and has chains of its own with more than a few frontends.
_TREE = (kube_names.SERVICES, kube_names.SERVICE_TREE)

_Rules = Mapping[str, list[CountedRule]]
_Element = tuple[str, tuple[Family, str, str]]


class IptablesCounters:
    """Reads the counters of the caller's network namespace with iptables-save.

    `flavour` is None for the flavour whose table has pyproxy's chains.
    """

    def __init__(self, flavour: Flavour | None = None) -> None:
        self._flavours = (flavour,) if flavour else (Flavour.NFT, Flavour.LEGACY)

    def require(self) -> None:
        """Raise UsageError if no table has a frontend of pyproxy's. Raises KernelError."""
        if not self.services().by_element:
            raise UsageError(
                f"the table {NAT} of iptables has no frontend of pyproxy's: run top on a node "
                "where pyproxy serves in iptables mode, in the host's network namespace"
            )

    def services(self, wanted: str = "") -> Totals:
        """Read one total for each frontend of the Services that `wanted` names.

        Reads the whole table nat of both families. Raises KernelError, UsageError.
        """
        totals: dict[tuple[str, object], int] = {}
        owners: dict[tuple[str, object], Counted] = {}
        for family, chains in self._read():
            for element, service, _, packets in _frontends(family, chains):
                if is_selected(service, wanted):
                    totals[element] = packets
                    owners[element] = Counted(service)
        return Totals(totals, owners)

    def endpoints(self, services: Totals, *, everything: bool) -> Totals:  # noqa: ARG002
        """Read one total for each rule that translates to an endpoint.

        Reads the whole table nat of both families. Raises KernelError, UsageError.
        """
        wanted = {owner.service for owner in services.owners.values()}
        totals: dict[tuple[str, object], int] = {}
        owners: dict[tuple[str, object], Counted] = {}
        for family, chains in self._read():
            for _, service, chain, _ in _frontends(family, chains):
                if service not in wanted:
                    continue
                for element, endpoint, packets in _translations(family, chains, chain):
                    totals[element] = packets
                    owners[element] = Counted(service, endpoint)
        return Totals(totals, owners)

    def close(self) -> None:
        """Do nothing: it keeps nothing open."""

    def _read(self) -> Iterator[tuple[Family, _Rules]]:
        errors: list[PyproxyError] = []
        for family in Family:
            for flavour in self._flavours:
                try:
                    chains = Programs(family, flavour).save_counters(NAT)
                except (KernelError, UsageError) as error:
                    errors.append(error)
                    continue
                yield family, chains
        if len(errors) == len(Family) * len(self._flavours):
            raise errors[0]


def _frontends(family: Family, chains: _Rules) -> Iterator[tuple[_Element, str, str, int]]:
    """Yield each frontend's rule: its key, its Service, the chain that it leads to, its packets."""
    for chain, rules in chains.items():
        if not chain.startswith(_TREE):
            continue
        for packets, text in rules:
            # Only rules of frontends have a comment. kube-proxy has the same root, but its rules
            # jump to a Service's chain, while pyproxy's go there for good.
            rule = parse_rule(text, family) if "--comment" in text else None
            if rule is not None and isinstance(rule.target, Jump) and not rule.target.returns:
                yield (NAT, (family, chain, text)), rule.comment, rule.target.chain, packets


def _translations(
    family: Family, chains: _Rules, first: str
) -> Iterator[tuple[_Element, str, int]]:
    """Yield the rules that translate, of the chains that lead on from `first`; each chain once."""
    found, queue = {first}, [first]
    for chain in queue:
        for packets, text in chains.get(chain, ()):
            if "-j DNAT " in text:
                rule = parse_rule(text, family)
                if rule is not None and isinstance(rule.target, Translate):
                    element = NAT, (family, chain, text)
                    yield element, backend_text(rule.target.backend), packets
            elif (to := target(text)) in chains and to not in found:
                found.add(to)
                queue.append(to)
