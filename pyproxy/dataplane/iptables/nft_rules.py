"""Rules packed as iptables-nft keeps them in nf_tables: the other rendering of `rules.Rule`.

Addresses, interfaces, protocols and verdicts are expressions of nf_tables; all else are matches and
targets of iptables, in which every release from 1.8.7 on reads them. `nft_text` reads them back.
Facts: the dumps of rules that iptables wrote, see there; include/uapi/linux/netfilter/xt_*.h, and
net/netfilter/nft_compat.c, which requires each structure's size rounded up to 8 bytes.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from functools import cache, lru_cache

from pyproxy.dataplane.iptables.rules import (
    ACCEPT,
    DROP,
    MASQUERADE,
    RESET,
    RETURN,
    Jump,
    Rule,
    Seen,
    SetMark,
    Target,
    Translate,
)
from pyproxy.errors import RejectedError
from pyproxy.model.address import Backend, Family, Mark, Network, Protocol
from pyproxy.netlink.attributes import NESTED, attribute, nested, string

_REGISTER = 1
"""NFT_REG_1, which iptables-nft uses, of 16 bytes."""

_META_IIFNAME, _META_L4PROTO = 6, 16
_NETWORK_HEADER = 1
_SOURCE = {Family.IPV4: 12, Family.IPV6: 8}
_DESTINATION = {Family.IPV4: 16, Family.IPV6: 24}
_EQUAL, _NOT_EQUAL = 0, 1
_NFT_JUMP, _NFT_GOTO = -3, -4
_VERDICTS: dict[Target, int] = {DROP: 0, ACCEPT: 1, RETURN: -5}
_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
_STATES = {"INVALID": 1, "ESTABLISHED": 2, "RELATED": 4, "NEW": 8, "UNTRACKED": 256, "DNAT": 128}
_ANY_PORT = (0, 0xFFFF)
_LOCAL = 1 << 2  # RTN_LOCAL
_RECENT_CHECK, _RECENT_SET, _RECENT_REAP = 0x01, 0x02, 0x20
_MAP_IPS_AND_PORTS, _RANDOM_FULLY = 1 | 2, 1 << 4
_REJECT_RESET = {Family.IPV4: 7, Family.IPV6: 6}
_REJECT_PORT = {Family.IPV4: 3, Family.IPV6: 4}
_RULE_EXPRESSIONS, _RULE_COMPAT = 4, 5


def _expression(name: str, *fields: bytes) -> bytes:
    return nested(1, string(1, name), nested(2, *fields))


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def _xt(kind: str, name: str, revision: int, info: bytes) -> bytes:
    """Pack a match or a target of iptables; `info` is padded to a multiple of 8 bytes."""
    padded = info + b"\0" * (-len(info) % 8)
    return _expression(kind, string(1, name), _number(2, revision), attribute(3, padded))


_COMMENT_SIZE = 256
_COMMENT_HEAD = _xt("match", "comment", 0, bytes(_COMMENT_SIZE))[:-_COMMENT_SIZE]
_COUNTER = _expression("counter", attribute(1, bytes(8)), attribute(2, bytes(8)))


def pack(rule: Rule, family: Family) -> bytes:
    """Return the attributes of a rule in a message, behind those of its table and its chain.

    Raises RejectedError for an address of the other family.
    """
    # Most rules of a node have no other conditions, and differ in the endpoint alone.
    if isinstance(rule.target, Translate) and rule == Rule(
        target=rule.target, protocol=rule.protocol, share=rule.share
    ):
        before, behind = _pick_edges(rule.protocol, rule.share, family)
        return before + _endpoints(rule.target.backend) + behind
    return _pack(rule, family)


def _pack(rule: Rule, family: Family) -> bytes:
    expressions = b"".join((*_conditions(rule, family), _COUNTER, _target(rule.target, family)))
    packed = attribute(_RULE_EXPRESSIONS | NESTED, expressions)
    return packed if rule.protocol is None else packed + _compat(rule.protocol)


@lru_cache(4096)
def _pick_edges(protocol: Protocol | None, share: int, family: Family) -> tuple[bytes, bytes]:
    """Return what a rule that translates has before its endpoint and behind it."""
    anywhere = Backend(bytes(family.bits // 8 + 2))
    packed = _pack(Rule(target=Translate(anywhere), protocol=protocol, share=share), family)
    begin = packed.index(_DNAT_HEAD) + len(_DNAT_HEAD)
    return packed[:begin], packed[begin + len(_endpoints(anywhere)) :]


@cache
def _compat(protocol: Protocol) -> bytes:
    # Matches and targets of iptables that need a protocol look for it here.
    return nested(_RULE_COMPAT, _number(1, _NUMBERS[protocol]), _number(2, 0))


def _conditions(rule: Rule, family: Family) -> Iterator[bytes]:
    """Yield the conditions in the order of `Rule.text`."""
    for network in (rule.source, rule.destination):
        if network is not None and network.family is not family:
            raise RejectedError(f"{network} is not an address of {family.label}", errno.EINVAL)
    yield from _basics(rule, family)
    yield from _matches(rule)


def _basics(rule: Rule, family: Family) -> Iterator[bytes]:
    # iptables-save does not print a source that matches every address.
    if rule.source is not None and (rule.source.prefix or rule.not_source):
        yield _network(rule.source, _SOURCE[family], inverted=rule.not_source)
    if rule.destination is not None:
        yield _network(rule.destination, _DESTINATION[family], inverted=False)
    if rule.interface:
        yield _interface(rule.interface, inverted=rule.not_interface)
    if rule.protocol is not None:
        yield _protocol(rule.protocol)


def _matches(rule: Rule) -> Iterator[bytes]:
    if rule.states:
        mask = sum(_STATES[name] for name in rule.states.split(","))
        yield _states(mask, inverted=rule.not_states)
    if rule.untranslated:
        yield _states(_STATES["DNAT"], inverted=True)
    if rule.comment:
        yield _COMMENT_HEAD + rule.comment.encode().ljust(_COMMENT_SIZE, b"\0")
    if rule.marked is not None:
        info = struct.pack("=IIB", rule.marked, rule.marked, rule.not_marked)
        yield _xt("match", "mark", 1, info)
    if rule.ports is not None and rule.protocol is not None:
        yield _ports(rule.protocol, *rule.ports)
    if rule.from_here:
        yield _xt("match", "addrtype", 1, struct.pack("=HHI", _LOCAL, 0, 0))
    if rule.to_here:
        yield _xt("match", "addrtype", 1, struct.pack("=HHI", 0, _LOCAL, 0))
    if rule.seen is not None:
        yield _recent(rule.seen)
    if rule.share:
        yield _chance(rule.share)
    if rule.counter:
        yield _xt("match", "nfacct", 0, rule.counter.encode().ljust(40, b"\0"))


def _network(network: Network, offset: int, *, inverted: bool) -> bytes:
    address = network.address
    head, size = _network_head(len(address), network.prefix, offset, inverted=inverted)
    return head + address[:size] + b"\0" * (-size % 4)


@cache
def _network_head(length: int, prefix: int, offset: int, *, inverted: bool) -> tuple[bytes, int]:
    """Return what precedes the compared bytes of an address, and how many are compared."""
    whole, rest = divmod(prefix, 8)
    # As iptables-nft does: a prefix of whole bytes needs no mask. A prefix of 0, inverted, has one.
    size = whole if whole and not rest else length
    found = _load(_NETWORK_HEADER, offset, size)
    if size != whole:
        bits = 8 * size
        mask = ((1 << bits) - (1 << (bits - prefix))).to_bytes(size, "big")
        found += _expression(
            "bitwise",
            _number(1, _REGISTER),
            _number(2, _REGISTER),
            _number(3, size),
            nested(4, attribute(1, mask)),
            nested(5, attribute(1, bytes(size))),
        )
    # The compared bytes, padded, are the end of the expression.
    compared = _compare(bytes(size), _NOT_EQUAL if inverted else _EQUAL)
    return found + compared[: -(size + -size % 4)], size


def _load(base: int, offset: int, size: int) -> bytes:
    return _expression(
        "payload", _number(1, _REGISTER), _number(2, base), _number(3, offset), _number(4, size)
    )


def _meta(key: int) -> bytes:
    return _expression("meta", _number(2, key), _number(1, _REGISTER))


def _compare(value: bytes, operator: int) -> bytes:
    return _expression(
        "cmp", _number(1, _REGISTER), _number(2, operator), nested(3, attribute(1, value))
    )


@lru_cache(64)
def _interface(name: str, *, inverted: bool) -> bytes:
    # Of a prefix the letters alone are compared, of a name its zero byte as well.
    value = name[:-1].encode() if name.endswith("+") else name.encode() + b"\0"
    return _meta(_META_IIFNAME) + _compare(value, _NOT_EQUAL if inverted else _EQUAL)


@cache
def _protocol(protocol: Protocol) -> bytes:
    return _meta(_META_L4PROTO) + _compare(bytes((_NUMBERS[protocol],)), _EQUAL)


def _states(mask: int, *, inverted: bool) -> bytes:
    # struct xt_conntrack_mtinfo3: flags of the tests, of their inversion, and the states.
    return _xt("match", "conntrack", 3, struct.pack("=146xHHH16x", 1, inverted, mask))


@lru_cache(1024)
def _ports(protocol: Protocol, low: int, high: int) -> bytes:
    name = protocol.name.lower()
    if protocol is Protocol.SCTP:
        # struct xt_sctp_info: destination ports, source ports, chunks, and what is tested. As
        # iptables does, or -D would not find the rule: unused flags are of chunk type 255.
        flags = b"\xff\0\0" * 4
        info = struct.pack("=HHHH260x12sIII", low, high, 0, 0, flags, 0, 2, 0)
    else:
        # Source ports, destination ports, and then flags, options and what is inverted.
        info = struct.pack("=HHHH8x", *_ANY_PORT, low, high)
    return _xt("match", name, 0, info)


def _recent(seen: Seen) -> bytes:
    # struct xt_recent_mtinfo_v1. xt_recent keeps names of up to 199 bytes.
    check = _RECENT_CHECK | _RECENT_REAP if seen.seconds else _RECENT_SET
    mask = b"\xff" * (seen.family.bits // 8)
    info = struct.pack("=IIBB200sBx16s", seen.seconds, 0, check, 0, seen.chain.encode(), 0, mask)
    return _xt("match", "recent", 1, info)


@lru_cache(4096)
def _chance(share: int) -> bytes:
    # struct xt_statistic_info in random mode; the last 8 bytes are the kernel's.
    return _xt("match", "statistic", 0, struct.pack("=HHI16x", 0, 0, share))


def _target(target: Target, family: Family) -> bytes:
    match target:
        case Translate(backend=backend):
            return _DNAT_HEAD + _endpoints(backend) + bytes(8)
        case Jump(chain=chain, returns=returns):
            name = chain.encode() + b"\0"
            head = _jump_head(_NFT_JUMP if returns else _NFT_GOTO, len(name))
            return head + name + b"\0" * (-len(name) % 4)
        case SetMark(mark=mark, on=on):
            return _set_mark(mark, on=on)
    return _end(target, family)


# struct nf_nat_range2: flags, the first and the last address, the same of ports, and zeros.
_DNAT_INFO = struct.pack("=I44x", _MAP_IPS_AND_PORTS)
_DNAT_HEAD = _xt("target", "DNAT", 2, _DNAT_INFO)[: 4 - len(_DNAT_INFO)]
"""The target's expression up to the addresses."""


