"""Rules as typed values, and their text: exactly as iptables-save gives it back.

Only numbers, addresses and chains that we name get into the text; a Service's name gets into a
comment alone, cut and cleaned. That the text is the same both ways is what lets a restart see that
nothing is to be done. Facts: iptables-save of iptables 1.8.9, both flavours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from pyproxy.model.address import Backend, Family, Mark, Network, Protocol, backend_text

COMMENT_LIMIT = 255
"""Bytes of a comment that the kernel keeps."""

CERTAIN = 1 << 31
"""A probability of 1, in the kernel's units."""

_UNSAFE = re.compile(r"[^A-Za-z0-9 ./:_-]")
_MASK = {
    Family.IPV4: "255.255.255.255",
    Family.IPV6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
}
_PLAIN = re.compile(r"[A-Za-z0-9_]+")


class Jump(msgspec.Struct, frozen=True, gc=False):
    """Go through a chain, and come back unless that decides; with `returns` False, never back."""

    chain: str
    returns: bool = True

    @property
    def text(self) -> str:
        """As iptables has it, like those of all targets."""
        return f"-{'j' if self.returns else 'g'} {self.chain}"


class Translate(msgspec.Struct, frozen=True, gc=False):
    """Send the connection to an endpoint."""

    backend: Backend

    @property
    def text(self) -> str:
        """As iptables has it."""
        return f"-j DNAT --to-destination {backend_text(self.backend)}"


class SetMark(msgspec.Struct, frozen=True):
    """Set a mark's bit; or, where it is known to be set, take it off."""

    mark: Mark
    on: bool = True

    @property
    def text(self) -> str:
        """As iptables has it."""
        return f"-j MARK --set-xmark {self.mark:#x}/{self.mark * self.on:#x}"


class End(msgspec.Struct, frozen=True):
    """A target that needs no more than its name: ACCEPT, DROP, RETURN, or REJECT and MASQUERADE."""

    text: str


ACCEPT, DROP, RETURN = End("-j ACCEPT"), End("-j DROP"), End("-j RETURN")
MASQUERADE = End("-j MASQUERADE --random-fully")
RESET = End("-j REJECT --reject-with tcp-reset")
UNREACHABLE = {
    Family.IPV4: End("-j REJECT --reject-with icmp-port-unreachable"),
    Family.IPV6: End("-j REJECT --reject-with icmp6-port-unreachable"),
}

Target = Jump | Translate | SetMark | End


class Seen(msgspec.Struct, frozen=True, gc=False):
    """Session affinity: the client was sent to the endpoint of this chain in the last `seconds`.

    With 0 it is noted that it is sent there now.
    """

    chain: str
    family: Family
    seconds: int = 0

    @property
    def text(self) -> str:
        """As iptables has it; all of the client's address counts."""
        what = f"--rcheck --seconds {self.seconds} --reap" if self.seconds else "--set"
        return f"-m recent {what} --name {self.chain} --mask {_MASK[self.family]} --rsource"


class Rule(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One rule: all that is said must be so for the target to take the packet.

    `interface` may be a prefix ending in `+`. `ports` are the first and the last of a range of
    destination ports. `share` is the probability, of CERTAIN, that the rule applies at all; 0
    stands for always. `states` are conntrack's. `marked` tests a mark's bit. A `not_...` turns
    round what it names. `counter` is nfacct's.
    """

    target: Target
    source: Network | None = None
    not_source: bool = False
    destination: Network | None = None
    interface: str = ""
    not_interface: bool = False
    protocol: Protocol | None = None
    ports: tuple[int, int] | None = None
    from_here: bool = False
    share: int = 0
    seen: Seen | None = None
    states: str = ""
    not_states: bool = False
    untranslated: bool = False
    marked: Mark | None = None
    not_marked: bool = False
    counter: str = ""
    comment: str = ""

    @property
    def text(self) -> str:
        """What stands behind the chain's name."""
        words = [*self._where(), *self._matches()]
        words.append(self.target.text)
        return " ".join(words)

    def _where(self) -> list[str]:
        words = []
        # Everybody goes without saying.
        if self.source is not None and (self.source.prefix or self.not_source):
            words.append(f"{'! ' * self.not_source}-s {self.source}")
        if self.destination is not None:
            words.append(f"-d {self.destination}")
        if self.interface:
            words.append(f"{'! ' * self.not_interface}-i {self.interface}")
        if self.protocol is not None:
            words.append(f"-p {self.protocol.name.lower()}")
        return words

    def _matches(self) -> list[str]:
        words = []
        if self.states:
            words.append(f"-m conntrack {'! ' * self.not_states}--ctstate {self.states}")
        if self.untranslated:
            words.append("-m conntrack ! --ctstate DNAT")
        if self.comment:
            words.append(f"-m comment --comment {_quoted(self.comment)}")
        if self.marked is not None:
            no = "! " * self.not_marked
            words.append(f"-m mark {no}--mark {self.marked:#x}/{self.marked:#x}")
        if self.ports is not None and self.protocol is not None:
            low, high = self.ports
            span = f"{low}" if low == high else f"{low}:{high}"
            words.append(f"-m {self.protocol.name.lower()} --dport {span}")
        if self.from_here:
            words.append("-m addrtype --src-type LOCAL")
        if self.seen is not None:
            words.append(self.seen.text)
        if self.share:
            words.append(f"-m statistic --mode random --probability {self.share / CERTAIN:.11f}")
        if self.counter:
            words.append(f"-m nfacct --nfacct-name  {self.counter}")
        return words


Chains = Mapping[str, tuple[Rule, ...]]
"""Chains of one table, and their rules in order."""


def cleaned(comment: str) -> str:
    """Make a text fit to be a comment, and nothing but one."""
    return _UNSAFE.sub("?", comment)[:COMMENT_LIMIT]


def chance(part: int, whole: int) -> int:
    """Give the probability of `part` in `whole`, 0 where it is certain."""
    return 0 if part == whole else round(CERTAIN * part / whole)


def _quoted(comment: str) -> str:
    return comment if _PLAIN.fullmatch(comment) else f'"{comment}"'
