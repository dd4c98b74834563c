"""Write chains of iptables-nft's tables over netlink, in the form that its programs read.

A transaction of nf_tables is atomic. The chains that a table lacks are written first if they are
many, in transactions of their own: no rule leads to them until the last transaction, which has all
that changes what packets meet. It has the changed chains and the deleted ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import chain, islice

from pyproxy.dataplane.ahead import one_ahead
from pyproxy.dataplane.iptables.nft_rules import pack
from pyproxy.dataplane.iptables.plan import TableChange
from pyproxy.dataplane.iptables.rules import Chains
from pyproxy.model.address import Family
from pyproxy.netlink.kernel_errors import MessageError
from pyproxy.netlink.nfnetlink import Message, Nfnetlink, batch_size
from pyproxy.netlink.nftables import SUBSYSTEM, add_table, delete_chain
from pyproxy.netlink.rules import append_packed, create_chain, flush, rule_place
from pyproxy.xtables.nft_text import NFPROTO

_LARGE = 5_000
"""Messages of a transaction if they are many: 2 MB, of which two are in memory at a time."""


class NftWriter:
    """Writes in the network namespace that it was made in.

    The properties count what the kernel has been sent, and how long that took.
    """

    def __init__(self) -> None:
        self._netlink = Nfnetlink()

    @property
    def messages_sent(self) -> int:
        """The netlink messages so far."""
        return self._netlink.messages_sent

    @property
    def bytes_sent(self) -> int:
        """The bytes of these messages."""
        return self._netlink.bytes_sent

    @property
    def send_seconds(self) -> float:
        """The seconds in which the kernel processed them."""
        return self._netlink.send_seconds

    @property
    def transactions(self) -> int:
        """The transactions that the kernel has committed."""
        return self._netlink.committed

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._netlink.close()

    def create(self, family: Family, table: str, change: TableChange) -> None:
        """Write the chains that the table lacks. Blocks; raises KernelError."""
        new = change.new_chains
        most = sum(map(len, new.values())) + len(new) + 1
        packed = self._netlink.pack_ahead(_batches(_created(family, table, new)), most, SUBSYSTEM)
        with one_ahead(packed) if most > _LARGE else nullcontext(packed) as batches:
            for batch in chain.from_iterable(batches):
                _raise(self._netlink.send_packed(batch))

    def write(self, family: Family, table: str, change: TableChange) -> None:
        """Write a change that has no rules in built-in chains. Blocks; raises KernelError.

        If it fails, chains that no rule leads to may have been written. If net.core.wmem_max limits
        the send buffer to less than the change, each chain has all of its old or its new rules.
        """
        parts: list[list[Message]] = []
        if sum(map(len, change.new_chains.values())) > _LARGE:
            self.create(family, table, change)
        else:
            parts.append(list(_created(family, table, change.new_chains)))
        nfproto = NFPROTO[family]
        parts += [
            [flush(table, name, nfproto), *_filled(family, table, {name: rules})]
            for name, rules in change.old_chains.items()
        ]
        # Behind the rewritten chains, so that no jump leads to a chain that is deleted.
        deleted = change.deleted
        parts.append([flush(table, name, nfproto) for name in deleted])
        parts[-1] += [delete_chain(table, name, nfproto) for name in deleted]
        for messages in self._transactions(parts):
            self._commit(messages)

    def _transactions(self, parts: Sequence[Sequence[Message]]) -> Iterator[Sequence[Message]]:
        """Yield all parts as one transaction, or whole ones in each if the buffer is too small."""
        sizes = list(map(batch_size, parts))
        room = self._netlink.grow_send_buffer(sum(sizes))
        messages: list[Message] = []
        size = 0
        for part, more in zip(parts, sizes, strict=True):
            if size + more > room:
                yield messages
                messages, size = [], 0
            messages += part
            size += more
        yield messages

    def _commit(self, messages: Sequence[Message]) -> None:
        if messages:
            _raise(self._netlink.transact(messages, SUBSYSTEM))


def _raise(errors: Sequence[MessageError]) -> None:
    for each in errors:
        raise each.error


def _created(family: Family, table: str, chains: Chains) -> Iterator[Message]:
    # All chains come before the rules that jump to them.
    yield from _added(family, table, chains)
    yield from _filled(family, table, chains)


def _batches(messages: Iterator[Message]) -> Iterator[list[Message]]:
    while batch := list(islice(messages, _LARGE)):
        yield batch


def _added(family: Family, table: str, chains: Chains) -> list[Message]:
    """Return the messages that add empty chains, and the table if there is none."""
    if not chains:
        return []
    nfproto = NFPROTO[family]
    return [add_table(table, nfproto), *(create_chain(table, name, nfproto) for name in chains)]


def _filled(family: Family, table: str, chains: Chains) -> Iterator[Message]:
    """Yield the messages that append all rules of empty chains."""
    nfproto = NFPROTO[family]
    for name, rules in chains.items():
        place = rule_place(table, name)
        for rule in rules:
            yield append_packed(place, pack(rule, family), nfproto)
