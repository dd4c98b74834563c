"""Read the legacy tables of iptables through its socket option, and walk them without a copy.

Facts: include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h and
netfilter/x_tables.h. A table is one block of entries; jumps are offsets in it. Opening a table that
does not exist would load its module, so only the tables that /proc names are opened.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from collections.abc import Iterator, Mapping

import msgspec

from pyproxy.hostnet.firewall import xt_targets
from pyproxy.hostnet.firewall.bits import Doubts, join_doubts
from pyproxy.hostnet.firewall.hook_packet import Hook, HookPacket, Match
from pyproxy.hostnet.firewall.verdicts import ACCEPT, RETURN, Action, Chain, Effect, Verdict
from pyproxy.hostnet.firewall.xt_matches import address_in, all_of, interface_is, match
from pyproxy.model.address import Family
from pyproxy.netlink.kernel_errors import kernel_error
from pyproxy.xtables.programs import legacy_table_names

_GET_INFO, _GET_ENTRIES = 64, 65
_LEVELS = {Family.IPV4: socket.IPPROTO_IP, Family.IPV6: socket.IPPROTO_IPV6}
_AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_NAME_SIZE = 32
_INFO = struct.Struct("=32sI5I5III")
_MOST_BYTES = 256 << 20
MOST_CHAIN_RULES = 5_000
"""Rules of one chain that are evaluated; a longer chain is undecided beyond them."""

PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
"""The priorities of tables at their hooks; nat's is 100 in input and postrouting."""

_INVERT_SOURCE, _INVERT_DESTINATION, _INVERT_IN, _INVERT_OUT, _INVERT_PROTOCOL = 8, 16, 1, 2, 64
_GOTO_FLAG = {Family.IPV4: 2, Family.IPV6: 4}
_ERROR_TARGET = "ERROR"
_RETURN = -5


class _Layout(msgspec.Struct, frozen=True):
    """Offsets in an entry: of protocol and flags, of the offsets to target and next, its size."""

    address: int
    protocol: int
    flags: int
    offsets: int
    size: int


_LAYOUTS = {
    Family.IPV4: _Layout(4, 80, 82, 88, 112),
    # A protocol is followed by tos, flags and invflags.
    Family.IPV6: _Layout(16, 128, 131, 140, 168),
}


class LegacyTable:
    """One table as the kernel returned it; chains are read when a packet meets them.

    `hooks` are the offsets of the first rule and of the policy of each built-in chain.
    """

    def __init__(
        self, family: Family, name: str, entries: memoryview, hooks: Mapping[Hook, tuple[int, int]]
    ) -> None:
        self.family = family
        self.name = name
        self.entries = entries
        self.hooks = hooks
        self._chains: dict[int, Chain] = {}

    @property
    def label(self) -> str:
        """The table as a person would name it."""
        program = "iptables-legacy" if self.family is Family.IPV4 else "ip6tables-legacy"
        return f"{program} {self.name}"

    def priority(self, hook: Hook) -> int:
        """Return the priority of the table's chain at a hook."""
        if self.name == "nat" and hook in (Hook.INPUT, Hook.POSTROUTING):
            return 100
        return PRIORITIES.get(self.name, 0)

    def base_chain(self, hook: Hook) -> Chain:
        """Return the built-in chain at a hook; its last rule is the policy."""
        first, end = self.hooks[hook]
        rules, complete = self._rules(first, end)
        policy = LegacyRule(self, end, 0).verdict() or ACCEPT
        return Chain(self.label, hook.name, rules, policy, complete)

    def title(self, name: str) -> str:
        """Return the name of a user's chain by the offset of its first rule."""
        # The entry before it is an error target with the name: a header of 32 bytes, 30 of name.
        at = int(name) - 32
        return _name(self.entries, at)

    def chain(self, name: str) -> Chain:
        """Return a user's chain by the offset of its first rule."""
        offset = int(name)
        if offset not in self._chains:
            rules, complete = self._rules(offset, len(self.entries))
            self._chains[offset] = Chain(self.label, self.title(name), rules, ACCEPT, complete)
        return self._chains[offset]

    def _rules(self, offset: int, end: int) -> tuple[list[LegacyRule], bool]:
        rules: list[LegacyRule] = []
        while offset < end and len(rules) < MOST_CHAIN_RULES:
            rule = LegacyRule(self, offset, len(rules) + 1)
            # The next chain begins with its name, in an error target.
            if rule.target_name == _ERROR_TARGET:
                return rules, True
            rules.append(rule)
            offset = rule.next_offset
        return rules, offset >= end


