"""The text that iptables-save writes, parsed: no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from itertools import pairwise

import msgspec

HOOKS = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
"""The names of built-in chains, in any table."""

UNREAD = "[nft] "
"""Begins the text of a rule that iptables cannot print; only its verdict or jump follows, if any.

Such a rule cannot be named to iptables-restore, so it is never deleted.
"""

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_NO_POLICY = "-"
"""The policy that iptables-save prints for a chain that is not built in."""


class SavedTable(msgspec.Struct, frozen=True):
    """One table: the rules of each chain, as their text behind `-A CHAIN `.

    `policies` are those of the built-in chains: ACCEPT or DROP.
    """

    chains: Mapping[str, list[str]]
    policies: Mapping[str, str] = {}

    @property
    def hooks(self) -> Set[str]:
        """The built-in chains."""
        return self.policies.keys()


EMPTY = SavedTable({})

CountedRule = tuple[int, str]
"""A rule's packets, and its text behind `-A CHAIN `."""


def parse(saved: str) -> dict[str, SavedTable]:
    """Return all tables of iptables-save's output, by name."""
    tables: dict[str, SavedTable] = {}
    name = ""
    chains: dict[str, list[str]] = {}
    policies: dict[str, str] = {}
    # A node with 10,000 Services has 130,000 lines of rules: they are tested for first.
    # splitlines would also split at other characters, such as U+2028, which comments may have.
    for line in saved.split("\n"):
        if line.startswith("-A "):
            _, chain, *text = line.split(" ", 2)
            chains.setdefault(chain, []).append(text[0] if text else "")
        elif line.startswith(":"):
            chain, policy, *_ = line[1:].split()
            chains.setdefault(chain, [])
            if policy != _NO_POLICY:
                policies[chain] = policy
        elif line.startswith("*"):
            name, chains, policies = line[1:].strip(), {}, {}
        elif line == "COMMIT":
            tables[name] = SavedTable(chains, policies)
    return tables


def parse_counters(saved: str) -> dict[str, list[CountedRule]]:
    """Return the rules of one table by chain, from the output of iptables-save -c."""
    chains: dict[str, list[CountedRule]] = {}
    for line in saved.split("\n"):
        # [packets:bytes] -A CHAIN TEXT
        if line.startswith("["):
            counters, _, chain, *text = line.split(" ", 3)
            packets = int(counters[1 : counters.index(":")])
            chains.setdefault(chain, []).append((packets, text[0] if text else ""))
    return chains


def target(text: str) -> str:
    """Return the chain or the target that a rule jumps or goes to; empty if it has neither."""
    if '"' in text:
        # A comment may contain anything, such as " -j ACCEPT".
        text = _QUOTED.sub('""', text)
    before = ""
    for word, behind in pairwise(text.split()):
        # iptables-save quotes a comment only if it has to.
        if word in ("-j", "-g") and before != "--comment":
            return behind
        before = word
    return ""
