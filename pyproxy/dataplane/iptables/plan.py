"""A plan of iptables mode: one transaction per table as a value, and its iptables-restore text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.iptables.base_rules import TABLES
from pyproxy.dataplane.iptables.frontend_trees import FrontendTrees
from pyproxy.dataplane.iptables.rules import Chains, Rule
from pyproxy.errors import UsageError
from pyproxy.model.address import Family
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting
from pyproxy.xtables import kube_names
from pyproxy.xtables.saved import UNREAD, SavedTable, target

TableName = tuple[Family, str]


class Growth(msgspec.Struct, frozen=True):
    """How many more rules and chains a table has after a change than before."""

    rules: int = 0
    chains: int = 0

    @property
    def entries(self) -> int:
        """Entries as iptables-legacy counts them: a chain has one before its rules, one behind."""
        # libiptc encodes a chain as an ERROR entry with its name, its rules, and a final RETURN.
        return self.rules + 2 * self.chains


class TableChange(msgspec.Struct, frozen=True):
    """The change of one table.

    `chains` are created or replaced, and those in `created` are created. `deleted` are deleted.
    `jumps` are rules to insert into built-in chains; `stray_jumps` are the texts of rules to delete
    from there. Both name their chain first. `growth` is how much larger the table is afterwards.
    """

    chains: Chains
    deleted: tuple[str, ...] = ()
    jumps: tuple[tuple[str, Rule], ...] = ()
    stray_jumps: tuple[tuple[str, str], ...] = ()
    growth: Growth = Growth()
    created: frozenset[str] = frozenset()

    @property
    def new_chains(self) -> Chains:
        """The chains that the table lacks."""
        return {name: rules for name, rules in self.chains.items() if name in self.created}

    @property
    def old_chains(self) -> Chains:
        """The chains that the table has, with other rules."""
        return {name: rules for name, rules in self.chains.items() if name not in self.created}

    @property
    def changes_built_in(self) -> bool:
        """Whether rules of built-in chains change."""
        return bool(self.jumps or self.stray_jumps)

    def without_created(self) -> TableChange:
        """Return what is left once the chains that the table lacks have been written."""
        return TableChange(self.old_chains, self.deleted, self.jumps, self.stray_jumps)

    def __bool__(self) -> bool:
        return bool(self.chains or self.deleted or self.jumps or self.stray_jumps)

    def script(self, table: str) -> list[str]:
        """Return the lines for iptables-restore --noflush: one transaction."""
        return [f"*{table}", *self.lines(), "COMMIT"]

    def lines(self) -> Iterator[str]:
        """Yield the lines between the table's name and COMMIT.

        Chains come in descending order. iptables-nft keeps the chains that it has read in a list in
        ascending order, and walks it from the beginning for each new one.
        """
        # With --noflush a declaration creates a chain or empties it. Those to delete are emptied as
        # well, so that -X finds no rule in them and no jump to them.
        filled = sorted(self.chains, reverse=True)
        for chain in sorted((*filled, *self.deleted), reverse=True):
            yield f":{chain} - [0:0]"
        for hook, text in self.stray_jumps:
            yield f"-D {hook} {text}"
        for chain in filled:
            for rule in self.chains[chain]:
                yield f"-A {chain} {rule.text}"
        # Each is inserted at the top, so the last one inserted comes first.
        for hook, rule in reversed(self.jumps):
            yield f"-I {hook} {rule.text}"
        # Last, because the kernel deletes no chain that a rule jumps to.
        for chain in self.deleted:
            yield f"-X {chain}"


class IptablesPlan(msgspec.Struct, frozen=True):
    """Changes of tables, and the committed state after them.

    `services` are those that change, None for one that is removed. `trees` are those of the
    families afterwards, and `rules` counts the rules in pyproxy's chains of each table. `node` is
    the node's part if it changes. `full` says that the plan was made from a read-back.
    """

    changes: Mapping[TableName, TableChange]
    services: Mapping[ObjectName, ServiceRouting | None]
    trees: Mapping[Family, FrontendTrees]
    node: NodeRouting | None = None
    full: bool = False
    rules: Mapping[TableName, int] = {}

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Yield the input of iptables-restore and of ip6tables-restore."""
        for family in Family:
            yield from self.script(family)

    def netlink(self) -> Iterator[str]:
        """Raise UsageError: this mode shows its plan as the input of iptables-restore."""
        raise UsageError(
            "--show-netlink: iptables mode shows iptables-restore's input: leave it out"
        )

    def script(self, family: Family) -> list[str]:
        """Return the input of iptables-restore, one transaction per table; empty for no change."""
        return [
            line
            for table in TABLES
            if (change := self.changes.get((family, table)))
            for line in change.script(table)
        ]

    def growth(self) -> Mapping[TableName, Growth]:
        """Return the growth of each table that is written."""
        return {table: change.growth for table, change in self.changes.items() if change}

    def rules_written(self) -> Mapping[TableName, int]:
        """Count the rules written to each table, without those in built-in chains."""
        return {
            table: sum(len(rules) for rules in change.chains.values())
            for table, change in self.changes.items()
        }

    def counts(self) -> Mapping[str, int]:
        """Count the chains written or deleted, the rules written, and the jumps that change."""
        changes = self.changes.values()
        counts = {
            "chain": sum(len(each.chains) + len(each.deleted) for each in changes),
            "rule": sum(len(rules) for each in changes for rules in each.chains.values()),
            "jump": sum(len(each.jumps) + len(each.stray_jumps) for each in changes),
        }
        return {kind: count for kind, count in counts.items() if count}


