"""One transaction on the table, as a value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from pyproxy.dataplane.diff import Delta
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nft import listing
from pyproxy.dataplane.nft.rows import SharedRow
from pyproxy.dataplane.nft.schema import Field, Table
from pyproxy.dataplane.nftables import chains, schema
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.compile_all import Cut
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import ElementMessage, Tag, Value, add_elements, delete_elements
from pyproxy.policy.routing import ServiceRouting


class NftablesPlan(msgspec.Struct, frozen=True):
    """Elements to remove and to add, and what is so once that is done.

    `services` are the answers as they will have been programmed, with every endpoint in its slot;
    `chains` are those, of the ones made when needed, to be made or made anew, and `reload` says
    that the fixed ones must be loaded.

    `shared` is by how many each shared row's users grow. `options` is the ruleset's, `node` is the
    node's part where that changes, and `whole` says that the plan was made against the kernel.
    `cuts` are where it is cut when it goes in parts, and there are some only where the kernel holds
    nothing: all rows are in the order of their Services then.
    """

    delta: Delta[bytes, Value]
    services: Mapping[ObjectName, ServiceRouting | None]
    shared: Mapping[SharedRow, int]
    options: NftablesOptions
    chains: tuple[str, ...] = ()
    node: NodeRouting | None = None
    reload: bool = False
    whole: bool = False
    cuts: Sequence[Cut] = ()

    def __bool__(self) -> bool:
        return bool(self.delta or self.chains or self.reload)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Spell out the transaction as nft would."""
        if self.reload:
            yield f"load the fixed rules of table inet {schema.TABLE}"
        for name in self.chains:
            yield f"add chain inet {schema.TABLE} {name}"
        yield from listing.commands("delete", self.delta.remove, schema.TABLE, schema.BY_NAME)
        yield from listing.commands("add", self.delta.add, schema.TABLE, schema.BY_NAME)

    def counts(self) -> Mapping[str, int]:
        """How many objects of each kind it writes; an element that changes is one."""
        elements = {
            (name, key)
            for side in (self.delta.remove, self.delta.add)
            for name, rows in side.items()
            for key in rows
        }
        counts = {"element": len(elements), "chain": len(self.chains), "ruleset": int(self.reload)}
        return {kind: count for kind, count in counts.items() if count}

    def netlink(self) -> Iterator[str]:
        """Write its messages in hexadecimal, each with what it is for."""
        for name in self.chains:
            for message in chains.chain(name):
                yield f"chain {name}, type {message.kind:#06x}: {message.body.hex()}"
        for write in self.messages():
            what = f"{write.set_name}, {len(write.keys)} elements"
            yield f"{what}, type {write.message.kind:#06x}: {write.message.body.hex()}"

    def messages(self) -> Iterator[ElementMessage]:
        """Pack the elements, removals first, as the kernel wants a changed one."""
        for name, rows in self.delta.remove.items():
            shape = schema.BY_NAME[name][0].shape
            yield from delete_elements(schema.TABLE, name, rows, shape)
        for name, rows in self.delta.add.items():
            yield from add_elements(schema.TABLE, name, rows, schema.BY_NAME[name][0].shape)


def targets(table: Table) -> set[str]:
    """Name the chains, of those made when needed, that a table's elements go to."""
    named = {
        value.target
        for name, rows in table.items()
        if Field.VERDICT in schema.BY_NAME[name][0].data
        for value in rows.values()
        if isinstance(value, Tag)
    }
    return set(filter(chains.is_made_when_needed, named))


def without(
    plan: NftablesPlan, name: ObjectName, rows: Table, growth: Mapping[SharedRow, int]
) -> NftablesPlan:
    """Leave a Service out of a plan: what the kernel holds of it stays.

    `rows` are those that it has or was to have, `growth` what it meant for the shared ones.
    """

    def keep(side: Table) -> Table:
        kept = {
            name: {key: value for key, value in held.items() if key not in rows.get(name, {})}
            for name, held in side.items()
        }
        return {name: held for name, held in kept.items() if held}

    return msgspec.structs.replace(
        plan,
        delta=Delta(keep(plan.delta.remove), keep(plan.delta.add)),
        services={other: routing for other, routing in plan.services.items() if other != name},
        shared={row: by - growth.get(row, 0) for row, by in plan.shared.items()},
        cuts=(),
    )


def shared_changes(
    before: Counter[SharedRow], growth: Mapping[SharedRow, int]
) -> tuple[Table, Table]:
    """Tell which shared rows go, and which come, when the numbers of their users change."""
    gone: Table = {}
    new: Table = {}
    for (name, key), by in growth.items():
        users = before[name, key]
        if users and users + by <= 0:
            gone.setdefault(name, {})[key] = b""
        elif not users and by > 0:
            new.setdefault(name, {})[key] = b""
    return gone, new