class LegacyRule(msgspec.Struct, frozen=True, eq=False):
    """An entry of a table at an offset; `number` counts from 1 in its chain, as iptables lists."""

    table: LegacyTable
    offset: int
    number: int

    @property
    def where(self) -> str:
        """Its place in the chain."""
        return f"rule {self.number}"

    def _offsets(self) -> tuple[int, int]:
        at = self.offset + _LAYOUTS[self.table.family].offsets
        found: tuple[int, int] = struct.unpack_from("=HH", self.table.entries, at)
        return found

    @property
    def next_offset(self) -> int:
        """The offset of the next entry."""
        return self.offset + max(1, self._offsets()[1])

    @property
    def target_name(self) -> str:
        """The name of its target, empty for a verdict or a jump."""
        at = self.offset + self._offsets()[0] + 2
        return _name(self.table.entries, at)

    def verdict(self) -> Verdict | None:
        """Return the verdict of a standard target; None if it falls through."""
        target, following = self._offsets()
        entries, at = self.table.entries, self.offset + target
        (code,) = struct.unpack_from("=i", entries, at + 32)
        if code == _RETURN:
            return RETURN
        if code < 0:
            return xt_targets.STANDARD.get(code, ACCEPT)
        if code == self.offset + following:
            return None
        family = self.table.family
        flags = entries[self.offset + _LAYOUTS[family].flags]
        goes = flags & _GOTO_FLAG[family]
        return Verdict(Action.GOTO if goes else Action.JUMP, str(code))

    def apply(self, packet: HookPacket) -> Effect:
        """Return its effect on a packet."""
        found = self._header(packet)
        if found.value is False:
            return Effect(False, packet)
        doubts = found.doubts
        for part in self._matches(packet):
            if part.value is False:
                return Effect(False, packet)
            doubts = join_doubts(doubts, part.doubts)
        return self._target(packet, doubts)

    def _target(self, packet: HookPacket, doubts: Doubts) -> Effect:
        name = self.target_name
        if not name:
            verdict = self.verdict()
            return Effect(True, packet, (verdict,) if verdict else (), doubts)
        entries, at = self.table.entries, self.offset + self._offsets()[0]
        (size,) = struct.unpack_from("=H", entries, at)
        revision, info = entries[at + 31], bytes(entries[at + 32 : at + size])
        found = xt_targets.target(name, revision, info, packet)
        verdicts = (found.verdict,) if found.verdict else ()
        return Effect(
            True,
            found.packet,
            verdicts,
            join_doubts(doubts, found.doubts),
            found.untracked,
            found.changes,
        )

    def _header(self, packet: HookPacket) -> Match:
        layout = _LAYOUTS[self.table.family]
        head = bytes(self.table.entries[self.offset : self.offset + layout.size])
        size, at = layout.address, 4 * layout.address
        (protocol,) = struct.unpack_from("=H", head, layout.protocol)
        flags, inverted = head[layout.flags], head[layout.flags + 1]
        if self.table.family is Family.IPV6:
            tests_protocol = bool(flags & 1) and protocol
        else:
            tests_protocol = protocol
            if flags & 1:  # fragments: the first packet of a connection is none
                return Match(bool(inverted & 32))
        same = packet.protocol == protocol
        if tests_protocol and same == bool(inverted & _INVERT_PROTOCOL):
            return Match(False)
        return all_of(
            interface_is(
                packet.in_interface,
                head[at : at + 16],
                head[at + 32 : at + 48],
                inverted & _INVERT_IN,
            ),
            interface_is(
                packet.out_interface,
                head[at + 16 : at + 32],
                head[at + 48 : at + 64],
                inverted & _INVERT_OUT,
            ),
            address_in(
                packet.source, head[:size], head[2 * size : 3 * size], inverted & _INVERT_SOURCE
            ),
            address_in(
                packet.destination,
                head[size : 2 * size],
                head[3 * size : at],
                inverted & _INVERT_DESTINATION,
            ),
        )

    def _matches(self, packet: HookPacket) -> Iterator[Match]:
        entries = self.table.entries
        at = self.offset + _LAYOUTS[self.table.family].size
        end = self.offset + self._offsets()[0]
        while at + 32 <= end:
            (size,) = struct.unpack_from("=H", entries, at)
            if size < 32:
                return
            name, revision = _name(entries, at + 2), entries[at + 31]
            yield match(name, revision, bytes(entries[at + 32 : at + size]), packet)
            at += size


def _name(entries: memoryview, at: int) -> str:
    return bytes(entries[at : at + 29]).partition(b"\0")[0].decode(errors="replace")


def read_legacy_tables(family: Family) -> list[LegacyTable]:
    """Read the tables that exist in the caller's network namespace.

    Raises OSError, and KernelError, also where a table changes each time that it is read.
    """
    names = legacy_table_names(family)
    wanted = [name for name in PRIORITIES if name in names]
    if not wanted:
        return []
    # Any socket of the family has this option; one for datagrams needs no CAP_NET_RAW.
    with socket.socket(_AF[family], socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        return [_read_table(sock, family, name) for name in wanted]


def _read_table(sock: socket.socket, family: Family, name: str) -> LegacyTable:
    request = name.encode().ljust(_NAME_SIZE, b"\0")
    for _ in range(3):
        info = _option(sock, family, _GET_INFO, request, _INFO.size)
        _, valid, *numbers = _INFO.unpack(info)
        size = numbers[11]
        if size > _MOST_BYTES:
            raise kernel_error(errno.EFBIG, f"table {name} has {size:,} bytes")
        head = request + struct.pack("=I", size)
        # The entries follow the name and the size, aligned to 8 bytes.
        try:
            found = _option(sock, family, _GET_ENTRIES, head, 40 + size)
        except BlockingIOError:
            continue  # the table has another size by now
        # The offsets of the five chains, then those of their policies.
        hooks = {Hook(n): (numbers[n], numbers[5 + n]) for n in range(5) if valid & (1 << n)}
        return LegacyTable(family, name, found[40:], hooks)
    raise kernel_error(errno.EAGAIN, f"table {name} changed each time that it was read")


def _option(sock: socket.socket, family: Family, option: int, head: bytes, size: int) -> memoryview:
    # socket.getsockopt takes no input, which this option has, and at most 1024 bytes of output.
    # Anonymous memory is neither cleared nor copied here: a table may have a hundred megabytes.
    memory = mmap.mmap(-1, size)
    memory[: len(head)] = head
    length = ctypes.c_uint32(size)
    library = ctypes.CDLL(None, use_errno=True)
    target = (ctypes.c_char * size).from_buffer(memory)
    if library.getsockopt(sock.fileno(), _LEVELS[family], option, target, ctypes.byref(length)):
        number = ctypes.get_errno()
        if number == errno.EAGAIN:
            raise BlockingIOError(number, os.strerror(number))
        raise kernel_error(number, f"reading legacy tables of {family.label}")
    return memoryview(memory)[: length.value]