def diff_chains(before: Chains, after: Chains) -> TableChange:
    """Return the change between two states of the same chains."""
    chains = {chain: rules for chain, rules in after.items() if before.get(chain) != rules}
    deleted = tuple(chain for chain in before if chain not in after)
    created = frozenset(chains.keys() - before.keys())
    return TableChange(chains, deleted, growth=_growth(before, chains, deleted), created=created)


def diff_saved(
    saved: SavedTable, after: Chains, jumps: tuple[tuple[str, Rule], ...]
) -> TableChange:
    """Return the change from a table that was read back to the desired chains and jumps.

    A chain that is not desired but that another program's rule jumps to cannot be deleted: it is
    emptied. KUBE-MARK-MASQ keeps its rule then, because others masquerade through it.
    """
    chains = {
        chain: rules for chain, rules in after.items() if not _equal(saved.chains.get(chain), rules)
    }
    in_place = {(hook, rule.text) for hook, rule in jumps}
    missing = tuple(
        (hook, rule) for hook, rule in jumps if rule.text not in saved.chains.get(hook, ())
    )
    strays = tuple(_strays(saved, in_place))
    unwanted = [
        chain for chain in saved.chains if kube_names.is_iptables_mode(chain) and chain not in after
    ]
    if unwanted:
        used = {
            target(text)
            for chain, texts in saved.chains.items()
            if not kube_names.is_iptables_mode(chain)
            for text in texts
            if (chain, text) not in strays
        }
        emptied = used - {kube_names.MARK_MASQUERADE}
        chains |= {chain: () for chain in unwanted if chain in emptied and saved.chains[chain]}
        unwanted = [chain for chain in unwanted if chain not in used]
    growth = _growth(saved.chains, chains, unwanted)
    growth = Growth(growth.rules + len(missing) - len(strays), growth.chains)
    created = frozenset(chains.keys() - saved.chains.keys())
    return TableChange(chains, tuple(unwanted), missing, strays, growth, created)


def _strays(saved: SavedTable, in_place: Collection[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the jumps in built-in chains that are to be deleted, a duplicate as often as it is.

    Jumps that differ may be older versions' or kube-proxy's. Other programs jump to KUBE-MARK-MASQ.
    """
    for hook in sorted(saved.hooks):
        found: set[str] = set()
        for text in saved.chains[hook]:
            if target(text) not in kube_names.ENTRIES or text.startswith(UNREAD):
                continue
            if (hook, text) not in in_place or text in found:
                yield hook, text
            found.add(text)


def _growth(
    before: Mapping[str, Sequence[object]], chains: Chains, deleted: Sequence[str]
) -> Growth:
    return Growth(
        sum(len(rules) - len(before.get(chain, ())) for chain, rules in chains.items())
        - sum(len(before[chain]) for chain in deleted),
        sum(chain not in before for chain in chains) - len(deleted),
    )


def _equal(texts: list[str] | None, rules: tuple[Rule, ...]) -> bool:
    if texts is None or len(texts) != len(rules):
        return False
    return all(rule.text == text for rule, text in zip(rules, texts, strict=True))
