"""One transaction a table, as a value, and the text that iptables-restore takes it as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.iptables import names
from pyproxy.dataplane.iptables.fixed import TABLES
from pyproxy.dataplane.iptables.frontend_trees import FrontendTrees
from pyproxy.dataplane.iptables.rules import Chains, Rule
from pyproxy.dataplane.iptables.saved import SavedTable, target
from pyproxy.errors import UsageError
from pyproxy.model.address import Family
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting

TableName = tuple[Family, str]
Wanted = Mapping[TableName, Mapping[str, tuple[Rule, ...]]]
"""The chains that each table is to hold."""


class Growth(msgspec.Struct, frozen=True):
    """How many more rules and chains a table has after a change than before."""

    rules: int = 0
    chains: int = 0

    @property
    def entries(self) -> int:
        """What iptables-legacy counts: a chain has an entry before its rules and one behind."""
        return self.rules + 2 * self.chains


class TableChange(msgspec.Struct, frozen=True):
    """What is to be written to one table.

    `chains` are made or replaced, `gone` are removed. `jumps` are rules to insert into the kernel's
    own chains, `strays` the texts of those that are to go from there. `growth` is how much more
    the table then holds.
    """

    chains: Chains
    gone: tuple[str, ...] = ()
    jumps: tuple[tuple[str, Rule], ...] = ()
    strays: tuple[tuple[str, str], ...] = ()
    growth: Growth = Growth()

    def __bool__(self) -> bool:
        return bool(self.chains or self.gone or self.jumps or self.strays)

    def lines(self) -> Iterator[str]:
        """Write what goes between the table's name and COMMIT.

        Chains come in descending order: iptables-nft keeps those that it has met in a list that is
        sorted in ascending order, and walks it from its beginning for each new one.
        """
        filled = sorted(self.chains, reverse=True)
        for chain in sorted((*filled, *self.gone), reverse=True):
            yield f":{chain} - [0:0]"
        for hook, text in self.strays:
            yield f"-D {hook} {text}"
        for chain in filled:
            for rule in self.chains[chain]:
                yield f"-A {chain} {rule.text}"
        for hook, rule in reversed(self.jumps):
            yield f"-I {hook} {rule.text}"
        for chain in self.gone:
            yield f"-X {chain}"


class IptablesPlan(msgspec.Struct, frozen=True):
    """Chains to write and to remove, and what is so once that is done.

    `wanted` are the Services that change, None for one that goes. `forests` are those that the
    families then have, and `rules` says how many rules each table has in chains of ours. `node` is
    the node's part where that changes, and `whole` says that the plan was made against what the
    kernel holds.
    """

    changes: Mapping[TableName, TableChange]
    wanted: Mapping[ObjectName, ServiceRouting | None]
    forests: Mapping[Family, FrontendTrees]
    node: NodeRouting | None = None
    whole: bool = False
    rules: Mapping[TableName, int] = {}

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Spell out what iptables-restore is given, for both families."""
        for family in Family:
            yield from self.script(family)

    def netlink(self) -> Iterator[str]:
        """Raise UsageError: iptables-restore writes in the agent's stead."""
        raise UsageError("--show-netlink: iptables mode writes no netlink: leave it out")

    def script(self, family: Family) -> list[str]:
        """Write what iptables-restore takes, one transaction a table; empty for nothing to do."""
        found = []
        for table in TABLES:
            if change := self.changes.get((family, table)):
                found += [f"*{table}", *change.lines(), "COMMIT"]
        return found

    def growth(self) -> Mapping[TableName, Growth]:
        """How much each table that is written grows."""
        return {table: change.growth for table, change in self.changes.items() if change}

    def rules_written(self) -> Mapping[TableName, int]:
        """How many rules each table is written, the jumps in the kernel's chains not counted."""
        return {
            table: sum(len(rules) for rules in change.chains.values())
            for table, change in self.changes.items()
        }

    def counts(self) -> Mapping[str, int]:
        """How many chains are written or removed, and how many rules are written."""
        changes = self.changes.values()
        counts = {
            "chain": sum(len(each.chains) + len(each.gone) for each in changes),
            "rule": sum(len(rules) for each in changes for rules in each.chains.values()),
            "jump": sum(len(each.jumps) + len(each.strays) for each in changes),
        }
        return {kind: count for kind, count in counts.items() if count}


def compare(before: Chains, after: Chains) -> TableChange:
    """Give the chains that differ."""
    chains = {chain: rules for chain, rules in after.items() if before.get(chain) != rules}
    gone = tuple(chain for chain in before if chain not in after)
    return TableChange(chains, gone, growth=_growth(before, chains, gone))


def compare_saved(
    held: SavedTable, after: Chains, jumps: tuple[tuple[str, Rule], ...]
) -> TableChange:
    """Give what of ours differs in a table that was read back.

    A chain that we have no use for, and that somebody else's rule leads to, cannot be removed: it
    is left without rules. KUBE-MARK-MASQ then stays as it is, for others have their connections
    masqueraded by it.
    """
    chains = {
        chain: rules for chain, rules in after.items() if not _holds(held.chains.get(chain), rules)
    }
    in_place = {(hook, rule.text) for hook, rule in jumps}
    missing = tuple(
        (hook, rule) for hook, rule in jumps if rule.text not in held.chains.get(hook, ())
    )
    strays = tuple(
        (hook, text)
        for hook in sorted(held.hooks)
        for text in held.chains[hook]
        if names.is_ours(target(text)) and (hook, text) not in in_place
    )
    unwanted = [chain for chain in held.chains if names.is_ours(chain) and chain not in after]
    if unwanted:
        used = {
            target(text)
            for chain, texts in held.chains.items()
            if not (names.is_ours(chain) or chain in held.hooks)
            for text in texts
        }
        empty = used - {names.MARK_MASQUERADE}
        chains |= {chain: () for chain in unwanted if chain in empty and held.chains[chain]}
        unwanted = [chain for chain in unwanted if chain not in used]
    growth = _growth(held.chains, chains, unwanted)
    growth = Growth(growth.rules + len(missing) - len(strays), growth.chains)
    return TableChange(chains, tuple(unwanted), missing, strays, growth)


def removal(saved: Mapping[str, SavedTable]) -> list[str]:
    """Write what iptables-restore takes all that is ours out with."""
    found = []
    for table, held in saved.items():
        if table in TABLES and (change := compare_saved(held, {}, ())):
            found += [f"*{table}", *change.lines(), "COMMIT"]
    return found


def _growth(before: Mapping[str, Sequence[object]], chains: Chains, gone: Sequence[str]) -> Growth:
    return Growth(
        sum(len(rules) - len(before.get(chain, ())) for chain, rules in chains.items())
        - sum(len(before[chain]) for chain in gone),
        sum(chain not in before for chain in chains) - len(gone),
    )


def _holds(texts: list[str] | None, rules: tuple[Rule, ...]) -> bool:
    if texts is None or len(texts) != len(rules):
        return False
    return all(rule.text == text for rule, text in zip(rules, texts, strict=True))
