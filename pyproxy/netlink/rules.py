"""nf_tables chains and rules: packed for those that nft cannot load, and read back.

Facts: include/uapi/linux/netfilter/nf_tables.h. Registers are the 4-byte ones; a concatenation is
loaded into consecutive registers, and a lookup names the first. An expression is its packed bytes.
nft pads an interface's name with zeros to 16 bytes, and writes a prefix as its letters alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from pyproxy.netlink.attributes import (
    NESTED,
    attribute,
    attribute_map,
    attributes,
    nested,
    string,
    text,
)
from pyproxy.netlink.frames import NLM_F_CREATE, NLM_F_EXCL
from pyproxy.netlink.nfnetlink import NFPROTO_INET, Message
from pyproxy.netlink.nftables import message_type

REGISTER = 8
"""The first 4-byte register (NFT_REG32_00); there are 16."""

_NEWCHAIN, _NEWRULE, _DELRULE = 3, 6, 8
_APPEND_RULE = message_type(_NEWRULE)
_NLM_F_APPEND = 0x800
_VERDICT_REGISTER = 0
_NFT_JUMP, _NFT_GOTO, _NFT_RETURN = -3, -4, -5
_NF_DROP, _NF_ACCEPT = 0, 1

META_MARK, META_NFPROTO, META_L4PROTO = 3, 15, 16
_META_IIFNAME, _META_NFTRACE = 6, 12
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
CT_STATE, CT_PROTO_DST, CT_DST_IP, CT_DST_IP6 = 0, 12, 20, 22
_CT_DIRECTION, _CT_STATUS = 1, 2
IPS_SEEN_REPLY, IPS_ASSURED, IPS_DST_NAT = 1 << 1, 1 << 2, 1 << 5
# NF_CT_STATE_BIT(IP_CT_NEW); bits 0, 1 and 2 are invalid, established and related.
CT_NEW = 1 << 3
HOOK_PREROUTING, HOOK_INPUT, HOOK_FORWARD, HOOK_POSTROUTING = 0, 1, 2, 4

# The numbers of attributes below are those of enum nft_<expression>_attributes.
_ORIGINAL = 0
# NFT_DYNSET_OP_ADD, which is 0, would leave the timeout of an existing element as it is.
_UPDATE = 1
_DAY = 86_400


_NAME, _DATA = 1, 2
_LOOKUP_SET = 1
_META_KEY = 2
_COUNTER_PACKETS = 2
_CMP_DATA = 3
_BITWISE_XOR = 5
_VALUE = 1


class Expression(msgspec.Struct, frozen=True):
    """One expression of a rule that was read back: its kernel name and its attributes."""

    name: str
    fields: dict[int, bytes]


def new_chain(table: str, name: str) -> Message:
    """Add a regular chain, which no hook calls."""
    return Message(message_type(_NEWCHAIN), NLM_F_CREATE, string(1, table) + string(3, name))


def create_chain(table: str, name: str, family: int) -> Message:
    """Add a regular chain of a family; EEXIST if there is one of this name."""
    body = string(1, table) + string(3, name)
    return Message(message_type(_NEWCHAIN), NLM_F_CREATE | NLM_F_EXCL, body, family)


def new_base_chain(table: str, name: str, hook: int, priority: int) -> Message:
    """Add a base chain of type filter at a hook of the inet family."""
    # No policy attribute: the kernel's default is accept.
    place = nested(4, _place(hook, priority))
    return Message(
        message_type(_NEWCHAIN),
        NLM_F_CREATE,
        string(1, table) + string(3, name) + place + string(7, "filter"),
    )


def is_base_chain(held: bytes, hook: int, priority: int) -> bool:
    """Return whether `nftables.read_chains` found a chain as `new_base_chain` adds it."""
    return held == _place(hook, priority) + struct.pack(">I", _NF_ACCEPT) + b"filter\0"


def new_rule(table: str, chain: str, *expressions: bytes) -> Message:
    """Append a rule to a chain."""
    body = string(1, table) + string(2, chain) + nested(4, *expressions)
    # Without NLM_F_APPEND the kernel inserts the rule at the start of the chain.
    return Message(message_type(_NEWRULE), NLM_F_CREATE | _NLM_F_APPEND, body)


def rule_place(table: str, chain: str) -> bytes:
    """Pack the attributes that say which chain a rule is in, for `append_packed`."""
    return string(1, table) + string(2, chain)


def append_packed(place: bytes, packed: bytes, family: int) -> Message:
    """Append a rule of which the attributes are packed to a chain."""
    return Message(_APPEND_RULE, NLM_F_CREATE | _NLM_F_APPEND, place + packed, family)


def flush(table: str, chain: str, family: int = NFPROTO_INET) -> Message:
    """Delete all rules of a chain."""
    # Without a rule's handle, DELRULE deletes all rules of the chain.
    return Message(message_type(_DELRULE), 0, rule_place(table, chain), family)


def load_payload(base: int, offset: int, size: int, register: int) -> bytes:
    """Load `size` bytes of the packet from `offset` in a header."""
    return _expression(
        "payload", _number(1, register), _number(2, base), _number(3, offset), _number(4, size)
    )


def load_meta(key: int, register: int) -> bytes:
    """Load a packet's metadata, such as its mark."""
    return _expression("meta", _number(1, register), _number(2, key))


