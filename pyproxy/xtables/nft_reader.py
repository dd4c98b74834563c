"""Read iptables-nft's tables over netlink, chain by chain, as iptables-nft-save prints them.

Facts: include/uapi/linux/netfilter/nf_tables.h. The kernel filters a dump of rules by table and
chain. iptables-nft keeps each table as a table of nf_tables, with the same name and in the family
ip or ip6.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Iterator, Mapping

from pyproxy.errors import KernelError
from pyproxy.model.address import Family
from pyproxy.netlink.attributes import attribute_map
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import (
    get_chain,
    get_chain_rules,
    get_chains,
    get_rules,
    read_chains,
    read_policy,
    read_rules,
)
from pyproxy.xtables import kube_names
from pyproxy.xtables.nft_text import NFPROTO, RuleTexts, UnknownRuleError
from pyproxy.xtables.saved import HOOKS, UNREAD, CountedRule, SavedTable


class NftReader:
    """Reads chains in the network namespace that it was made in.

    `table` and `chain` give rules of other programs that are not known their verdict or jump alone
    as text. They raise UnknownRuleError if iptables-nft-save alone can print a rule of pyproxy's
    chains, or a jump to one of them. All methods block on the kernel, and raise KernelError.
    """

    def __init__(self) -> None:
        self._netlink = Nfnetlink()
        self._texts = {family: RuleTexts(family) for family in Family}

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._netlink.close()

    def table(self, family: Family, name: str) -> SavedTable:
        """Return a table whose chains are read at their first use."""
        chains = NftChains(self, family, name)
        policies = {hook: policy for hook in HOOKS if (policy := self.policy(family, name, hook))}
        return SavedTable(chains, policies)

    def save(self, family: Family, name: str) -> SavedTable:
        """Return a whole table, where UNREAD and the jump stand for each rule that is not known."""
        names = self.names(family, name)
        rules = self._rules(family, name)
        chains = {each: [self._known(family, packed) for packed in rules[each]] for each in names}
        policies = {
            hook: policy
            for hook in HOOKS.intersection(names)
            if (policy := self.policy(family, name, hook))
        }
        return SavedTable(chains, policies)

    def counted(self, family: Family, name: str) -> dict[str, list[CountedRule]]:
        """Return the rules of a whole table by chain, as in `save`, with their packets."""
        texts = self._texts[family]
        return {
            chain: [(texts.packets(packed), self._known(family, packed)) for packed in rules]
            for chain, rules in self._rules(family, name).items()
        }

    def policy(self, family: Family, table: str, chain: str) -> str:
        """Return the policy of a built-in chain, empty if there is none."""
        reply = self._get_chain(family, table, chain)
        return read_policy(attribute_map(reply)) if reply is not None else ""

    def chain(self, family: Family, table: str, name: str) -> list[str] | None:
        """Return the texts of a chain's rules, None if there is no such chain."""
        request = get_chain_rules(table, name, NFPROTO[family])
        rules = read_rules(self._netlink.dump(request)).get(name)
        # A dump of a chain that does not exist is empty.
        if rules is None and self._get_chain(family, table, name) is None:
            return None
        return [self._text(family, name, rule) for rule in rules or ()]

    def names(self, family: Family, table: str) -> list[str]:
        """Return the names of a table's chains."""
        return list(read_chains(self._netlink.dump(get_chains(NFPROTO[family])), table))

    def _get_chain(self, family: Family, table: str, name: str) -> memoryview | None:
        try:
            return self._netlink.get(get_chain(table, name, NFPROTO[family]))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def _rules(self, family: Family, table: str) -> defaultdict[str, list[bytes]]:
        rules = read_rules(self._netlink.dump(get_rules(table, NFPROTO[family])))
        return defaultdict(list, rules)

    def _known(self, family: Family, packed: bytes) -> str:
        texts = self._texts[family]
        try:
            return texts.text(packed)
        except UnknownRuleError:
            return UNREAD + texts.target(packed)

    def _text(self, family: Family, chain: str, packed: bytes) -> str:
        texts = self._texts[family]
        try:
            return texts.text(packed)
        except UnknownRuleError:
            target = texts.target(packed)
            to = target.partition(" ")[2]
            if any(map(kube_names.is_iptables_mode, (chain, to))):
                raise
            return target


class NftChains(Mapping[str, list[str]]):
    """The chains of one table; each is read at its first use."""

    def __init__(self, reader: NftReader, family: Family, table: str) -> None:
        self._reader = reader
        self._family = family
        self._table = table
        self._read: dict[str, list[str] | None] = {}

    def __getitem__(self, name: str) -> list[str]:
        if name not in self._read:
            self._read[name] = self._reader.chain(self._family, self._table, name)
        texts = self._read[name]
        if texts is None:
            raise KeyError(name)
        return texts

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.names(self._family, self._table))

    def __len__(self) -> int:
        return sum(1 for _ in self)
