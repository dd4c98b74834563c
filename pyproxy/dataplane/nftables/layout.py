"""Whether the table's chains, rules and sets are those that we loaded.

What they should be is text that nft compiles, and the kernel adds to what it is given, so there is
nothing to compare a dump with but an earlier dump. Right after loading, a digest of what has become
of it is kept as the name of an empty chain, where the next start of the agent finds it.
"""

from __future__ import annotations

import hashlib
import re

import msgspec

from pyproxy.dataplane.nftables import chains, ruleset, schema
from pyproxy.dataplane.nftables.ruleset import Options
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.netlink import nftables, rules
from pyproxy.netlink.nfnetlink import Message, Nfnetlink

_SEAL = "loaded-"
_EMPTY = re.compile(f"({_SEAL}|{ruleset.MARKER})[0-9a-f]+")


class Strays(msgspec.Struct, frozen=True):
    """Chains and sets that stand in our table and that nothing of ours uses."""

    chains: list[str]
    sets: list[str]

    def __bool__(self) -> bool:
        return bool(self.chains or self.sets)

    def __str__(self) -> str:
        return ", ".join([*self.chains, *self.sets])

    def removal(self) -> list[Message]:
        """Delete them, each after what may need it."""
        return [
            *(rules.flush(TABLE, name) for name in self.chains),
            *(nftables.delete_set(TABLE, name) for name in self.sets),
            *(nftables.delete_chain(TABLE, name) for name in self.chains),
        ]


class Layout(msgspec.Struct, frozen=True):
    """A table without its elements: chains with their hooks, rules by chain, and sets."""

    chains: dict[str, bytes]
    rules: dict[str, list[bytes]]
    sets: dict[str, bytes]

    def is_loaded(self, options: Options) -> bool:
        """Tell whether the fixed part is the one that belongs to these options, untouched."""
        return {ruleset.marker(options), self.seal()} <= self.chains.keys()

    def seal(self) -> str:
        """Name the chain that says what the fixed part was right after it was loaded."""
        digest = hashlib.sha256()
        for name, hook in sorted(self.chains.items()):
            if is_fixed(name):
                digest.update(repr((name, hook, self.rules.get(name, []))).encode())
        for name in sorted(self.sets.keys() & schema.BY_NAME.keys()):
            digest.update(repr((name, self.sets[name])).encode())
        return _SEAL + digest.hexdigest()[:12]

    def whole_chains(self) -> set[str]:
        """Name the chains, of those made when needed, that have all their rules."""
        return {
            name
            for name in self.chains
            if chains.is_made_when_needed(name)
            and len(self.rules.get(name, ())) == chains.rule_count(name)
        }

    def strays(self) -> Strays:
        """Find the chains and sets that are not ours; an older version may have left them."""
        ours = ruleset.chain_names()
        foreign = [name for name in self.chains if is_fixed(name) and name not in ours]
        # Sets without a name of their own belong to a rule, and go with it.
        sets = [name for name in self.sets.keys() - schema.BY_NAME.keys() if name[:2] != "__"]
        return Strays(foreign, sorted(sets))

    def sealing(self) -> list[Message]:
        """Write the seal, in place of any older one."""
        seal = self.seal()
        stale = (name for name in self.chains if name.startswith(_SEAL) and name != seal)
        return [
            *(nftables.delete_chain(TABLE, name) for name in stale),
            rules.new_chain(TABLE, seal),
        ]


def read_layout(netlink: Nfnetlink) -> Layout:
    """Read chains, rules and sets; all empty where there is no table. Raises KernelError."""
    found = nftables.read_chains(netlink.dump(nftables.get_chains()), TABLE)
    if not found:
        return Layout({}, {}, {})
    return Layout(
        found,
        nftables.read_rules(netlink.dump(nftables.get_rules(TABLE))),
        nftables.read_sets(netlink.dump(nftables.get_sets(TABLE))),
    )


def is_fixed(name: str) -> bool:
    """Tell the chains that are loaded once from those made when needed, and from markers."""
    return not (chains.is_made_when_needed(name) or _EMPTY.fullmatch(name))
