"""nf_tables messages: what tables there are, and the chains, rules and sets of one.

Facts: include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyproxy.netlink.attributes import attribute_map, string, text
from pyproxy.netlink.nfnetlink import NFPROTO_INET, Message

SUBSYSTEM = 10

_GETTABLE, _DELTABLE = 1, 2
_GETCHAIN = 4
_DELCHAIN = 5
_GETRULE = 7
_GETSET, _DELSET = 10, 11
_GETGEN, _GEN_ID = 16, 1

_TABLE_NAME = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_SET_TABLE, _SET_NAME, _SET_COUNT = 1, 2, 20
_SET_SHAPE = (3, 5, 7)
"""A set's flags, and the lengths of its keys and of its data."""

NOTHING = memoryview(b"")
"""What an attribute that is missing holds."""


def delete_table(table: str, family: int = NFPROTO_INET) -> Message:
    """Remove a table with everything in it."""
    return Message(message_type(_DELTABLE), 0, string(_TABLE_NAME, table), family)


def get_generation() -> Message:
    """Ask how many transactions there have been in this network namespace."""
    return Message(message_type(_GETGEN), 0, b"")


def generation(reply: memoryview) -> int:
    """Read the answer to `get_generation`; it begins anew after 2**32 - 1."""
    return int.from_bytes(attribute_map(reply).get(_GEN_ID, b""), "big")


def get_tables(family: int = NFPROTO_INET) -> Message:
    """Ask for the tables of one family."""
    return Message(message_type(_GETTABLE), 0, b"", family)


def delete_chain(table: str, name: str) -> Message:
    """Remove a chain that nothing goes to; ENOENT where there is none."""
    body = string(_CHAIN_TABLE, table) + string(_CHAIN_NAME, name)
    return Message(message_type(_DELCHAIN), 0, body)


def get_chains() -> Message:
    """Ask for the chains of all tables of the inet family."""
    return Message(message_type(_GETCHAIN), 0, b"")


def delete_set(table: str, name: str) -> Message:
    """Remove a set or map that no rule looks up, with its elements."""
    return Message(message_type(_DELSET), 0, string(_SET_TABLE, table) + string(_SET_NAME, name))


def get_rules(table: str) -> Message:
    """Ask for the rules of a table."""
    return Message(message_type(_GETRULE), 0, string(_RULE_TABLE, table))


def get_sets(table: str) -> Message:
    """Ask for the sets and maps of a table."""
    return Message(message_type(_GETSET), 0, string(_SET_TABLE, table))


def table_names(replies: Iterable[memoryview]) -> set[str]:
    """Read the answers to `get_tables`; like all readers here, it passes over what has no name."""
    found = (attribute_map(reply) for reply in replies)
    return {text(table[_TABLE_NAME]) for table in found if _TABLE_NAME in table}


def chains(replies: Iterable[memoryview], table: str) -> dict[str, bytes]:
    """Read the answers to `get_chains`, of one table: what hooks each chain, empty for nothing."""
    found = (attribute_map(reply) for reply in replies)
    return {
        text(chain[_CHAIN_NAME]): b"".join(
            bytes(chain[part])
            for part in (_CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE)
            if part in chain
        )
        for chain in found
        if _CHAIN_NAME in chain and text(chain.get(_CHAIN_TABLE, NOTHING)) == table
    }


def rules(replies: Iterable[memoryview]) -> dict[str, list[bytes]]:
    """Read the answers to `get_rules`: each chain's rules, as their packed expressions."""
    found: dict[str, list[bytes]] = {}
    for reply in replies:
        rule = attribute_map(reply)
        if _RULE_CHAIN not in rule:
            continue
        expressions = bytes(rule.get(_RULE_EXPRESSIONS, b""))
        found.setdefault(text(rule[_RULE_CHAIN]), []).append(expressions)
    return found


def sets(replies: Iterable[memoryview]) -> dict[str, bytes]:
    """Read the answers to `get_sets`: each set's flags, and how long its keys and data are."""
    found = (attribute_map(reply) for reply in replies)
    return {
        text(each[_SET_NAME]): b"".join(bytes(each.get(part, b"\0" * 4)) for part in _SET_SHAPE)
        for each in found
        if _SET_NAME in each
    }


def set_sizes(replies: Iterable[memoryview]) -> dict[str, int]:
    """Read the answers to `get_sets`: how many elements each set has, from Linux 6.16 on."""
    found = (attribute_map(reply) for reply in replies)
    return {
        text(each[_SET_NAME]): int.from_bytes(each[_SET_COUNT], "big")
        for each in found
        if _SET_NAME in each and _SET_COUNT in each
    }


def message_type(number: int) -> int:
    """Give a message's type as netlink's header has it: the subsystem, and nf_tables' number."""
    return (SUBSYSTEM << 8) | number
