"""What iptables-save writes, read: no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import msgspec

Texts = Mapping[str, list[str]]
"""Chains, and the text of their rules behind `-A CHAIN `."""


class SavedTable(msgspec.Struct, frozen=True):
    """One table: its chains, and which of them are the kernel's own."""

    chains: Texts
    hooks: frozenset[str] = frozenset()


EMPTY = SavedTable({})


def parse(saved: str) -> dict[str, SavedTable]:
    """Read all tables, by their name."""
    tables: dict[str, SavedTable] = {}
    name = ""
    chains: dict[str, list[str]] = {}
    hooks: set[str] = set()
    for line in saved.splitlines():
        if line.startswith("-A "):
            _, chain, *text = line.split(" ", 2)
            chains.setdefault(chain, []).append(text[0] if text else "")
        elif line.startswith(":"):
            chain, policy, *_ = line[1:].split()
            chains.setdefault(chain, [])
            if policy != "-":
                hooks.add(chain)
        elif line.startswith("*"):
            name, chains, hooks = line[1:].strip(), {}, set()
        elif line == "COMMIT":
            tables[name] = SavedTable(chains, frozenset(hooks))
    return tables


def target(text: str) -> str:
    """Give the chain that a rule leads to, or the target that it names; empty for neither."""
    words = text.split()
    quoted = False
    for word, behind in pairwise(words):
        if not quoted and word in ("-j", "-g"):
            return behind
        if word.replace('\\"', "").count('"') % 2:
            quoted = not quoted
    return ""
