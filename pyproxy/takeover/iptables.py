"""What of an iptables table is kube-proxy's, and the text that takes it out: no I/O.

A chain that somebody else's rule jumps to cannot be deleted. KUBE-MARK-MASQ then stays as it is,
for others use it to have connections masqueraded, and the mark that it sets is read by pyproxy too.
Any other chain is emptied and stays, so that the jump does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from pyproxy.takeover import names

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_JUMPS = ("-j", "-g")
_POLICY_OF_USER_CHAINS = "-"


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


def removal(saved: SavedTable) -> TableRemoval:
    """Work out what of a table is kube-proxy's."""
    owned = {chain for chain in saved.chains if names.owns_chain(saved.name, chain)}
    jumps = tuple(rule for rule in saved.rules if _is_jump(rule, saved))
    # Only others' rules are left once kube-proxy's chains are empty and its jumps are gone.
    others = (r for r in saved.rules if r.chain not in owned and not _is_jump(r, saved))
    used = {rule.target for rule in others}
    filled = {rule.chain for rule in saved.rules}
    return TableRemoval(
        saved.name,
        jumps,
        tuple(sorted(owned - used)),
        tuple(sorted(owned & used & filled - {names.MARK_CHAIN})),
        tuple(sorted({rule.chain for rule in jumps if saved.policies[rule.chain] == "DROP"})),
    )


def _is_jump(rule: Rule, saved: SavedTable) -> bool:
    return (
        rule.chain in saved.policies
        and rule.target in names.ENTRIES
        and names.owns_chain(saved.name, rule.target)
    )


def _target(text: str) -> str:
    words = _QUOTED.sub('""', text).split()
    for before, word, behind in zip(["", *words], words, words[1:], strict=False):
        if word in _JUMPS and before != "--comment":
            return behind
    return ""