def _endpoints(backend: Backend) -> bytes:
    """Pack the range of one endpoint."""
    address, port = backend[:-2].ljust(16, b"\0"), backend[-2:]
    return address + address + port + port


@cache
def _jump_head(code: int, size: int) -> bytes:
    """Return what precedes the name, of `size` bytes, of the chain that a rule jumps to."""
    return _verdict(code, attribute(2, bytes(size)))[: -(size + -size % 4)]


def _verdict(code: int, chain: bytes = b"") -> bytes:
    verdict = nested(2, attribute(1, struct.pack(">i", code)) + chain)
    return _expression("immediate", _number(1, 0), nested(2, verdict))


@lru_cache(4)
def _set_mark(mark: Mark, *, on: bool) -> bytes:
    return _xt("target", "MARK", 2, struct.pack("=II", mark, mark * on))


@cache
def _end(target: Target, family: Family) -> bytes:
    if target in _VERDICTS:
        return _verdict(_VERDICTS[target])
    if target == MASQUERADE:
        # IPv4 has a count before struct nf_nat_ipv4_range, IPv6 has struct nf_nat_range.
        layout = ("=II16x", 1) if family is Family.IPV4 else ("=I36x",)
        return _xt("target", "MASQUERADE", 0, struct.pack(*layout, _RANDOM_FULLY))
    reasons = _REJECT_RESET if target == RESET else _REJECT_PORT
    return _xt("target", "REJECT", 0, struct.pack("=I", reasons[family]))
