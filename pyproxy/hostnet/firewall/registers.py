"""The registers of nf_tables, of whose bits some may be unknown.

Facts: include/net/netfilter/nf_tables.h. There are 16 registers of 4 bytes behind the verdict; the
numbers 1 to 4 name four of them at once. Numbers of metadata are in host byte order.
"""

from __future__ import annotations

from pyproxy.hostnet.firewall.bits import Bits, concatenate, unknown

_SLOTS = 20
_EMPTY = unknown(4, ())


class Registers:
    """The registers during the evaluation of one rule."""

    def __init__(self) -> None:
        self._slots = [_EMPTY] * _SLOTS

    def store(self, register: int, value: Bits) -> None:
        """Write a value from a register on; the kernel pads the last register with zeros."""
        first = _slot(register)
        padding = -value.size % 4
        padded = concatenate(value, Bits(0, (1 << 8 * padding) - 1, padding)) if padding else value
        for index in range(padded.size // 4):
            if first + index < _SLOTS:
                self._slots[first + index] = padded.part(4 * index, 4)

    def load(self, register: int, size: int) -> Bits:
        """Read `size` bytes from a register on."""
        first = _slot(register)
        slots = self._slots[first : first + (size + 3) // 4]
        return concatenate(*slots).part(0, size)


def _slot(register: int) -> int:
    return register * 4 if register < 8 else register - 4
