"""The base rules of a table as a value: text for nft, and what the kernel made of that text.

The text depends on the configuration alone. nft compiles it and the kernel adds defaults, so a
dump cannot be compared with the text, only with an earlier dump. Two empty chains keep what a
restarted agent needs for that: `ruleset-<digest of the text>` is part of the text, and
`loaded-<digest of the dump>` is written right after loading.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from pyproxy.dataplane.nft.schema import PODS, Kinds
from pyproxy.model.address import Family, Mark
from pyproxy.netlink import nftables, rules
from pyproxy.netlink.nfnetlink import Message

MARKER = "ruleset-"
_SEAL = "loaded-"
_MARKED = re.compile(f"{MARKER}[0-9a-f]+")
_EMPTY = re.compile(f"({_SEAL}|{MARKER})[0-9a-f]+")

REFUSE = (
    # A reset has the addresses of the packet that it replies to, and br_netfilter sends it past the
    # nat hooks. So a translated packet gets back the destination that its client asked for.
    *(
        f"ct status dnat meta l4proto tcp {ip} daddr set ct original {ip} daddr "
        "tcp dport set ct original proto-dst"
        for ip in ("ip", "ip6")
    ),
    # TCP drops an ICMP error that arrives while connect() sends its SYN, as it does on one machine.
    # The client would notice the rejection one second later only.
    "meta l4proto tcp reject with tcp reset",
    "reject",
)
"""The rules of the chain that rejects. It is called at the hooks input, forward and output."""


class TrafficOptions(msgspec.Struct, frozen=True):
    """The part of the configuration that both modes' base rules depend on.

    `mark` is the packet mark bit for masquerading. A packet is from a pod if its input interface is
    `pod_interface` (a name, or a prefix ending in `*`). Without `pod_interface` it is from a pod if
    its source is in the set of pod networks; `pod_families` are the families of those networks. In
    a family that has neither, the packet's origin does not matter to masquerading.
    """

    mark: Mark = Mark(1 << 14)
    masquerade_all: bool = False
    pod_interface: str = ""
    pod_families: frozenset[Family] = frozenset()

    def set_mark(self) -> str:
        """Return the statement that marks a packet for masquerading."""
        # CNI plugins and policy routing use other bits of the mark, which must keep their values.
        return f"meta mark set meta mark | {self.mark:#010x}"

    def from_pods(self, family: Family, *, negate: bool = False) -> str:
        """Return the match for packets from pods, or not from pods; empty if that is unknown."""
        if self.pod_interface:
            return f'iifname {"!= " * negate}"{self.pod_interface}"'
        if family in self.pod_families:
            return PODS.lookup(family, negate=negate)
        return ""


class Layout(msgspec.Struct, frozen=True):
    """A table without its elements: chains with their hooks, rules by chain, and sets.

    `flagged` is whether it has a flag, such as dormant, with which no hook calls its chains.
    """

    chains: dict[str, bytes]
    rules: dict[str, list[bytes]]
    sets: dict[str, bytes]
    flagged: bool = False


class Names(msgspec.Struct, frozen=True):
    """Names of chains and of sets in a table."""

    chains: list[str]
    sets: list[str]

    def __bool__(self) -> bool:
        return bool(self.chains or self.sets)

    def __str__(self) -> str:
        return ", ".join([*self.chains, *self.sets])


def _never(_: str) -> bool:
    return False


class BaseRules(msgspec.Struct, frozen=True):
    """The rules of one table that do not depend on Services, and the sets that they look up.

    `hooks` are the chains that are registered at a hook, and `chains` the rules of every chain.
    `is_on_demand` recognizes the chains that the dataplane adds when a frontend needs them, and
    `version` is a digest of those. The elements of the sets in `counted` count packets.
    """

    table: str
    title: str
    kinds: Kinds
    hooks: Mapping[str, str]
    chains: Mapping[str, Sequence[str]]
    counted: Collection[str] = ()
    is_on_demand: Callable[[str], bool] = _never
    version: str = ""

    def text(self, present: Iterable[str] = ()) -> str:
        """Return the commands that load the rules in one transaction and keep all elements.

        `present` are the chains that the table has now.
        """
        marker = self.marker()
        stale = [name for name in present if _MARKED.fullmatch(name) and name != marker]
        return "\n".join(
            [
                # Declaring an existing set or chain changes nothing, so sets keep their elements.
                *self._declarations([*self.chains, marker]),
                # Flushed and not deleted, because verdicts of elements refer to some of them.
                *(f"flush chain inet {self.table} {name}" for name in self.chains),
                # In the transaction that replaces the rules, so a marker never names older rules.
                *(f"delete chain inet {self.table} {name}" for name in stale),
                *self._rules(self.chains),
            ]
        )

    def additions(self, layout: Layout) -> str:
        """Return the commands that add the missing sets, and the missing chains without a hook.

        No packet reaches an added chain before the rules of `text` or an element lead to it. All
        sets are declared, because nft 1.0.6 finds the types of sets only in the same input.
        """
        chains = {name: rules for name, rules in self.chains.items() if name not in self.hooks}
        missing = {name: chains[name] for name in self.missing(layout).chains}
        return "\n".join([*self._declarations(chains), *self._rules(missing)])

    def missing(self, layout: Layout) -> Names:
        """Return the chains without a hook, and the sets, that the table lacks."""
        chains = [n for n in self.chains if n not in self.hooks and n not in layout.chains]
        return Names(chains, sorted(self.kinds.keys() - layout.sets.keys()))

    def marker(self) -> str:
        """Return the name of the empty chain that identifies this text."""
        lines = (*self._declarations(self.chains), *self._rules(self.chains), self.version)
        text = "\n".join(lines)
        return MARKER + hashlib.sha256(text.encode()).hexdigest()[:12]

    def is_base_chain(self, name: str) -> bool:
        """Return whether a chain is neither made on demand nor an empty marker."""
        return not (self.is_on_demand(name) or _EMPTY.fullmatch(name))

    def is_loaded(self, layout: Layout) -> bool:
        """Return whether the kernel has exactly these rules, unchanged since they were loaded."""
        # The marker identifies the text that was loaded, and the seal shows any change since.
        sealed = {self.marker(), self.seal(layout)} <= layout.chains.keys()
        return sealed and not layout.flagged

    def seal(self, layout: Layout) -> str:
        """Return the name of the chain that identifies what the kernel holds."""
        # Rules of the text must have no counters, since a dump contains their present values.
        digest = hashlib.sha256()
        for name, hook in sorted(layout.chains.items()):
            # Services add on-demand chains at any time, and the seal is a chain itself.
            if self.is_base_chain(name):
                digest.update(repr((name, hook, layout.rules.get(name, []))).encode())
        for name in sorted(layout.sets.keys() & self.kinds.keys()):
            digest.update(repr((name, layout.sets[name])).encode())
        return _SEAL + digest.hexdigest()[:12]

    def strays(self, layout: Layout) -> Names:
        """Return the chains and sets that are not of this version."""
        chains = [n for n in layout.chains if self.is_base_chain(n) and n not in self.chains]
        # Anonymous sets (__set0) belong to a rule and go with it.
        sets = [name for name in layout.sets.keys() - self.kinds.keys() if name[:2] != "__"]
        return Names(chains, sorted(sets))

    def removal(self, strays: Names) -> list[Message]:
        """Return the messages that delete strays, each after what may refer to it."""
        return [
            # EBUSY is the kernel's error for a set or chain that a rule or an element still uses.
            *(rules.flush(self.table, name) for name in strays.chains),
            *(nftables.delete_set(self.table, name) for name in strays.sets),
            *(nftables.delete_chain(self.table, name) for name in strays.chains),
        ]

    def sealing(self, layout: Layout) -> list[Message]:
        """Return the messages that write the seal in place of older ones."""
        seal = self.seal(layout)
        stale = (name for name in layout.chains if name.startswith(_SEAL) and name != seal)
        return [
            *(nftables.delete_chain(self.table, name) for name in stale),
            rules.new_chain(self.table, seal),
        ]

    def differences(self, held: Layout, wanted: Layout) -> Iterator[str]:
        """Name each base chain, rule and set in which `held` differs from `wanted`."""
        if held.flagged and not wanted.flagged:
            yield f"clear the flags of table inet {self.table}, such as dormant"
        present = {name for name in held.chains if self.is_base_chain(name)}
        ours = {name for name in wanted.chains if self.is_base_chain(name)}
        for name in sorted(ours - present):
            yield f"add chain {name}"
        for name in sorted(present - ours):
            yield f"delete chain {name}"
        for name in sorted(present & ours):
            if held.chains[name] != wanted.chains[name]:
                yield f"replace chain {name}: its hook, priority or policy differs"
            yield from _rule_differences(name, held.rules.get(name, []), wanted.rules.get(name, []))
        for name in sorted(wanted.sets.keys() - held.sets.keys()):
            yield f"add set {name}"
        for name in sorted(wanted.sets.keys() & held.sets.keys()):
            if held.sets[name] != wanted.sets[name]:
                yield f"replace set {name}: its type differs"

    def _declarations(self, chains: Iterable[str]) -> Iterator[str]:
        yield f"table inet {self.table} {{"
        yield f'\tcomment "{self.title}"'
        for name, (kind, family) in self.kinds.items():
            yield kind.declaration(family, counts=name in self.counted)
        for name in chains:
            yield f"\tchain {name} {{ {self.hooks.get(name, '')} }}"
        yield "}"

    def _rules(self, chains: Mapping[str, Sequence[str]]) -> Iterator[str]:
        yield f"table inet {self.table} {{"
        for name, found in chains.items():
            yield f"\tchain {name} {{"
            yield from (f"\t\t{rule}" for rule in found)
            yield "\t}"
        yield "}"


def _rule_differences(chain: str, held: list[bytes], wanted: list[bytes]) -> Iterator[str]:
    # Compared by their expressions: the kernel gives a rule another handle at each load.
    for number, rule in enumerate(wanted, 1):
        if rule not in held:
            yield f"add rule {number} of chain {chain}"
    for number, rule in enumerate(held, 1):
        if rule not in wanted:
            yield f"delete rule {number} of chain {chain}, as it is now"
    if held != wanted and set(held) == set(wanted):
        yield f"replace the rules of chain {chain}: their order or number differs"
