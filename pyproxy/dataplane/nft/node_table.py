"""Table `inet pyproxy-node`: what outlives an agent and a proxy mode, kept in the kernel.

It has two parts. An empty chain for each kernel setting that pyproxy changed, such as
`net.ipv4.conf.all.route_localnet.was-0.set-1`, keeps the value found before and the value written.
The chain `loopback-shield` drops packets of other machines to and from loopback addresses.

The table has no rule of a proxy mode: a change of mode, an upgrade and the removal of a mode's
rules leave it alone. It is written over netlink, because iptables mode has no program nft. Empty
chains are the one kind of object that holds text and that nft 1.0.6 and 1.1.3 list and load alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress

import msgspec

from pyproxy.errors import StaleStateError
from pyproxy.netlink import nftables, rules
from pyproxy.netlink.nfnetlink import NFPROTO_IPV4, Message, Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM
from pyproxy.netlink.rule_comparison import is_same_rule

TABLE = "pyproxy-node"

_SHIELD = "loopback-shield"
# Before conntrack (-200), so that a dropped packet leaves no trace: NF_IP_PRI_RAW.
_RAW = -300
_LOOPBACK = bytes((127,))
# Most sysctls are integers without bounds: "was--1" is one that was -1.
_NAME = re.compile(r"(.+)\.was-(-?[0-9]+)\.set-(-?[0-9]+)")
# Offsets of source and destination in the IPv4 header.
_ADDRESSES = (12, 16)


class Remembered(msgspec.Struct, frozen=True):
    """The value of a setting before pyproxy's first write, and the values that it wrote.

    There are two written values from before a write until after it.
    """

    before: int
    written: frozenset[int]


class NodeTable:
    """Reads and writes the table of the network namespace that it is made in.

    One thread at a time. All methods are idempotent, block for a few requests, and raise
    KernelError.
    """

    def __init__(self) -> None:
        self._netlink = Nfnetlink()

    def close(self) -> None:
        """Close the socket; the table stays."""
        self._netlink.close()

    def generation(self) -> int:
        """Return nf_tables' number of transactions: unless it changed, the table has not."""
        return nftables.read_generation(self._netlink.get(nftables.get_generation()))

    def exists(self) -> bool:
        """Return whether there is such a table."""
        tables = nftables.read_table_names(self._netlink.dump(nftables.get_tables()))
        return TABLE in tables

    def memory(self) -> dict[str, Remembered]:
        """Read the settings that pyproxy changed."""
        found: dict[str, Remembered] = {}
        for chain in self._chains():
            if match := _NAME.fullmatch(chain):
                name, before, value = match[1], int(match[2]), int(match[3])
                earlier = found[name].written if name in found else frozenset[int]()
                found[name] = Remembered(before, earlier | {value})
        return found

    def remember(self, name: str, what: Remembered) -> None:
        """Write the values of a setting in place of those that the table has, in one step."""
        wanted = {f"{name}.was-{what.before}.set-{value}" for value in what.written}
        present = {chain for chain in self._chains() if _is_of(chain, name)}
        self._replace(present - wanted, wanted - present)

    def forget(self, name: str) -> None:
        """Delete the values of a setting, and the table if nothing is left in it."""
        chains = self._chains().keys()
        mine = {chain for chain in chains if _is_of(chain, name)}
        if mine == chains:
            self._delete()
        else:
            self._replace(mine, ())

    def has_shield(self) -> bool:
        """Return whether other machines' packets to and from loopback addresses are dropped."""
        chain = self._chains().get(_SHIELD, b"")
        if not _is_hooked(chain) or self._is_dormant():
            return False
        held = nftables.read_rules(self._netlink.dump(nftables.get_rules(TABLE))).get(_SHIELD, [])
        return len(held) == len(_ADDRESSES) and all(
            is_same_rule(b"".join(rule), found)
            for found, rule in zip(held, _shield_rules(), strict=True)
        )

    def add_shield(self) -> None:
        """Drop what other machines send to or from loopback addresses, unless that is so."""
        if self.has_shield():
            return
        chain = self._chains().get(_SHIELD)
        # The kernel refuses to change the hook of a chain that exists.
        changed = chain is not None and not _is_hooked(chain)
        self._transact(
            [
                *_declare(),
                *([nftables.delete_chain(TABLE, _SHIELD)] if changed else ()),
                rules.new_base_chain(TABLE, _SHIELD, rules.HOOK_PREROUTING, _RAW),
                rules.flush(TABLE, _SHIELD),
                *(rules.new_rule(TABLE, _SHIELD, *rule) for rule in _shield_rules()),
            ]
        )

    def remove_shield(self) -> None:
        """Delete the shield, and the table if nothing is left in it."""
        chains = self._chains().keys()
        if chains == {_SHIELD}:
            self._delete()
        elif _SHIELD in chains:
            self._replace([_SHIELD], ())

    def _is_dormant(self) -> bool:
        found = self._netlink.dump(nftables.get_tables())
        return TABLE in nftables.read_flagged_tables(found)

    def _chains(self) -> dict[str, bytes]:
        return nftables.read_chains(self._netlink.dump(nftables.get_chains()), TABLE)

    def _replace(self, gone: Iterable[str], new: Iterable[str]) -> None:
        messages = [rules.new_chain(TABLE, name) for name in sorted(new)]
        if messages:
            messages = [*_declare(), *messages]
        messages += [nftables.delete_chain(TABLE, name) for name in sorted(gone)]
        self._transact(messages)

    def _delete(self) -> None:
        with suppress(StaleStateError):
            self._transact([nftables.delete_table(TABLE)])

    def _transact(self, messages: list[Message]) -> None:
        for failed in self._netlink.transact(messages, SUBSYSTEM):
            raise failed.error


def _declare() -> list[Message]:
    return [nftables.new_table(TABLE, "kernel settings of pyproxy, see pyproxy cleanup")]


def _is_hooked(chain: bytes) -> bool:
    return rules.is_base_chain(chain, rules.HOOK_PREROUTING, _RAW)


def _is_of(chain: str, name: str) -> bool:
    match = _NAME.fullmatch(chain)
    return match is not None and match[1] == name


def _shield_rules() -> list[list[bytes]]:
    """Return a rule for destinations and one for sources.

    A reply to a connection from 127.0.0.1 to a node port has the node's address until conntrack
    reverts the translation, which is after this hook. No other packet on a link has a loopback
    address (RFC 1122, section 3.2.1.3). The kernel itself drops those of ::1.
    """
    register = rules.REGISTER
    return [
        [
            *rules.enters_by_other(register, "lo"),
            rules.load_meta(rules.META_NFPROTO, register),
            rules.equal(register, bytes((NFPROTO_IPV4,))),
            rules.load_payload(rules.NETWORK_HEADER, offset, 1, register),
            rules.equal(register, _LOOPBACK),
            rules.drop(),
        ]
        for offset in _ADDRESSES
    ]
