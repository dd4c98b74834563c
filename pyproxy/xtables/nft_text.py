"""The text of rules as iptables-nft-save prints it, from the expressions that nf_tables holds.

Facts: rules that iptables 1.8.7, 1.8.9 and 1.8.11 wrote, dumped, and xt_*.h and nf_nat.h of
include/uapi/linux/netfilter. The releases differ in three ways, all of which are read: 1.8.7 keeps
marks and ports as matches of iptables, later ones as expressions of nf_tables; 1.8.11 reads IPv4's
protocol from the header. Numbers of matches and targets are in host order.

Only what pyproxy's and kube-proxy's rules consist of has a text here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping

from pyproxy.model.address import (
    Address,
    Backend,
    Family,
    Network,
    backend_text,
)
from pyproxy.netlink.attributes import attribute_map, text
from pyproxy.netlink.nfnetlink import NFPROTO_IPV4, NFPROTO_IPV6
from pyproxy.netlink.rules import Expression, read_expressions

NFPROTO = {Family.IPV4: NFPROTO_IPV4, Family.IPV6: NFPROTO_IPV6}

_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
_VERDICTS = {0: "-j DROP", 1: "-j ACCEPT", -5: "-j RETURN"}
_NFT_JUMP, _NFT_GOTO = -3, -4
_META_MARK, _META_IIFNAME, _META_L4PROTO = 3, 6, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
# Where the headers of IPv4 and IPv6 have the source, the destination and the protocol.
_SOURCE, _DESTINATION, _PROTOCOL = "-s", "-d", "-p"
_FIELDS = {
    Family.IPV4: {12: _SOURCE, 16: _DESTINATION, 9: _PROTOCOL},
    Family.IPV6: {8: _SOURCE, 24: _DESTINATION, 6: _PROTOCOL},
}
_PORT_OFFSET = 2
_ANY_PORT = (0, 0xFFFF)

# NFTA_LIST_ELEM with NFTA_EXPR_NAME "counter", behind the lengths of both.
_COUNTER = b"counter\0"
_COUNTER_OFFSET = 8
_COUNTER_PACKETS = 2

# iptables prints states in this order, whatever the order in which they were given.
_STATES = ((1, "INVALID"), (8, "NEW"), (4, "RELATED"), (2, "ESTABLISHED"), (256, "UNTRACKED"),
           (64, "SNAT"), (128, "DNAT"))  # fmt: skip
# struct xt_conntrack_mtinfo3: flags of the tests, of their inversion, and the mask of states.
_CONNTRACK = struct.Struct("=146xHHH16x")
_CT_STATE = 1
_STATISTIC = struct.Struct("=HHI16x")
_CERTAIN = 1 << 31
_RECENT = struct.Struct("=IIBB200sBx16s4x")
_RECENT_CHECK, _RECENT_SET, _RECENT_REAP = 0x01, 0x02, 0x20
_MASK = {
    Family.IPV4: (bytes((255,) * 4 + (0,) * 12), "255.255.255.255"),
    Family.IPV6: (b"\xff" * 16, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
}
_RANGE = struct.Struct("=I16s16s2s2s2s2x4x")
_MAP_IPS_AND_PORTS = 1 | 2
_REJECT = {
    Family.IPV4: {7: "tcp-reset", 3: "icmp-port-unreachable"},
    Family.IPV6: {6: "tcp-reset", 4: "icmp6-port-unreachable"},
}
_RANDOM_FULLY = {
    # IPv4 has a count before struct nf_nat_ipv4_range, IPv6 has struct nf_nat_range.
    Family.IPV4: struct.pack("=II16x", 1, 0x10),
    Family.IPV6: struct.pack("=I36x", 0x10),
}
_UNQUOTED = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPED = re.compile(r"[\"'\\\x00-\x1f]")


class UnknownRuleError(Exception):
    """A rule has an expression without a text here, or in another form."""


class RuleTexts:
    """The texts of one family's rules, with a memory of the parts that recur."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._conditions: dict[bytes, str] = {}
        self._targets: dict[bytes, str] = {}

    def text(self, packed: bytes) -> str:
        """Return a rule's text behind the chain's name. Raises UnknownRuleError."""
        # iptables-nft puts a counter between the matches and the target. Its numbers change, and
        # the parts before and behind it recur in thousands of rules.
        begin = packed.find(_COUNTER) - _COUNTER_OFFSET
        if begin < 0:
            raise UnknownRuleError
        end = begin + int.from_bytes(packed[begin : begin + 2], "little")
        before, behind = packed[:begin], packed[end:]
        conditions = self._conditions.get(before)
        if conditions is None:
            conditions = self._conditions[before] = _conditions(before, self._family)
        target = self._targets.get(behind)
        if target is None:
            target = self._targets[behind] = _target(behind, self._family)
        return conditions + target

    def packets(self, packed: bytes) -> int:
        """Return the packets that a rule has counted, 0 without a counter."""
        for expression in read_expressions(packed):
            if expression.name == "counter":
                return _number(expression.fields, _COUNTER_PACKETS)
        return 0

    def target(self, packed: bytes) -> str:
        """Return the text of a jump to a chain, or of a verdict, alone; empty for other targets."""
        for expression in read_expressions(packed):
            if expression.name == "immediate":
                return _verdict(expression)
        return ""


