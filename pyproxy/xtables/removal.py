"""The removal of kube-proxy's and pyproxy's chains from one iptables table, as a value: no I/O.

A chain that another program's rule jumps to cannot be deleted. KUBE-MARK-MASQ then stays as it is:
other programs have connections masqueraded through it, and its mark is one that pyproxy reads too.
Any other such chain is emptied and stays, so that the jump has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

from pyproxy.xtables import kube_names
from pyproxy.xtables.saved import UNREAD, SavedTable, target

_PYPROXY_MATCH = "! --ctstate DNAT"
"""kube-proxy's rules in the built-in chains never have it; pyproxy's jumps in filter do."""

Owns = Callable[[str, str], bool]
"""Returns whether a chain, given its table and its name, is to be removed."""


class TableRemoval(msgspec.Struct, frozen=True):
    """The removal from one table.

    `jumps` are rules in built-in chains, each with its chain. `chains` are deleted; `emptied` are
    those that other programs' rules jump to. `closed` are the built-in chains with policy DROP that
    no longer accept what a jump to kube-proxy's chains accepted.
    """

    table: str
    jumps: tuple[tuple[str, str], ...] = ()
    chains: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.jumps or self.chains or self.emptied)

    def script(self) -> list[str]:
        """Return the lines for iptables-restore --noflush: one transaction."""
        return [
            f"*{self.table}",
            # Declaring a chain empties it, so the order of jumps among the chains is irrelevant.
            *(f":{chain} - [0:0]" for chain in (*self.chains, *self.emptied)),
            # -D removes one rule with this text, so each duplicate of a rule has its own -D.
            *(f"-D {chain} {text}" for chain, text in self.jumps),
            *(f"-X {chain}" for chain in self.chains),
            "COMMIT",
        ]

    def lines(self) -> Iterator[str]:
        """Yield a line for each object that is removed, for people."""
        yield from (f"rule -A {chain} {text}" for chain, text in self.jumps)
        yield from (f"chain {chain}" for chain in self.chains)
        yield from (f"the rules of chain {chain}" for chain in self.emptied)


def plan_removal(table: str, saved: SavedTable, owns: Owns = kube_names.is_owned) -> TableRemoval:
    """Return what is removed from a table: by default all that is kube-proxy's or pyproxy's."""
    owned = {chain for chain in saved.chains if owns(table, chain)}
    jumps = tuple(
        (chain, text)
        for chain in saved.hooks
        for text in saved.chains[chain]
        if _is_jump(table, text, owns)
    )
    # Rules that remain once the owned chains are empty and the jumps to them are gone.
    removed = set(jumps)
    used = {
        target(text)
        for chain, texts in saved.chains.items()
        if chain not in owned
        for text in texts
        if (chain, text) not in removed
    }
    filled = {chain for chain, texts in saved.chains.items() if texts}
    return TableRemoval(
        table,
        jumps,
        tuple(sorted(owned - used)),
        tuple(sorted(owned & used & filled - {kube_names.MARK_MASQUERADE})),
        tuple(sorted({chain for chain, _ in jumps if saved.policies[chain] == "DROP"})),
    )


def plan_own_removal(tables: Mapping[str, SavedTable]) -> tuple[TableRemoval, ...]:
    """Return what pyproxy's own iptables mode has left in one program's tables.

    That includes the chains that have kube-proxy's names, unless kube-proxy has written them since.
    """
    if not any(
        kube_names.is_pyproxy(name, chain)
        for name, table in tables.items()
        for chain in table.chains
    ):
        return ()
    rules = (text for table in tables.values() for texts in table.chains.values() for text in texts)
    # A rule of kube-proxy's that jumps to KUBE-NODEPORTS shows that kube-proxy has written since.
    is_back = any(
        kube_names.NODE_PORTS in text and target(text) == kube_names.NODE_PORTS for text in rules
    )
    owns = kube_names.is_pyproxy if is_back else kube_names.is_owned
    found = (plan_removal(name, table, owns) for name, table in tables.items())
    return tuple(each for each in found if each)


def _is_jump(table: str, text: str, owns: Owns) -> bool:
    chain = target(text)
    if chain not in kube_names.ENTRIES or text.startswith(UNREAD):
        return False
    is_pyproxys = owns is kube_names.is_pyproxy and _PYPROXY_MATCH in text
    return is_pyproxys or owns(table, chain)