def load_original(key: int, register: int) -> bytes:
    """Load a field of the connection's original tuple, before any translation."""
    direction = attribute(3, bytes((_ORIGINAL,)))
    return _expression("ct", _number(1, register), _number(2, key), direction)


def is_new(register: int) -> list[bytes]:
    """Match the first packet of a connection."""
    # Registers hold packet fields in network order, but marks and ct states in the host's.
    new, zero = struct.pack("=I", CT_NEW), struct.pack("=I", 0)
    return [
        _expression("ct", _number(1, register), _number(2, CT_STATE)),
        _bitwise(register, new, zero),
        _compare(register, 1, zero),
    ]


def has_status(register: int, bits: int) -> list[bytes]:
    """Match connections whose conntrack status has all of these bits."""
    wanted = struct.pack("=I", bits)
    return [
        _expression("ct", _number(1, register), _number(2, _CT_STATUS)),
        _bitwise(register, wanted, bytes(4)),
        _compare(register, 0, wanted),
    ]


def is_original(register: int) -> list[bytes]:
    """Match packets of the client's direction."""
    return [
        _expression("ct", _number(1, register), _number(2, _CT_DIRECTION)),
        _compare(register, 0, bytes((_ORIGINAL,))),
    ]


def counter() -> bytes:
    """Count packets and bytes."""
    return _expression("counter")


def flow_add(flowtable: str) -> bytes:
    """Add the packet's connection to a flowtable; the rule ends here if that is not possible."""
    return _expression("flow_offload", string(1, flowtable))


def equal(register: int, value: bytes) -> bytes:
    """Match if the register holds `value`."""
    return _compare(register, 0, value)


def enters_by_other(register: int, interface: str) -> list[bytes]:
    """Match packets that came in by another interface than this one."""
    # The kernel compares all 16 bytes of the name, IFNAMSIZ.
    name = interface.encode().ljust(16, b"\0")
    return [load_meta(_META_IIFNAME, register), _compare(register, 1, name)]


def limit(rate: int, burst: int) -> bytes:
    """Match at most `rate` packets a second, and `burst` at once."""
    per_second = attribute(2, struct.pack(">Q", 1))
    return _expression(
        "limit", attribute(1, struct.pack(">Q", rate)), per_second, _number(3, burst), _number(4, 0)
    )


def enable_trace(register: int) -> list[bytes]:
    """Make the kernel trace the packet from here on."""
    # nftrace reads one byte of the register.
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
    """Load a map's data; the rule does not match if the key is absent."""
    return _expression(
        "lookup", string(1, map_name), _number(2, key_register), _number(3, data_register)
    )


def is_in(set_name: str, key_register: int) -> bytes:
    """Match if the set has the key."""
    return _expression("lookup", string(1, set_name), _number(2, key_register))


def look_up_verdict(map_name: str, key_register: int) -> bytes:
    """Apply the verdict of a verdict map; the rule does not match if the key is absent."""
    return _expression(
        "lookup", string(1, map_name), _number(2, key_register), _number(3, _VERDICT_REGISTER)
    )


def update(map_name: str, key_register: int, data_register: int, timeout_ms: int) -> bytes:
    """Add an element to a map, or restart the timeout of an existing one.

    The rule does not match if the map is full.
    """
    return _dynset(map_name, key_register, timeout_ms, _number(5, data_register))


def update_set(set_name: str, key_register: int, timeout_ms: int) -> bytes:
    """Add an element to a set, as `update` does."""
    return _dynset(set_name, key_register, timeout_ms)


def update_limited(
    set_name: str, key_register: int, timeout_ms: int, per_day: int, burst: int
) -> bytes:
    """Add an element to a set, as `update` does, and match only below its own rate.

    An existing element keeps the rate that it was added with.
    """
    # The kernel computes in nanoseconds per packet, so a rate per day is exact for high ones too.
    limit = (
        attribute(1, struct.pack(">Q", per_day)),
        attribute(2, struct.pack(">Q", _DAY)),
        _number(3, burst),
        _number(4, 0),
    )
    expression = nested(7, string(1, "limit"), nested(2, *limit))
    return _dynset(set_name, key_register, timeout_ms, expression)