def _conditions(packed: bytes, family: Family) -> str:
    found = _Conditions(family)
    for expression in read_expressions(packed):
        found.add(expression)
    return found.text()


class _Conditions:
    """The conditions of a rule, from its expressions in their order."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._basics: dict[str, str] = {}
        self._matches: list[str] = []
        self._loaded = ""
        self._mask = b""

    def text(self) -> str:
        """Return the text with a space at its end, in iptables-save's order."""
        order = (_SOURCE, _DESTINATION, "-i", _PROTOCOL)
        words = [self._basics[name] for name in order if name in self._basics]
        return "".join(f"{each} " for each in (*words, *self._matches))

    def add(self, expression: Expression) -> None:
        """Take the next expression. Raises UnknownRuleError."""
        fields = expression.fields
        match expression.name:
            case "payload":
                base, offset, length = (_number(fields, kind) for kind in (2, 3, 4))
                self._loaded, self._mask = self._field(base, offset, length), b"\xff" * length
            case "meta":
                names = {_META_MARK: "mark", _META_IIFNAME: "-i", _META_L4PROTO: _PROTOCOL}
                self._loaded = names.get(_number(fields, 2), "")
                self._mask = b"\xff" * 4 if self._loaded == "mark" else b""
            case "bitwise" if not any(_value(fields, 5)):
                self._mask = _value(fields, 4)
            case "cmp":
                self._compare(_value(fields, 3), inverted=bool(_number(fields, 2)))
            case "range" if self._loaded == "--dport" and not _number(fields, 2):
                self._ports(_value(fields, 3), _value(fields, 4))
            case "match":
                name, revision = text(memoryview(fields[1])), _number(fields, 2)
                self._match(name, revision, fields[3])
            case _:
                raise UnknownRuleError

    def _field(self, base: int, offset: int, length: int) -> str:
        if base == _TRANSPORT_HEADER and (offset, length) == (_PORT_OFFSET, 2):
            return "--dport"
        return _FIELDS[self._family].get(offset, "") if base == _NETWORK_HEADER else ""

    def _compare(self, value: bytes, *, inverted: bool) -> None:
        no = "! " * inverted
        match self._loaded:
            case "-s" | "-d":
                size = self._family.bits // 8
                network = Network(Address(value.ljust(size, b"\0")), _prefix(self._mask))
                self._basic(self._loaded, f"{no}{self._loaded} {network}")
            case "-i":
                # A whole name has the zero byte at its end.
                name = text(memoryview(value)) + "+" * (value[-1:] != b"\0")
                self._basic("-i", f"{no}-i {name}")
            case "-p" if not inverted and value[0] in _PROTOCOLS:
                self._basic(_PROTOCOL, f"-p {_PROTOCOLS[value[0]]}")
            case "--dport" if not inverted:
                self._ports(value, value)
            case "mark":
                mark, mask = (int.from_bytes(each, "little") for each in (value, self._mask))
                self._mark(mark, mask, inverted=inverted)
            case _:
                raise UnknownRuleError

    def _basic(self, name: str, words: str) -> None:
        if name in self._basics:
            raise UnknownRuleError
        self._basics[name] = words

    def _ports(self, low: bytes, high: bytes) -> None:
        self._destination_ports(
            self._basics.get(_PROTOCOL, "").removeprefix("-p "),
            int.from_bytes(low, "big"),
            int.from_bytes(high, "big"),
        )

    def _destination_ports(self, protocol: str, low: int, high: int) -> None:
        if f"-p {protocol}" != self._basics.get(_PROTOCOL):
            raise UnknownRuleError
        span = f"{low}" if low == high else f"{low}:{high}"
        self._matches.append(f"-m {protocol} --dport {span}")

    def _mark(self, mark: int, mask: int, *, inverted: bool) -> None:
        span = f"{mark:#x}" if mask == 0xFFFFFFFF else f"{mark:#x}/{mask:#x}"
        self._matches.append(f"-m mark {'! ' * inverted}--mark {span}")

    def _match(self, name: str, revision: int, info: bytes) -> None:
        read = _MATCHES.get((name, revision))
        if read is None:
            raise UnknownRuleError
        try:
            read(self, info)
        except struct.error as error:
            raise UnknownRuleError from error

    def _read_mark(self, info: bytes) -> None:
        mark, mask, inverted = struct.unpack_from("=IIB", info)
        self._mark(mark, mask, inverted=bool(inverted))

    def _read_tcp(self, info: bytes) -> None:
        self._read_ports("tcp", info)

    def _read_udp(self, info: bytes) -> None:
        self._read_ports("udp", info)

    def _read_ports(self, protocol: str, info: bytes) -> None:
        # Source ports, destination ports, and then flags, options and what is inverted.
        *source, low, high = struct.unpack_from("=HHHH", info)
        if tuple(source) != _ANY_PORT or (low, high) == _ANY_PORT or any(info[8:]):
            raise UnknownRuleError
        self._destination_ports(protocol, low, high)

    def _read_sctp(self, info: bytes) -> None:
        # Behind the ports: 64 words of chunk types and 20 bytes about them; then flags as below.
        low, high = struct.unpack_from("=HH", info)
        flags, inverted = struct.unpack_from("=II", info, 284)
        if flags != 2 or inverted:
            raise UnknownRuleError
        self._destination_ports("sctp", low, high)

    def _read_comment(self, info: bytes) -> None:
        comment = text(memoryview(info.split(b"\0", 1)[0]))
        if not comment or _ESCAPED.search(comment):
            raise UnknownRuleError
        quoted = comment if _UNQUOTED.fullmatch(comment) else f'"{comment}"'
        self._matches.append(f"-m comment --comment {quoted}")

    def _read_conntrack(self, info: bytes) -> None:
        tested, inverted, mask = _CONNTRACK.unpack(info)
        names = [name for bit, name in _STATES if mask & bit]
        known = sum(bit for bit, _ in _STATES)
        if tested != _CT_STATE or inverted & ~_CT_STATE or mask & ~known or not names:
            raise UnknownRuleError
        self._matches.append(f"-m conntrack {'! ' * inverted}--ctstate {','.join(names)}")

    def _read_addrtype(self, info: bytes) -> None:
        found = {
            struct.pack("=HHI", 4, 0, 0): "-m addrtype --src-type LOCAL",
            struct.pack("=HHI", 0, 4, 0): "-m addrtype --dst-type LOCAL",
        }
        if info not in found:
            raise UnknownRuleError
        self._matches.append(found[info])

    def _read_statistic(self, info: bytes) -> None:
        mode, inverted, probability = _STATISTIC.unpack(info)
        if mode or inverted:
            raise UnknownRuleError
        share = f"{probability / _CERTAIN:.11f}"
        self._matches.append(f"-m statistic --mode random --probability {share}")

    def _read_recent(self, info: bytes) -> None:
        seconds, hits, check, inverted, name, side, mask = _RECENT.unpack(info)
        bits, mask_text = _MASK[self._family]
        if hits or inverted or side or mask != bits:
            raise UnknownRuleError
        if (check, seconds) == (_RECENT_SET, 0):
            what = "--set"
        elif check == _RECENT_CHECK | _RECENT_REAP and seconds:
            what = f"--rcheck --seconds {seconds} --reap"
        else:
            raise UnknownRuleError
        self._matches.append(
            f"-m recent {what} --name {text(memoryview(name))} --mask {mask_text} --rsource"
        )

    def _read_nfacct(self, info: bytes) -> None:
        # iptables-save prints two spaces here.
        self._matches.append(f"-m nfacct --nfacct-name  {text(memoryview(info[:32]))}")


