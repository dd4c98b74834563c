"""A tree of chains that leads a packet to its frontend, in a number of rules that grows slowly.

Frontends are sorted by address, protocol and port, as one number. A chain distinguishes its
numbers by the first two bits in which they differ. It has a rule for each of up to four values:
each goes to a chain of its own, except the last value, whose rules follow in the same chain. A few
remaining frontends are listed. The branch with the most rules below it comes first. So a packet
meets at most about three rules, and enters at most one chain, for two bits. The number of chains
matters because nf_tables allows 16 nested jumps. At that depth, frontends are listed, however many.
Near the leaves one bit at a time is distinguished, which saves a rule at the cost of a chain.

A rule tests everything that the frontends of its branch have in common, so a packet to another
address leaves the tree after a few rules. The name and the content of a branch depend on its own
frontends only. A frontend that is added or removed changes the chains on its path and no others.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from pyproxy.dataplane.iptables import chain_names
from pyproxy.dataplane.iptables.rules import Jump, Rule
from pyproxy.model.address import Address, Family, Network, Port, Protocol

FEW = 4
"""Frontends that are listed in one chain."""

NEAR = 16
"""Frontends below which one bit at a time is distinguished."""

DEEPEST = 10
"""Chains of a tree on a packet's path at most. nf_tables' limit of 16 then leaves room for those
before the tree, and for those behind it: KUBE-EXT, KUBE-SVC, a group of endpoints, KUBE-SEP."""

NODE_ADDRESSES_DEEPEST, NODE_PORTS_DEEPEST = 3, 6
"""The same for the trees of the node's addresses and of node ports, one of which leads to the other
and which a packet enters one chain deeper."""

_PORT_BITS = 16
_PROTOCOL_BITS = 2
_BEHIND = _PORT_BITS + _PROTOCOL_BITS
_STEP = 2
_CODES = {Protocol.TCP: 0, Protocol.UDP: 1, Protocol.SCTP: 2}
_PROTOCOLS = {code: protocol for protocol, code in _CODES.items()}

ANYWHERE = {family: Address(bytes(family.bits // 8)) for family in Family}
"""The address in the number of a node port."""

Leaves = Mapping[int, Rule]
"""The rule of each frontend, by its number."""


def number(address: Address, protocol: Protocol = Protocol.TCP, port: Port = Port(0)) -> int:  # noqa: B008
    """Return the number of a frontend, by which the tree is sorted."""
    return int.from_bytes(address, "big") << _BEHIND | _CODES[protocol] << _PORT_BITS | port


class Tree:
    """Builds the chains of one tree; packets enter it at the chain `root`.

    At most `deepest` nested chains follow the root. With `anywhere` the frontends have no address
    (ANYWHERE), and no rule tests it.
    """

    def __init__(
        self,
        family: Family,
        root: str,
        prefix: str,
        deepest: int = DEEPEST,
        *,
        anywhere: bool = False,
    ) -> None:
        self.root = root
        self._family = family
        self.prefix = prefix
        self._deepest = deepest
        self._anywhere = anywhere
        self._width = family.bits + _BEHIND

    def chains(self, leaves: Leaves) -> dict[str, tuple[Rule, ...]]:
        """Return the chains of the tree with these frontends."""
        found: dict[str, tuple[Rule, ...]] = {}
        _, rules = self._grow(sorted(leaves), leaves, found, self._deepest)
        found[self.root] = tuple(rules)
        return found

    def _grow(
        self,
        numbers: Sequence[int],
        leaves: Leaves,
        found: dict[str, tuple[Rule, ...]],
        below: int,
    ) -> tuple[int, list[Rule]]:
        """Return the most rules that a packet meets in a chain for these, and the chain's rules.

        At most `below` nested chains may follow. They are added to `found`.
        """
        # A chain too deep would make nf_tables reject the table; a long list only costs time.
        if len(numbers) <= FEW or not below:
            return len(numbers), [leaves[each] for each in numbers]
        parts = [
            (part, *self._grow(part, leaves, found, below - 1)) for part in self._parts(numbers)
        ]
        # The branch with the longest path comes first, so that fewer rules precede it.
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
        """Divide numbers by the next bits in which they differ, into at least two parts."""
        step = 1 if len(numbers) <= NEAR else _STEP
        left = self._width - self._end(self._common(numbers), step)
        cuts = [0]
        while numbers[cuts[-1]] >> left != numbers[-1] >> left:
            above = (numbers[cuts[-1]] >> left) + 1
            cuts.append(bisect_left(numbers, above << left, cuts[-1]))
        return [numbers[low:high] for low, high in zip(cuts, [*cuts[1:], None], strict=True)]

    def _end(self, common: int, step: int) -> int:
        """Return the bit up to which to divide numbers whose first `common` bits are equal.

        A rule cannot test a part of a protocol, so the protocol's bits form one step.
        """
        bits = self._family.bits
        if common < bits:
            return min(common + step, bits)
        return max(bits + _PROTOCOL_BITS, min(common + step, self._width))

    def _common(self, numbers: Sequence[int]) -> int:
        # The numbers are sorted: the bits that the first and last have in common, all have.
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
            name = chain_names.branch(self.prefix, network)
            return name, Rule(destination=network, target=Jump(name, returns=False))
        protocol = _PROTOCOLS[numbers[0] >> _PORT_BITS & 3]
        span = 1 << (self._width - common)
        low = (numbers[0] & 0xFFFF) & ~(span - 1)
        ports = range(low, low + span)
        name = chain_names.port_branch(self.prefix, network.address, protocol, ports)
        return name, Rule(
            # The protocol or the port differ: all have one address, or none.
            destination=None if self._anywhere else network,
            protocol=protocol,
            ports=(low, low + span - 1) if span < 1 << _PORT_BITS else None,
            target=Jump(name, returns=False),
        )