def update_counted(set_name: str, key_register: int, timeout_ms: int) -> bytes:
    """Add an element to a set, as `update` does, and count the packet in its own counter."""
    return _dynset(set_name, key_register, timeout_ms, nested(7, string(1, "counter"), nested(2)))


def load_number(value: int, register: int) -> bytes:
    """Load a number in the host's byte order, as marks have it."""
    data = nested(2, attribute(1, struct.pack("=I", value)))
    return _expression("immediate", _number(1, register), data)


def return_() -> bytes:
    """Return to the rule that jumped here; at a hook, accept."""
    return _verdict(_NFT_RETURN)


def dnat(nfproto: int, address_register: int, port_register: int) -> bytes:
    """Translate the connection's destination; evaluation of the base chain ends here."""
    # The kernel accepts a nat expression only in chains that base chains of type nat lead to.
    return _expression(
        "nat",
        _number(1, 1),
        _number(2, nfproto),
        _number(3, address_register),
        _number(5, port_register),
    )


def drop() -> bytes:
    """Drop the packet."""
    return _verdict(_NF_DROP)


def jump(chain: str) -> bytes:
    """Jump to another chain, which returns to the next rule."""
    return _immediate(_NFT_JUMP, chain)


def go_to(chain: str) -> bytes:
    """Go to another chain, which does not return here."""
    return _immediate(_NFT_GOTO, chain)


def read_expressions(packed: bytes) -> Iterator[Expression]:
    """Yield the expressions of a rule, as `nftables.read_rules` returns it."""
    for _, item in attributes(packed):
        parts = attribute_map(item)
        if _NAME in parts:
            fields = attribute_map(parts[_DATA]) if _DATA in parts else {}
            yield Expression(
                text(parts[_NAME]), {kind: bytes(value) for kind, value in fields.items()}
            )


def read_set_names(packed: bytes) -> frozenset[str]:
    """Return the names of the sets that a rule looks up."""
    return frozenset(
        text(memoryview(each.fields[_LOOKUP_SET]))
        for each in read_expressions(packed)
        if each.name == "lookup" and _LOOKUP_SET in each.fields
    )


def read_incoming_interface(packed: bytes) -> str:
    """Return the interface that a rule compares, with `*` for a prefix; empty if there is none."""
    is_loaded = False
    for each in read_expressions(packed):
        if is_loaded and each.name == "cmp":
            name = attribute_map(each.fields.get(_CMP_DATA, b"")).get(_VALUE, memoryview(b""))
            is_padded = bytes(name).endswith(b"\0")
            return text(name) + ("" if is_padded else "*")
        key = int.from_bytes(each.fields.get(_META_KEY, b""), "big")
        is_loaded = each.name == "meta" and key == _META_IIFNAME
    return ""


def read_counted(packed: bytes) -> int | None:
    """Return the packets that a rule's counter has counted; None if it has no counter."""
    for each in read_expressions(packed):
        if each.name == "counter":
            return int.from_bytes(each.fields.get(_COUNTER_PACKETS, b""), "big")
    return None


def read_bits_set(packed: bytes) -> bytes:
    """Return the bits that a rule's first bitwise expression sets; empty if there is none."""
    for each in read_expressions(packed):
        # bitwise computes (value & mask) ^ xor; nft compiles `mark or X` to mask ~X and xor X.
        if each.name == "bitwise":
            value = attribute_map(each.fields.get(_BITWISE_XOR, b"")).get(_VALUE, b"")
            return bytes(value)
    return b""


def _immediate(code: int, chain: str) -> bytes:
    return _verdict(code, string(2, chain))


def _verdict(code: int, chain: bytes = b"") -> bytes:
    verdict = attribute(1, struct.pack(">i", code)) + chain
    return _expression(
        "immediate",
        _number(1, _VERDICT_REGISTER),
        nested(2, attribute(2 | NESTED, verdict)),
    )


def _dynset(set_name: str, key_register: int, timeout_ms: int, *more: bytes) -> bytes:
    return _expression(
        "dynset",
        string(1, set_name),
        _number(3, _UPDATE),
        _number(4, key_register),
        # NFTA_DYNSET_TIMEOUT is in milliseconds.
        attribute(6, struct.pack(">Q", timeout_ms)),
        *more,
    )


def _place(hook: int, priority: int) -> bytes:
    return _number(1, hook) + attribute(2, struct.pack(">i", priority))


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
