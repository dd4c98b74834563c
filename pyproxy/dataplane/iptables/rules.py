"""Rules as typed values, and their text: exactly as iptables-save prints it.

Only numbers, addresses and names of chains enter the text. A Service's name enters a comment only,
cut and cleaned. A restart writes nothing if the text that it reads back is equal. Facts:
iptables-save of iptables 1.8.9, both flavours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from pyproxy.model.address import Backend, Family, Mark, Network, Protocol, backend_text

COMMENT_LIMIT = 255
"""Bytes of a comment that the kernel keeps."""

CERTAIN = 1 << 31
"""A probability of 1 in the units of xt_statistic, of which iptables prints 11 decimals."""

_UNSAFE = re.compile(r"[^A-Za-z0-9 ./:_-]")
_MASK = {
    Family.IPV4: "255.255.255.255",
    Family.IPV6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
}
_PLAIN = re.compile(r"[A-Za-z0-9_]+")


class Jump(msgspec.Struct, frozen=True, gc=False):
    """Jump to a chain, which returns to the next rule; with `returns` False, go to it for good."""

    chain: str
    returns: bool = True

    @property
    def text(self) -> str:
        """The target as iptables-save prints it; all targets have it."""
        return f"-{'j' if self.returns else 'g'} {self.chain}"


class Translate(msgspec.Struct, frozen=True, gc=False):
    """Translate the connection's destination to an endpoint."""

    backend: Backend

    @property
    def text(self) -> str:
        """The target as iptables-save prints it."""
        return f"-j DNAT --to-destination {backend_text(self.backend)}"


class SetMark(msgspec.Struct, frozen=True):
    """Set a mark's bit; with `on` False, invert it, which clears a bit known to be set."""

    mark: Mark
    on: bool = True

    @property
    def text(self) -> str:
        """The target as iptables-save prints it."""
        # xt_MARK computes (mark & ~mask) ^ value: a mask of 0 inverts the value's bits.
        return f"-j MARK --set-xmark {self.mark:#x}/{self.mark * self.on:#x}"


class End(msgspec.Struct, frozen=True):
    """A target without parameters of ours: ACCEPT, DROP, RETURN, REJECT or MASQUERADE."""

    text: str


ACCEPT, DROP, RETURN = End("-j ACCEPT"), End("-j DROP"), End("-j RETURN")
# As in kube-proxy. Without it two connections may choose the same source port at once, and the
# kernel drops the packet of one (insert_failed).
MASQUERADE = End("-j MASQUERADE --random-fully")
RESET = End("-j REJECT --reject-with tcp-reset")
UNREACHABLE = {
    Family.IPV4: End("-j REJECT --reject-with icmp-port-unreachable"),
    Family.IPV6: End("-j REJECT --reject-with icmp6-port-unreachable"),
}

Target = Jump | Translate | SetMark | End


class Seen(msgspec.Struct, frozen=True, gc=False):
    """Session affinity: match a client sent to this chain's endpoint in the last `seconds`.

    With 0 seconds, record that the client is sent there now.
    """

    chain: str
    family: Family
    seconds: int = 0

    @property
    def text(self) -> str:
        """The match as iptables-save prints it, on the client's whole address."""
        # xt_recent keeps 100 clients per list by default (ip_list_tot) and then evicts the least
        # recent. With --reap a look-up also removes an expired one.
        what = f"--rcheck --seconds {self.seconds} --reap" if self.seconds else "--set"
        return f"-m recent {what} --name {self.chain} --mask {_MASK[self.family]} --rsource"


# gc=False: a rule is in no reference cycle, so the collector need not visit it.
class Rule(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One rule: the target applies to packets that match all the fields that are set.

    `interface` may be a prefix ending in `+`. `ports` are the first and the last of a range of
    destination ports. `share` is the probability that the rule matches, in units of CERTAIN; 0
    stands for always. `states` are conntrack's. `marked` tests a mark's bit. A `not_...` inverts
    the field that it names. `counter` is the nfacct object that the rule increments.
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
    to_here: bool = False
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
        """The rule's text behind the chain's name."""
        words = [*self._basics(), *self._matches()]
        words.append(self.target.text)
        return " ".join(words)

    def _basics(self) -> list[str]:
        words = []
        # iptables-save does not print a source that matches every address.
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
        # iptables-save prints matches in the order in which they were given.
        words = []
        # iptables-save prints states in its own order: INVALID, NEW, RELATED, ESTABLISHED,
        # UNTRACKED, DNAT. A list matches any of them, so a further condition is a match of its own.
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
        if self.to_here:
            words.append("-m addrtype --dst-type LOCAL")
        if self.seen is not None:
            words.append(self.seen.text)
        if self.share:
            words.append(f"-m statistic --mode random --probability {self.share / CERTAIN:.11f}")
        if self.counter:
            # iptables-save prints two spaces here.
            words.append(f"-m nfacct --nfacct-name  {self.counter}")
        return words


Chains = Mapping[str, tuple[Rule, ...]]
"""Chains of one table, and their rules in order."""


def cleaned(comment: str) -> str:
    """Return a text cut and cleaned, so that iptables-restore reads it as one comment."""
    return _UNSAFE.sub("?", comment)[:COMMENT_LIMIT]


def chance(part: int, whole: int) -> int:
    """Return the probability of `part` in `whole` in units of CERTAIN; 0 if it is certain."""
    return 0 if part == whole else round(CERTAIN * part / whole)


def _quoted(comment: str) -> str:
    return comment if _PLAIN.fullmatch(comment) else f'"{comment}"'
