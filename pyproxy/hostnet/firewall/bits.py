"""Values of which some bits are unknown, and comparisons of them with three results.

A rule may test what an explanation does not know, such as the client's address or a packet counter.
A comparison is then true, false or undecided, and a doubt says why.
"""

from __future__ import annotations

import enum

import msgspec


class DoubtKind(enum.Enum):
    """Why it is undecided whether a rule matches."""

    CLIENT = "it depends on the client"
    RATE = "it depends on the rate of packets"
    CHANCE = "it matches a part of the packets"
    UNREADABLE = "pyproxy cannot evaluate it"


class Doubt(msgspec.Struct, frozen=True):
    """A reason why a match is undecided; `what` names the field or the expression."""

    kind: DoubtKind
    what: str


Doubts = tuple[Doubt, ...]


def doubt(kind: DoubtKind, what: str) -> Doubts:
    """Return one doubt."""
    return (Doubt(kind, what),)


def join_doubts(*several: Doubts) -> Doubts:
    """Return all doubts, each once."""
    if sum(map(bool, several)) <= 1:
        return next(filter(None, several), ())
    return tuple(dict.fromkeys(each for doubts in several for each in doubts))


class Bits(msgspec.Struct, frozen=True):
    """A value of `size` bytes in network order; bits outside of `known` may be anything.

    `doubts` say why bits are unknown; they are empty if all bits are known.
    """

    value: int
    known: int
    size: int
    doubts: Doubts = ()

    @property
    def complete(self) -> bool:
        """Whether all bits are known."""
        return self.known == _mask(self.size)

    @property
    def low(self) -> int:
        """The lowest number that it may be."""
        return self.value & self.known

    @property
    def high(self) -> int:
        """The highest number that it may be."""
        return (self.value & self.known) | (_mask(self.size) & ~self.known)

    def data(self) -> bytes:
        """Return the bytes, with zeros for unknown bits."""
        return self.low.to_bytes(self.size, "big")

    def part(self, offset: int, size: int) -> Bits:
        """Return `size` bytes from `offset`; bytes beyond the end are unknown."""
        end = offset + size
        value, known = self.value, self.known
        if end > self.size:
            value <<= 8 * (end - self.size)
            known <<= 8 * (end - self.size)
        else:
            value >>= 8 * (self.size - end)
            known >>= 8 * (self.size - end)
        part = _mask(size)
        return Bits(value & part, known & part, size, () if known & part == part else self.doubts)


def _mask(size: int) -> int:
    return (1 << (8 * size)) - 1


def known(data: bytes) -> Bits:
    """Return a value whose bits are all known."""
    return Bits(int.from_bytes(data, "big"), _mask(len(data)), len(data))


def number(value: int, size: int = 4, order: str = "little") -> Bits:
    """Return a known number as a register of the kernel has it; host order is little endian."""
    return known(value.to_bytes(size, "big" if order == "big" else "little"))


def below(limit: int, doubts: Doubts) -> Bits:
    """Return an unknown number of 4 bytes in host order that is less than a limit; 0 for none."""
    high = (limit - 1).bit_length() if 0 < limit <= 1 << 32 else 32
    bits = 0xFFFFFFFF ^ ((1 << high) - 1)
    return Bits(0, int.from_bytes(bits.to_bytes(4, "little"), "big"), 4, doubts)


def unknown(size: int, doubts: Doubts) -> Bits:
    """Return a value of which nothing is known."""
    return Bits(0, 0, size, doubts)


def concatenate(*parts: Bits) -> Bits:
    """Return the parts one behind the other."""
    value = mask = size = 0
    for part in parts:
        value = value << (8 * part.size) | part.value
        mask = mask << (8 * part.size) | part.known
        size += part.size
    return Bits(value, mask, size, join_doubts(*(part.doubts for part in parts)))


def mask_and_xor(value: Bits, mask: int, xor: int) -> Bits:
    """Return `(value & mask) ^ xor`, as nf_tables' bitwise expression computes it."""
    # A bit that the mask clears is known, whatever it was before.
    known_bits = (value.known | ~mask) & _mask(value.size)
    found = ((value.value & mask) ^ xor) & known_bits
    return Bits(
        found, known_bits, value.size, value.doubts if known_bits != _mask(value.size) else ()
    )


def is_equal(value: Bits, other: int) -> bool | None:
    """Return whether a value equals a number; None if it is undecided."""
    if (value.value ^ other) & value.known:
        return False
    return True if value.complete else None


def is_between(value: Bits, low: int, high: int) -> bool | None:
    """Return whether a value is from `low` to `high`; None if it is undecided."""
    if value.low > high or value.high < low:
        return False
    return True if value.low >= low and value.high <= high else None


def merge(value: Bits, other: Bits, doubts: Doubts) -> Bits:
    """Return a value that is one of two, and it is undecided which."""
    same = value.known & other.known & ~(value.value ^ other.value)
    if same == value.known == other.known:
        return value
    return Bits(
        value.value & same, same, value.size, join_doubts(value.doubts, other.doubts, doubts)
    )