_MATCHES: Mapping[tuple[str, int], Callable[[_Conditions, bytes], None]] = {
    ("addrtype", 1): _Conditions._read_addrtype,
    ("comment", 0): _Conditions._read_comment,
    ("conntrack", 3): _Conditions._read_conntrack,
    ("mark", 1): _Conditions._read_mark,
    ("nfacct", 0): _Conditions._read_nfacct,
    ("nfacct", 1): _Conditions._read_nfacct,
    ("recent", 1): _Conditions._read_recent,
    ("sctp", 0): _Conditions._read_sctp,
    ("statistic", 0): _Conditions._read_statistic,
    ("tcp", 0): _Conditions._read_tcp,
    ("udp", 0): _Conditions._read_udp,
}


def _target(packed: bytes, family: Family) -> str:
    expressions = list(read_expressions(packed))
    if len(expressions) != 1:
        raise UnknownRuleError
    (expression,) = expressions
    if expression.name == "immediate":
        return _verdict(expression) or _unknown()
    if expression.name != "target":
        raise UnknownRuleError
    name, info = text(memoryview(expression.fields[1])), expression.fields[3]
    read = _TARGETS.get((name, _number(expression.fields, 2)))
    if read is None:
        raise UnknownRuleError
    try:
        return read(family, info)
    except struct.error as error:
        raise UnknownRuleError from error


