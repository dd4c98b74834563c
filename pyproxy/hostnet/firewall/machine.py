"""The state while a rule of nf_tables is evaluated, and the numbers and verdicts of its attributes.

Facts: include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyproxy.hostnet.firewall.bits import Bits, Doubts, join_doubts
from pyproxy.hostnet.firewall.hook_packet import HookPacket
from pyproxy.hostnet.firewall.registers import Registers
from pyproxy.hostnet.firewall.sets import Sets
from pyproxy.hostnet.firewall.verdicts import ACCEPT, DROP, RETURN, Action, Verdict
from pyproxy.netlink.attributes import attribute_map, text

Attributes = Mapping[int, bytes]

VERDICT_REGISTER = 0
_JUMP, _GOTO, _RETURN, _CONTINUE = -3, -4, -5, -1


class Machine:
    """The evaluation of one rule."""

    def __init__(self, packet: HookPacket, sets: Sets) -> None:
        self.packet = packet
        self.sets = sets
        self.registers = Registers()
        self.doubts: Doubts = ()
        self.verdicts: list[Verdict] = []
        self.broken = False
        self.untracked = False
        self.changes = ""

    def doubt(self, doubts: Doubts) -> None:
        """Leave doubts whether the rule matches."""
        self.doubts = join_doubts(self.doubts, doubts)

    def require(self, result: bool | None, doubts: Doubts) -> None:
        """End the rule if a comparison is false; note the doubts if it is undecided."""
        if result is None:
            self.doubt(doubts)
        elif not result:
            self.broken = True

    def store(self, fields: Attributes, kind: int, value: Bits | None) -> None:
        """Write a value into the register that a field names; no value ends the rule."""
        if value is None:
            self.broken = True
        else:
            self.registers.store(number_of(fields, kind), value)


def number_of(fields: Attributes, kind: int) -> int:
    """Return an attribute's number, 0 if it is missing."""
    return int.from_bytes(fields.get(kind, b""), "big")


def data_of(fields: Attributes, kind: int) -> bytes:
    """Return the value in an attribute of data."""
    return bytes(attribute_map(fields.get(kind, b"")).get(1, b""))


def read_verdict(packed: memoryview | None) -> Verdict | None:
    """Read a packed verdict; None if evaluation continues."""
    fields = attribute_map(packed or b"")
    code = int.from_bytes(fields.get(1, b""), "big", signed=True)
    target = text(fields[2]) if 2 in fields else ""
    if code == _JUMP:
        return Verdict(Action.JUMP, target)
    if code == _GOTO:
        return Verdict(Action.GOTO, target)
    if code == _CONTINUE:
        return None
    # The low byte is netfilter's verdict, the others are a queue's number.
    plain = {0: DROP, 1: ACCEPT, 3: Verdict(Action.DIVERT, note="queue")}
    return RETURN if code == _RETURN else plain.get(code & 0xFF, ACCEPT)
