"""nf_tables chains and rules as messages, for the few that cannot be text.

Facts: include/uapi/linux/netfilter/nf_tables.h. Registers are the 4-byte ones; a concatenation is
loaded into consecutive registers, and a lookup names the first. An expression is its packed bytes.
"""

from __future__ import annotations

import struct

from pyproxy.netlink.attributes import NESTED, attribute, nested, string
from pyproxy.netlink.frames import NLM_F_CREATE
from pyproxy.netlink.nfnetlink import Message

REGISTER = 8
"""The first 4-byte register (NFT_REG32_00); there are 16."""

_SUBSYSTEM = 10
_NEWCHAIN, _NEWRULE, _DELRULE = 3, 6, 8
_NLM_F_APPEND = 0x800
_VERDICT_REGISTER = 0
_NFT_JUMP, _NFT_GOTO = -3, -4

META_MARK, META_NFPROTO, META_L4PROTO = 3, 15, 16
_META_NFTRACE = 12
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
CT_STATE, CT_PROTO_DST, CT_DST_IP, CT_DST_IP6 = 0, 12, 20, 22
CT_NEW = 1 << 3
HOOK_INPUT, HOOK_POSTROUTING = 1, 4

_ORIGINAL = 0
_UPDATE = 1


def new_chain(table: str, name: str) -> Message:
    """Make a chain without a hook."""
    return Message(_kind(_NEWCHAIN), NLM_F_CREATE, string(1, table) + string(3, name))


def new_base_chain(table: str, name: str, hook: int, priority: int) -> Message:
    """Make a chain of type filter that packets pass at a hook of the inet family."""
    place = nested(4, _number(1, hook), attribute(2, struct.pack(">i", priority)))
    return Message(
        _kind(_NEWCHAIN),
        NLM_F_CREATE,
        string(1, table) + string(3, name) + place + string(7, "filter"),
    )


def new_rule(table: str, chain: str, *expressions: bytes) -> Message:
    """Append a rule."""
    body = string(1, table) + string(2, chain) + nested(4, *expressions)
    return Message(_kind(_NEWRULE), NLM_F_CREATE | _NLM_F_APPEND, body)


def flush(table: str, chain: str) -> Message:
    """Remove all rules of a chain."""
    return Message(_kind(_DELRULE), 0, string(1, table) + string(2, chain))


def load_payload(base: int, offset: int, size: int, register: int) -> bytes:
    """Load `size` bytes of the packet from `offset` in a header."""
    return _expression(
        "payload", _number(1, register), _number(2, base), _number(3, offset), _number(4, size)
    )


def load_meta(key: int, register: int) -> bytes:
    """Load what the kernel knows of the packet beside its bytes."""
    return _expression("meta", _number(1, register), _number(2, key))


def load_original(key: int, register: int) -> bytes:
    """Load a part of what the connection's first packet said before it was translated."""
    direction = attribute(3, bytes((_ORIGINAL,)))
    return _expression("ct", _number(1, register), _number(2, key), direction)


def is_new(register: int) -> list[bytes]:
    """Go on with the rule only for the first packet of a connection."""
    wanted, nothing = struct.pack("=I", CT_NEW), struct.pack("=I", 0)
    return [
        _expression("ct", _number(1, register), _number(2, CT_STATE)),
        _bitwise(register, wanted, nothing),
        _compare(register, 1, nothing),
    ]


def equal(register: int, value: bytes) -> bytes:
    """Go on with the rule only if the register holds `value`."""
    return _compare(register, 0, value)


def limit(rate: int, burst: int) -> bytes:
    """Go on with the rule for at most `rate` packets a second, and `burst` at once."""
    a_second = attribute(2, struct.pack(">Q", 1))
    return _expression(
        "limit", attribute(1, struct.pack(">Q", rate)), a_second, _number(3, burst), _number(4, 0)
    )


def have_traced(register: int) -> list[bytes]:
    """Have the kernel tell of every rule that the packet meets from now on."""
    one = nested(2, attribute(1, b"\x01"))
    return [
        _expression("immediate", _number(1, register), one),
        _expression("meta", _number(2, _META_NFTRACE), _number(3, register)),
    ]


def random_number(modulus: int, offset: int, register: int) -> bytes:
    """Load a random number from `offset` up to, not including, `offset + modulus`."""
    return _expression(
        "numgen", _number(1, register), _number(2, modulus), _number(3, 1), _number(4, offset)
    )


def look_up(map_name: str, key_register: int, data_register: int) -> bytes:
    """Load a map's data; a key that is not there ends the rule."""
    return _expression(
        "lookup", string(1, map_name), _number(2, key_register), _number(3, data_register)
    )


def is_in(set_name: str, key_register: int) -> bytes:
    """Go on with the rule only if the set has the key."""
    return _expression("lookup", string(1, set_name), _number(2, key_register))


def look_up_verdict(map_name: str, key_register: int) -> bytes:
    """Do what a verdict map says; a key that is not there ends the rule."""
    return _expression(
        "lookup", string(1, map_name), _number(2, key_register), _number(3, _VERDICT_REGISTER)
    )


def update(map_name: str, key_register: int, data_register: int, timeout: int) -> bytes:
    """Add an element to a map, or begin the timeout of one that is there anew; in seconds."""
    return _expression(
        "dynset",
        string(1, map_name),
        _number(3, _UPDATE),
        _number(4, key_register),
        _number(5, data_register),
        attribute(6, struct.pack(">Q", timeout * 1000)),
    )


def dnat(nfproto: int, address_register: int, port_register: int) -> bytes:
    """Translate the connection's destination; the rest of the rules is not looked at."""
    return _expression(
        "nat",
        _number(1, 1),
        _number(2, nfproto),
        _number(3, address_register),
        _number(5, port_register),
    )


def jump(chain: str) -> bytes:
    """Go through another chain, and on with the next rule after it."""
    return _immediate(_NFT_JUMP, chain)


def go_to(chain: str) -> bytes:
    """Go on in another chain and do not come back."""
    return _immediate(_NFT_GOTO, chain)


def _immediate(code: int, chain: str) -> bytes:
    verdict = attribute(1, struct.pack(">i", code)) + string(2, chain)
    return _expression(
        "immediate",
        _number(1, _VERDICT_REGISTER),
        nested(2, attribute(2 | NESTED, verdict)),
    )


def _kind(message: int) -> int:
    return (_SUBSYSTEM << 8) | message


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def _compare(register: int, operator: int, value: bytes) -> bytes:
    return _expression(
        "cmp", _number(1, register), _number(2, operator), nested(3, attribute(1, value))
    )


def _bitwise(register: int, mask: bytes, xor: bytes) -> bytes:
    return _expression(
        "bitwise",
        _number(1, register),
        _number(2, register),
        _number(3, 4),
        nested(4, attribute(1, mask)),
        nested(5, attribute(1, xor)),
    )


def _expression(name: str, *fields: bytes) -> bytes:
    return nested(1, string(1, name), nested(2, *fields))