def _verdict(expression: Expression) -> str:
    verdict = attribute_map(attribute_map(expression.fields.get(2, b"")).get(2, b""))
    code = int.from_bytes(verdict.get(1, b""), "big", signed=True)
    if code in (_NFT_JUMP, _NFT_GOTO):
        return f"-{'j' if code == _NFT_JUMP else 'g'} {text(verdict[2])}"
    return _VERDICTS.get(code, "") if 1 in verdict else ""


def _read_mark(_family: Family, info: bytes) -> str:
    value, mask = struct.unpack("=II", info)
    return f"-j MARK --set-xmark {value:#x}/{mask:#x}"


def _read_dnat(family: Family, info: bytes) -> str:
    flags, low, high, first, last, base = _RANGE.unpack(info)
    size = family.bits // 8
    if flags != _MAP_IPS_AND_PORTS or (low, first) != (high, last) or any(base):
        raise UnknownRuleError
    return f"-j DNAT --to-destination {backend_text(Backend(low[:size] + first))}"


def _read_masquerade(family: Family, info: bytes) -> str:
    if info != _RANDOM_FULLY[family]:
        raise UnknownRuleError
    return "-j MASQUERADE --random-fully"


def _read_reject(family: Family, info: bytes) -> str:
    reason = _REJECT[family].get(struct.unpack_from("=I", info)[0])
    if reason is None:
        raise UnknownRuleError
    return f"-j REJECT --reject-with {reason}"


_TARGETS: Mapping[tuple[str, int], Callable[[Family, bytes], str]] = {
    ("DNAT", 2): _read_dnat,
    ("MARK", 2): _read_mark,
    ("MASQUERADE", 0): _read_masquerade,
    ("REJECT", 0): _read_reject,
}


def _unknown() -> str:
    raise UnknownRuleError


def _number(fields: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(fields.get(kind, b""), "big")


def _value(fields: Mapping[int, bytes], kind: int) -> bytes:
    return bytes(attribute_map(fields.get(kind, b"")).get(1, b""))


def _prefix(mask: bytes) -> int:
    """Return the length of the prefix that a mask selects. Raises UnknownRuleError."""
    bits = int.from_bytes(mask, "big")
    size = 8 * len(mask)
    prefix = bits.bit_count()
    if bits != (1 << size) - (1 << (size - prefix)):
        raise UnknownRuleError
    return prefix
