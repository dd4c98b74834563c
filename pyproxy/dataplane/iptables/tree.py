"""A tree of chains that leads a packet to its frontend: how many there are makes it deeper, barely.

Frontends are sorted by address, protocol and port, as one number. A chain tells the numbers that it
is for apart by the first two bits in which they differ: a rule for each of the higher values, which
goes to a chain of its own, and then the rules for the lowest in the chain itself. Where few are
left, they are simply listed. A packet so meets at most three rules for two bits, and goes through
one chain for two bits at most: the kernel's nf_tables allows 16 jumps in a row.

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
        waiting: list[tuple[str, Sequence[int]]] = [(self.root, sorted(leaves))]
        while waiting:
            chain, numbers = waiting.pop()
            rules: list[Rule] = []
            while len(numbers) > FEW:
                first, *rest = self._parts(numbers)
                for part in reversed(rest):
                    if len(part) == 1:
                        rules.append(leaves[part[0]])
                        continue
                    branch, test = self._branch(part)
                    rules.append(test)
                    waiting.append((branch, part))
                numbers = first
            rules.extend(leaves[each] for each in numbers)
            found[chain] = tuple(rules)
        return found

    def _parts(self, numbers: Sequence[int]) -> list[Sequence[int]]:
        """Divide numbers by the next bits; there are at least two parts."""
        left = self._width - self._end(self._common(numbers))
        cuts = [0]
        while numbers[cuts[-1]] >> left != numbers[-1] >> left:
            above = (numbers[cuts[-1]] >> left) + 1
            cuts.append(bisect_left(numbers, above << left, cuts[-1]))
        return [numbers[low:high] for low, high in zip(cuts, [*cuts[1:], None], strict=True)]

    def _end(self, common: int) -> int:
        """Say up to which bit numbers are told apart that have their first `common` in common.

        A rule tests a protocol whole or not at all, so its bits are taken alone and together.
        """
        bits = self._family.bits
        if common < bits:
            return min(common + _STEP, bits)
        return max(bits + _PROTOCOL_BITS, min(common + _STEP, self._width))

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
