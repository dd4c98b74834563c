"""The effect of a rule on a packet, and the interfaces of rules and chains.

Rules of nf_tables and of legacy tables implement the same interface, so that one evaluator walks
both.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol as Interface

import msgspec

from pyproxy.hostnet.firewall.bits import Doubts
from pyproxy.hostnet.firewall.hook_packet import HookPacket


class Action(enum.Enum):
    """The effect of a verdict on a packet."""

    ACCEPT = "accepts"
    DROP = "drops"
    REJECT = "rejects"
    RETURN = "returns"
    JUMP = "jumps"
    GOTO = "goes to"
    NOTRACK = "takes out of conntrack"
    TRANSLATE = "translates"
    DIVERT = "diverts"


class Verdict(msgspec.Struct, frozen=True):
    """A verdict; `chain` is the target of a jump, `note` says more, such as the new destination."""

    action: Action
    chain: str = ""
    note: str = ""


ACCEPT, DROP, RETURN = Verdict(Action.ACCEPT), Verdict(Action.DROP), Verdict(Action.RETURN)


class Effect(msgspec.Struct, frozen=True):
    """A rule's effect on a packet: the packet after its statements, and the verdict.

    If `doubts` is not empty, it is undecided whether the rule matches. `verdicts` then may have
    several, of a verdict map whose key is not known. `untracked` says that it took the packet out
    of conntrack, which is not a verdict; `changes` is a note on what makes its further way unknown.
    """

    matches: bool
    packet: HookPacket
    verdicts: tuple[Verdict, ...] = ()
    doubts: Doubts = ()
    untracked: bool = False
    changes: str = ""


class Rule(Interface):
    """A rule of a chain."""

    @property
    def where(self) -> str:
        """Its place in the chain: "handle 7" or "rule 3"."""
        ...

    def apply(self, packet: HookPacket) -> Effect:
        """Return its effect on a packet. May read the kernel's sets; raises KernelError."""
        ...


class Chain(msgspec.Struct, frozen=True):
    """A chain of rules; `table` is as its tool names it: "inet filter", "filter".

    `complete` is false if the chain has more rules than are read. `policy` is that of a base chain.
    """

    table: str
    name: str
    rules: Sequence[Rule]
    policy: Verdict = ACCEPT
    complete: bool = True


class Chains(Interface):
    """The chains of one table."""

    def title(self, name: str) -> str:
        """Return the name of a chain as its tool lists it."""
        ...

    def chain(self, name: str) -> Chain:
        """Return a chain by the name that a verdict has. May block; raises KernelError."""
        ...
