"""A rule of nf_tables: its expressions, evaluated one after the other.

An expression that is not known here leaves a doubt, because it may end the rule.
"""

from __future__ import annotations

from pyproxy.hostnet.firewall.bits import DoubtKind, doubt
from pyproxy.hostnet.firewall.expressions import EXPRESSIONS
from pyproxy.hostnet.firewall.guards import Guard, guards_of
from pyproxy.hostnet.firewall.hook_packet import HookPacket
from pyproxy.hostnet.firewall.machine import Machine
from pyproxy.hostnet.firewall.registers import Registers
from pyproxy.hostnet.firewall.sets import Sets
from pyproxy.hostnet.firewall.verdicts import Action, Effect, Verdict
from pyproxy.netlink.rules import Expression, read_expressions


class NftRule:
    """A rule as it was read: its packed expressions, decoded when a packet meets it."""

    __slots__ = ("_decoded", "_guards", "_packed", "_sets", "handle")

    def __init__(self, handle: int, packed: bytes, sets: Sets) -> None:
        self.handle = handle
        self._packed = packed
        self._sets = sets
        self._decoded: tuple[Expression, ...] | None = None
        self._guards: tuple[Guard, ...] = ()

    @property
    def where(self) -> str:
        """Its handle, as nft -a lists it."""
        return f"handle {self.handle}"

    def apply(self, packet: HookPacket) -> Effect:
        """Return its effect on a packet. Raises KernelError."""
        if self._decoded is None:
            self._decoded = tuple(read_expressions(self._packed))
            self._guards = guards_of(self._decoded)
        if self._guards and self._sets.fields(packet).refutes(self._guards):
            return Effect(False, packet)
        machine = Machine(packet, self._sets)
        unread = ""
        for expression in self._decoded:
            run = EXPRESSIONS.get(expression.name)
            if run is None:
                unread = f"expression {expression.name}"
                machine.doubt(doubt(DoubtKind.UNREADABLE, unread))
                # It may have written any register.
                machine.registers = Registers()
            else:
                run(machine, expression.fields)
            if machine.broken:
                return Effect(False, machine.packet)
            if machine.verdicts:
                break
        if unread and not machine.verdicts:
            # It may have ended the packet's way itself.
            machine.verdicts.append(Verdict(Action.DIVERT, note=f"to {unread}"))
        return Effect(
            True,
            machine.packet,
            tuple(machine.verdicts),
            machine.doubts,
            machine.untracked,
            machine.changes,
        )
