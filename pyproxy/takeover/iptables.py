"""What of an iptables table is kube-proxy's, and the text that takes it out: no I/O.

A chain that somebody else's rule jumps to cannot be deleted. KUBE-MARK-MASQ then stays as it is,
for others use it to have connections masqueraded, and the mark that it sets is read by pyproxy too.
Any other chain is emptied and stays, so that the jump does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import msgspec

from pyproxy.takeover import names

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_JUMPS = ("-j", "-g")
_POLICY_OF_USER_CHAINS = "-"
_PYPROXYS_JUMP = "! --ctstate DNAT"
"""What kube-proxy's rules in the built-in chains never have."""

Owns = Callable[[str, str], bool]
"""Tells of a table and a chain whether the chain is to go."""


class Rule(msgspec.Struct, frozen=True):
    """A rule: `text` is what iptables-save writes behind the chain, `target` empty for none."""

    chain: str
    text: str
    target: str


class SavedTable(msgspec.Struct, frozen=True):
    """One table of iptables-save's output; `policies` are the built-in chains' policies."""

    name: str
    policies: dict[str, str]
    chains: frozenset[str]
    rules: tuple[Rule, ...]


class TableRemoval(msgspec.Struct, frozen=True):
    """What is to go from one table.

    `chains` are deleted; `emptied` are those that others jump to; `closed` are the built-in chains
    that drop by policy what a jump to kube-proxy's chains has let through so far.
    """

    table: str
    jumps: tuple[Rule, ...] = ()
    chains: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.jumps or self.chains or self.emptied)

    def script(self) -> str:
        """Write what iptables-restore --noflush takes it out with, in one transaction."""
        return "\n".join(
            [
                f"*{self.table}",
                # Naming a chain like this empties it, whatever the order of the jumps among them.
                *(f":{chain} - [0:0]" for chain in (*self.chains, *self.emptied)),
                *(f"-D {rule.chain} {rule.text}" for rule in self.jumps),
                *(f"-X {chain}" for chain in self.chains),
                "COMMIT",
                "",
            ]
        )

    def lines(self) -> Iterator[str]:
        """Say what is to go, for people."""
        yield from (f"rule -A {rule.chain} {rule.text}" for rule in self.jumps)
        yield from (f"chain {chain}" for chain in self.chains)
        yield from (f"the rules of chain {chain}" for chain in self.emptied)


def parse(saved: str) -> tuple[SavedTable, ...]:
    """Read what iptables-save wrote."""
    found: list[SavedTable] = []
    table = ""
    policies: dict[str, str] = {}
    chains: list[str] = []
    rules: list[Rule] = []
    for line in saved.splitlines():
        if line.startswith("*"):
            table, policies, chains, rules = line[1:].strip(), {}, [], []
        elif line.startswith(":"):
            chain, policy, *_ = line[1:].split()
            chains.append(chain)
            if policy != _POLICY_OF_USER_CHAINS:
                policies[chain] = policy
        elif line.startswith("-A "):
            _, chain, text = line.split(" ", 2) if line.count(" ") > 1 else (*line.split(), "")
            rules.append(Rule(chain, text, _target(text)))
        elif line == "COMMIT":
            found.append(SavedTable(table, policies, frozenset(chains), tuple(rules)))
    return tuple(found)


def removal(saved: SavedTable, owns: Owns = names.owns_chain) -> TableRemoval:
    """Work out what is to go from a table, which is all that is kube-proxy's if nobody says so."""
    owned = {chain for chain in saved.chains if owns(saved.name, chain)}
    jumps = tuple(rule for rule in saved.rules if _is_jump(rule, saved, owns))
    # Only others' rules are left once kube-proxy's chains are empty and its jumps are gone.
    others = (r for r in saved.rules if r.chain not in owned and r not in jumps)
    used = {rule.target for rule in others}
    filled = {rule.chain for rule in saved.rules}
    return TableRemoval(
        saved.name,
        jumps,
        tuple(sorted(owned - used)),
        tuple(sorted(owned & used & filled - {names.MARK_CHAIN})),
        tuple(sorted({rule.chain for rule in jumps if saved.policies[rule.chain] == "DROP"})),
    )


def own_removals(tables: Sequence[SavedTable]) -> tuple[TableRemoval, ...]:
    """Work out what of one program's tables pyproxy's own iptables mode has left.

    That is all of kube-proxy's names too, unless kube-proxy has come back to them since.
    """
    chains = {(table.name, chain) for table in tables for chain in table.chains}
    if not any(names.is_pyproxys(*each) for each in chains):
        return ()
    is_back = any(rule.target == names.NODE_PORTS for table in tables for rule in table.rules)
    owns = names.is_pyproxys if is_back else names.owns_chain
    return tuple(found for table in tables if (found := removal(table, owns)))


def _is_jump(rule: Rule, saved: SavedTable, owns: Owns) -> bool:
    if rule.chain not in saved.policies or rule.target not in names.ENTRIES:
        return False
    of_pyproxy = owns is names.is_pyproxys and _PYPROXYS_JUMP in rule.text
    return of_pyproxy or owns(saved.name, rule.target)


def _target(text: str) -> str:
    words = _QUOTED.sub('""', text).split()
    for before, word, behind in zip(["", *words], words, words[1:], strict=False):
        if word in _JUMPS and before != "--comment":
            return behind
    return ""
