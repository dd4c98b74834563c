"""A tree of chains that leads a packet to its frontend: how many there are makes it deeper, barely.

Frontends are sorted by address, protocol and port, as one number. A chain tells the numbers that it
is for apart by the first two bits in which they differ: a rule for each of up to four values, which
goes to a chain of its own, and for the last value the rules themselves. Where few are left, they
are simply listed. What has most rules before it is told apart first. So a packet meets about three
rules for two bits at worst, and goes through one chain for two bits at most: that matters, for the
kernel's nf_tables allows 16 jumps in a row. Frontends that no such tree could tell apart are listed
after that. The last that are told apart, near the leaves, are so by one bit at a time: that is
a rule less, for another chain.

A rule tests all that the frontends of its branch have in common, so a packet to somewhere else
falls through after a few. What a branch is called and what it holds depends on its own frontends
alone, so one that comes or goes touches the chains on its way and no others.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from pyproxy.dataplane.iptables import names
from pyproxy.dataplane.iptables.rules import Jump, Rule
from pyproxy.model.address import Address, Family, Network, Port, Protocol

FEW = 4
"""Frontends that are listed, and no longer told apart."""

NEAR = 16
"""Frontends that are told apart by one bit at a time."""

DEEPEST = 10
"""Chains of a tree that a packet goes through at most. With nf_tables' limit of 16, that leaves
those before the tree, and those behind it: KUBE-EXT, KUBE-SVC, a group of endpoints, KUBE-SEP."""

_PORT_BITS = 16
_PROTOCOL_BITS = 2
_BEHIND = _PORT_BITS + _PROTOCOL_BITS
_STEP = 2
_CODES = {Protocol.TCP: 0, Protocol.UDP: 1, Protocol.SCTP: 2}
_PROTOCOLS = {code: protocol for protocol, code in _CODES.items()}

Leaves = Mapping[int, Rule]
"""The rule of each frontend, by its number."""


def number(address: Address, protocol: Protocol = Protocol.TCP, port: Port = Port(0)) -> int:  # noqa: B008
    """Give the number of a frontend, in whose order the tree is built."""
    return int.from_bytes(address, "big") << _BEHIND | _CODES[protocol] << _PORT_BITS | port


class Tree:
    """Makes the chains of one tree: `root` is the chain that packets enter by."""

    def __init__(self, family: Family, root: str, prefix: str) -> None:
        self.root = root
        self._family = family
        self._prefix = prefix
        self._width = family.bits + _BEHIND

    def chains(self, leaves: Leaves) -> dict[str, tuple[Rule, ...]]:
        """Build the tree."""
        found: dict[str, tuple[Rule, ...]] = {}
        _, rules = self._grow(sorted(leaves), leaves, found, DEEPEST)
        found[self.root] = tuple(rules)
        return found

    def _grow(
        self,
        numbers: Sequence[int],
        leaves: Leaves,
        found: dict[str, tuple[Rule, ...]],
        below: int,
    ) -> tuple[int, list[Rule]]:
        """Give the rules of a chain for these, and how many a packet meets from there at most.

        There may be chains to go through `below` it, so many at most.
        """
        if len(numbers) <= FEW or not below:
            return len(numbers), [leaves[each] for each in numbers]
        parts = [
            (part, *self._grow(part, leaves, found, below - 1)) for part in self._parts(numbers)
        ]
        # Whoever has the longest way before it is told apart first.
        *others, last = sorted(parts, key=lambda part: len(part[0]) > 1 and part[1], reverse=True)
        rules: list[Rule] = []
        most = 0
        for part, cost, behind in others:
            if len(part) == 1:
                rules += behind
                continue
            branch, test = self._branch(part)
            found[branch] = tuple(behind)
            rules.append(test)
            most = max(most, len(rules) + cost)
        _, cost, behind = last
        return max(most, len(rules) + cost), [*rules, *behind]

    def _parts(self, numbers: Sequence[int]) -> list[Sequence[int]]:
        """Divide numbers by the next bits; there are at least two parts."""
        step = 1 if len(numbers) <= NEAR else _STEP
        left = self._width - self._end(self._common(numbers), step)
        cuts = [0]
        while numbers[cuts[-1]] >> left != numbers[-1] >> left:
            above = (numbers[cuts[-1]] >> left) + 1
            cuts.append(bisect_left(numbers, above << left, cuts[-1]))
        return [numbers[low:high] for low, high in zip(cuts, [*cuts[1:], None], strict=True)]

    def _end(self, common: int, step: int) -> int:
        """Say up to which bit numbers are told apart that have their first `common` in common.

        A rule tests a protocol whole or not at all, so its bits are taken alone and together.
        """
        bits = self._family.bits
        if common < bits:
            return min(common + step, bits)
        return max(bits + _PROTOCOL_BITS, min(common + step, self._width))

    def _common(self, numbers: Sequence[int]) -> int:
        common = self._width - (numbers[0] ^ numbers[-1]).bit_length()
        inside = self._family.bits < common < self._family.bits + _PROTOCOL_BITS
        return self._family.bits if inside else common

    def _branch(self, numbers: Sequence[int]) -> tuple[str, Rule]:
        common = self._common(numbers)
        size = self._family.bits // 8
        bits = min(common, self._family.bits)
        high = numbers[0] >> _BEHIND
        base = high >> (self._family.bits - bits) << (self._family.bits - bits)
        network = Network(Address(base.to_bytes(size, "big")), bits)
        if common <= self._family.bits:
            name = names.branch(self._prefix, network)
            return name, Rule(destination=network, target=Jump(name, returns=False))
        protocol = _PROTOCOLS[numbers[0] >> _PORT_BITS & 3]
        span = 1 << (self._width - common)
        low = (numbers[0] & 0xFFFF) & ~(span - 1)
        ports = range(low, low + span)
        name = names.port_branch(self._prefix, network.address, protocol, ports)
        return name, Rule(
            destination=network,
            protocol=protocol,
            ports=(low, low + span - 1) if span < 1 << _PORT_BITS else None,
            target=Jump(name, returns=False),
        )
