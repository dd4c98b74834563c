"""nf_tables messages: requests for tables, chains, rules and sets, and their replies.

Facts: include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pyproxy.netlink.attributes import attribute, attribute_map, string, text
from pyproxy.netlink.frames import NLM_F_CREATE
from pyproxy.netlink.nfnetlink import NFPROTO_INET, Message

SUBSYSTEM = 10

# nfnetlink accepts nf_tables' NEW and DEL messages in a batch only, GET messages outside of one.
_NEWTABLE, _GETTABLE, _DELTABLE = 0, 1, 2
_GETCHAIN = 4
_DELCHAIN = 5
_GETRULE = 7
_GETSET, _DELSET = 10, 11
_GETGEN, _GEN_ID = 16, 1

_TABLE_NAME, _TABLE_FLAGS, _TABLE_USERDATA = 1, 2, 6
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_SET_TABLE, _SET_NAME, _SET_COUNT = 1, 2, 20
_SET_SHAPE = (3, 5, 7)
"""The attributes of a set's flags, and of the lengths of its keys and of its data."""

NOTHING = memoryview(b"")
"""The value of a missing attribute."""


def new_table(table: str, comment: str) -> Message:
    """Add a table of the inet family, or clear its flags; nft lists the comment of a new one."""
    # nft's own record in userdata: kind 0 is a comment, then its size with the zero byte.
    text = comment.encode() + b"\0"
    record = bytes((0, len(text))) + text
    flags = attribute(_TABLE_FLAGS, bytes(4))
    body = string(_TABLE_NAME, table) + flags + attribute(_TABLE_USERDATA, record)
    return Message(message_type(_NEWTABLE), NLM_F_CREATE, body)


def add_table(table: str, family: int) -> Message:
    """Add a table without flags and comment; one that exists stays as it is."""
    return Message(message_type(_NEWTABLE), NLM_F_CREATE, string(_TABLE_NAME, table), family)


def delete_table(table: str, family: int = NFPROTO_INET) -> Message:
    """Delete a table with everything in it; ENOENT if there is none."""
    return Message(message_type(_DELTABLE), 0, string(_TABLE_NAME, table), family)


def get_generation() -> Message:
    """Request the number of transactions in this network namespace."""
    return Message(message_type(_GETGEN), 0, b"")


def read_generation(reply: memoryview) -> int:
    """Read the reply to `get_generation`; after 2**32 - 1 the number is 1 again."""
    # A commit that changes nothing, such as of a table that exists, leaves the number as it is.
    return int.from_bytes(attribute_map(reply).get(_GEN_ID, b""), "big")


def get_tables(family: int = NFPROTO_INET) -> Message:
    """Request the tables of one family."""
    return Message(message_type(_GETTABLE), 0, b"", family)


def delete_chain(table: str, name: str, family: int = NFPROTO_INET) -> Message:
    """Delete a chain that no rule goes to; ENOENT if there is none."""
    # Without NLM_F_NONREC the kernel deletes the chain's own rules with it.
    body = string(_CHAIN_TABLE, table) + string(_CHAIN_NAME, name)
    return Message(message_type(_DELCHAIN), 0, body, family)


def get_chains(family: int = NFPROTO_INET) -> Message:
    """Request the chains of all tables of one family."""
    # The kernel filters a dump of chains by family only; `read_chains` selects the table.
    return Message(message_type(_GETCHAIN), 0, b"", family)


def get_chain(table: str, name: str, family: int = NFPROTO_INET) -> Message:
    """Request one chain; ENOENT if there is none."""
    body = string(_CHAIN_TABLE, table) + string(_CHAIN_NAME, name)
    return Message(message_type(_GETCHAIN), 0, body, family)


def delete_set(table: str, name: str) -> Message:
    """Delete a set or map that no rule looks up, with its elements."""
    return Message(message_type(_DELSET), 0, string(_SET_TABLE, table) + string(_SET_NAME, name))


def get_rules(table: str, family: int = NFPROTO_INET) -> Message:
    """Request the rules of a table."""
    return Message(message_type(_GETRULE), 0, string(_RULE_TABLE, table), family)


def get_chain_rules(table: str, chain: str, family: int = NFPROTO_INET) -> Message:
    """Request the rules of one chain; the reply has none if the chain does not exist."""
    body = string(_RULE_TABLE, table) + string(_RULE_CHAIN, chain)
    return Message(message_type(_GETRULE), 0, body, family)


def get_sets(table: str) -> Message:
    """Request the sets and maps of a table."""
    return Message(message_type(_GETSET), 0, string(_SET_TABLE, table))


def read_table_names(replies: Iterable[memoryview]) -> set[str]:
    """Read the replies to `get_tables`; all readers here skip objects without a name."""
    found = (attribute_map(reply) for reply in replies)
    return {text(table[_TABLE_NAME]) for table in found if _TABLE_NAME in table}


def read_flagged_tables(replies: Iterable[memoryview]) -> set[str]:
    """Read the replies to `get_tables`: the tables with flags, such as dormant."""
    found = (attribute_map(reply) for reply in replies)
    return {
        text(table[_TABLE_NAME])
        for table in found
        if _TABLE_NAME in table and any(table.get(_TABLE_FLAGS, NOTHING))
    }


def read_chains(replies: Iterable[memoryview], table: str) -> dict[str, bytes]:
    """Read the replies to `get_chains`: each chain's hook, policy and type; empty if regular."""
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


def read_policy(chain: Mapping[int, memoryview]) -> str:
    """Return the policy of a chain at a hook, given its attributes; empty for other chains."""
    if _CHAIN_POLICY not in chain:
        return ""
    return "ACCEPT" if int.from_bytes(chain[_CHAIN_POLICY], "big") else "DROP"


def read_rules(replies: Iterable[memoryview]) -> dict[str, list[bytes]]:
    """Read the replies to `get_rules`: each chain's rules, as packed expressions."""
    # A dump has a chain's rules in the order of their evaluation.
    found: dict[str, list[bytes]] = {}
    for reply in replies:
        rule = attribute_map(reply)
        if _RULE_CHAIN not in rule:
            continue
        expressions = bytes(rule.get(_RULE_EXPRESSIONS, b""))
        found.setdefault(text(rule[_RULE_CHAIN]), []).append(expressions)
    return found


def read_sets(replies: Iterable[memoryview]) -> dict[str, bytes]:
    """Read the replies to `get_sets`: each set's flags, and the lengths of its keys and data."""
    found = (attribute_map(reply) for reply in replies)
    return {
        text(each[_SET_NAME]): b"".join(bytes(each.get(part, b"\0" * 4)) for part in _SET_SHAPE)
        for each in found
        if _SET_NAME in each
    }


def read_set_sizes(replies: Iterable[memoryview]) -> dict[str, int]:
    """Read the replies to `get_sets`: the sizes of sets, which Linux 6.16 and later report."""
    found = (attribute_map(reply) for reply in replies)
    return {
        text(each[_SET_NAME]): int.from_bytes(each[_SET_COUNT], "big")
        for each in found
        if _SET_NAME in each and _SET_COUNT in each
    }


def message_type(number: int) -> int:
    """Return the type for netlink's header: the subsystem, and nf_tables' message number."""
    return (SUBSYSTEM << 8) | number
