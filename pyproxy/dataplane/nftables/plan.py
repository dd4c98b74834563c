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
from pyproxy.dataplane.nftables import chains
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.compile import Boundary
from pyproxy.dataplane.nftables.offload_plan import NOTHING, OffloadPlan
from pyproxy.dataplane.nftables.schema import BY_NAME, TABLE
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import (
    ElementMessage,
    Shape,
    Tag,
    Value,
    add_elements,
    delete_elements,
)
from pyproxy.policy.routing import ServiceRouting


class NftablesPlan(msgspec.Struct, frozen=True):
    """Elements to remove and to add, and the state that is committed with them.

    `services` are the routings to be committed, with every endpoint in its slot. `shared` is the
    change in the number of each shared row's users. `chains` are the on-demand chains to write, and
    `reload` says that the base rules must be loaded, with `options`. `node` is the node's part if
    it changes, and `whole` says that the plan was made from a read-back.
    `boundaries` exist only where the kernel holds nothing: rows are in the order of their Services
    then, and can be cut there into batches.
    `offload` are changes of the fast path, which are written after all others.
    """

    delta: Delta[bytes, Value]
    services: Mapping[ObjectName, ServiceRouting | None]
    shared: Mapping[SharedRow, int]
    options: NftablesOptions
    chains: tuple[str, ...] = ()
    node: NodeRouting | None = None
    reload: bool = False
    whole: bool = False
    boundaries: Sequence[Boundary] = ()
    offload: OffloadPlan = NOTHING

    def __bool__(self) -> bool:
        return bool(self.delta or self.chains or self.reload or self.offload)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Yield the transaction as nft commands."""
        if self.reload:
            yield f"load the base rules of table inet {TABLE}"
        for name in self.chains:
            yield f"add chain inet {TABLE} {name}"
        yield from listing.commands("delete", self.delta.remove, TABLE, BY_NAME)
        yield from listing.commands("add", self.delta.add, TABLE, BY_NAME)
        yield from self.offload.lines()

    def counts(self) -> Mapping[str, int]:
        """Count the objects to write by their kind; an element that changes is one."""
        remove, add = self.delta.remove, self.delta.add
        elements = sum(map(len, (*remove.values(), *add.values())))
        elements -= sum(
            len(rows.keys() & add.get(name, {}).keys()) for name, rows in remove.items()
        )
        counts = Counter(element=elements, chain=len(self.chains), ruleset=int(self.reload))
        counts.update(self.offload.counts())
        return {kind: count for kind, count in counts.items() if count}

    def netlink(self) -> Iterator[str]:
        """Yield each netlink message in hexadecimal, after its purpose."""
        for name in self.chains:
            for message in chains.chain(name):
                yield f"chain {name}, type {message.kind:#06x}: {message.body.hex()}"
        for write in self.messages():
            what = f"{write.set_name}, {len(write.keys)} elements"
            yield f"{what}, type {write.message.kind:#06x}: {write.message.body.hex()}"
        for device, message in self.offload.messages():
            what = f"fast path, {device}" if device else "fast path"
            yield f"{what}, type {message.kind:#06x}: {message.body.hex()}"

    def messages(self) -> Iterator[ElementMessage]:
        """Pack the elements, removals first: adding an element that exists fails with EEXIST."""
        for name, rows in self.delta.remove.items():
            yield from delete_elements(TABLE, name, rows, BY_NAME[name][0].shape)
        for name, rows in self.delta.add.items():
            yield from add_elements(TABLE, name, rows, BY_NAME[name][0].shape)


def targets(table: Table) -> set[str]:
    """Return the on-demand chains that a table's verdicts lead to."""
    named = {
        value.target
        for name, rows in table.items()
        if Field.VERDICT in BY_NAME[name][0].data
        for value in rows.values()
        if isinstance(value, Tag)
    }
    # Verdicts to base chains, such as split4, need nothing: the base rules have those.
    return set(filter(chains.is_on_demand, named))


def without(
    plan: NftablesPlan, name: ObjectName, rows: Table, growth: Mapping[SharedRow, int]
) -> NftablesPlan:
    """Leave a Service out of a plan: its elements in the kernel stay as they are.

    `rows` are all that it has or was to have, `growth` its part in the counts of shared rows.
    """

    def keep(side: Table) -> Table:
        # By key alone, because a row whose value changes is on both sides.
        kept = {
            set_name: {
                key: value for key, value in found.items() if key not in rows.get(set_name, {})
            }
            for set_name, found in side.items()
        }
        return {set_name: found for set_name, found in kept.items() if found}

    return msgspec.structs.replace(
        plan,
        delta=Delta(keep(plan.delta.remove), keep(plan.delta.add)),
        services={other: routing for other, routing in plan.services.items() if other != name},
        shared={row: by - growth.get(row, 0) for row, by in plan.shared.items()},
        # They count rows, some of which are gone.
        boundaries=(),
    )


def without_rows(table: Table, held: Table) -> Table:
    """Return the rows of a table whose keys `held` lacks."""
    return {
        name: {key: value for key, value in rows.items() if key not in held[name]}
        if name in held
        else rows
        for name, rows in table.items()
    }


def postpone_removals(plan: NftablesPlan) -> tuple[NftablesPlan, NftablesPlan]:
    """Split a plan that loads base rules: what to write before they are loaded, and after.

    An older version may have had an element in another set, which its rules look up until then.
    Ranges are removed first, because the kernel rejects those that overlap with the new ones.
    """
    first: Table = {}
    later: Table = {}
    for name, rows in plan.delta.remove.items():
        added = plan.delta.add.get(name, {})
        for key, value in rows.items():
            waits = BY_NAME[name][0].shape is Shape.EXACT and key not in added
            (later if waits else first).setdefault(name, {})[key] = value
    return (
        msgspec.structs.replace(plan, delta=Delta(first, plan.delta.add)),
        msgspec.structs.replace(plan, delta=Delta(later, {}), chains=(), boundaries=()),
    )


def shared_changes(
    users: Mapping[SharedRow, int], growth: Mapping[SharedRow, int]
) -> tuple[Table, Table]:
    """Return the shared rows that lose their last user, and those that get their first."""
    gone: Table = {}
    new: Table = {}
    for (name, key), by in growth.items():
        before = users.get((name, key), 0)
        # Between first and last user, a row stays as it is.
        if before and before + by <= 0:
            gone.setdefault(name, {})[key] = b""
        elif not before and by > 0:
            new.setdefault(name, {})[key] = b""
    return gone, new
