"""A large plan as several transactions.

No other program can write to nf_tables while the kernel works through a transaction: not a CNI
plugin that connects a pod, nor a firewall. A large plan is therefore committed in batches. All
rows that a Service gains, and all that its frontends lose, are in one batch, so that a packet
finds each Service either as it was or as it is to be. Rows that no Service needs go last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import groupby, islice

import msgspec

from pyproxy.dataplane.ahead import one_ahead
from pyproxy.dataplane.diff import Delta
from pyproxy.dataplane.nft.rows import SharedRow, frontend_key
from pyproxy.dataplane.nft.schema import FRONTEND, Rows, Table
from pyproxy.dataplane.nftables.compile import Boundary, shared_rows
from pyproxy.dataplane.nftables.plan import NftablesPlan
from pyproxy.dataplane.nftables.schema import (
    BY_NAME,
    NODE_PORT,
    NODE_PORT_ADDRESSES,
    NODE_PORT_KEY,
    owner_key,
)
from pyproxy.model.address import Family
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import ElementMessage, Shape, Value
from pyproxy.policy.routing import ServiceRouting

Owner = bytes | SharedRow
"""The key that decides a row's batch: its frontend, or a shared row itself."""

_Batch = tuple[Mapping[ObjectName, ServiceRouting | None], Delta[bytes, Value]]

_WIDTHS = {family: sum(field.size(family) for field in FRONTEND) for family in Family}
"""The bytes of a frontend's key."""


class PackedBatch(msgspec.Struct, frozen=True):
    """A plan, or a batch of one, and the messages that write its elements."""

    plan: NftablesPlan
    writes: tuple[ElementMessage, ...]


def pack(plan: NftablesPlan) -> PackedBatch:
    """Pack a plan's elements."""
    return PackedBatch(plan, tuple(plan.messages()))


@contextmanager
def packed_batches(plan: NftablesPlan, limit: int) -> Iterator[Iterable[PackedBatch]]:
    """Return a plan's batches of about `limit` rows, each packed while the one before is sent."""
    if row_count(plan) <= limit:
        yield (pack(plan),)
        return
    with one_ahead(map(pack, split(plan, limit))) as batches:
        yield batches


def row_count(plan: NftablesPlan) -> int:
    """Count the rows that a plan removes and adds."""
    sides = (plan.delta.remove, plan.delta.add)
    return sum(len(rows) for side in sides for rows in side.values())


def split(plan: NftablesPlan, limit: int) -> Iterator[NftablesPlan]:
    """Split a plan into batches of about `limit` rows; a plan of at most `limit` rows is one.

    Where the plan has boundaries, they were made for `limit`. A batch names the Services that it
    writes, and the last batch names all of them. Shared rows' counts and the node's part stay with
    the plan.
    """
    if row_count(plan) <= limit:
        yield plan
        return
    batches = list(_split_at_boundaries(plan)) if plan.boundaries else _split_by_owner(plan, limit)
    for number, (services, delta) in enumerate(batches):
        yield msgspec.structs.replace(
            plan,
            delta=delta,
            services=plan.services if number == len(batches) - 1 else services,
            shared={},
            # Verdicts of all batches may lead to these chains, so they must exist first.
            chains=() if number else plan.chains,
            node=None,
            boundaries=(),
        )


def _split_at_boundaries(plan: NftablesPlan) -> Iterator[_Batch]:
    """Cut the rows at the plan's boundaries, by their number alone."""
    services = iter(plan.services.items())
    left = {name: iter(rows.items()) for name, rows in plan.delta.add.items()}
    before = Boundary(0, {})
    for boundary in plan.boundaries:
        # A repair adds all rows of some sets, and none of the others.
        sizes = {name: size for name, size in boundary.sizes.items() if name in left}
        counts = {name: size - before.sizes.get(name, 0) for name, size in sizes.items()}
        rows = {name: dict(islice(left[name], count)) for name, count in counts.items() if count}
        yield dict(islice(services, boundary.services - before.services)), Delta({}, rows)
        before = boundary


def _split_by_owner(plan: NftablesPlan, limit: int) -> Sequence[_Batch]:
    """Find each row's batch by its owner."""
    owners = _BatchOfOwner(plan, limit)
    removed, added = owners.divide(plan.delta.remove), owners.divide(plan.delta.add)
    return list(zip(owners.services, map(Delta, removed, added), strict=True))


class _BatchOfOwner:
    """The batch of each row's owner, and the Services of each batch."""

    def __init__(self, plan: NftablesPlan, limit: int) -> None:
        self.services: list[dict[ObjectName, ServiceRouting]] = [{}]
        self._limit = limit
        self._of: dict[Owner, int] = {}
        self._filled = 0
        unplaced: Counter[Owner] = Counter()
        for side in (plan.delta.remove, plan.delta.add):
            for name, rows in side.items():
                if _is_of_node(name):
                    self._filled += len(rows)
                else:
                    unplaced.update(_owners(name, rows))
        for service, routing in plan.services.items():
            if routing is not None:
                self._place(_owners_in(routing), unplaced)
                self.services[-1][service] = routing
        # The remaining rows belong to removed Services or to other programs.
        for owner in [owner for owner in unplaced if isinstance(owner, bytes)]:
            self._place((owner,), unplaced)

    @property
    def last(self) -> int:
        """The number of the last batch, which has all rows without a batch of their own."""
        return len(self.services) - 1

    def divide(self, table: Table) -> Sequence[Table]:
        """Divide rows among the batches."""
        batches: list[Table] = [{} for _ in self.services]
        last = self.last
        for name, rows in table.items():
            # The kernel rejects ranges that overlap, and those of the pod networks may: they change
            # in one transaction. Source ranges overlap with those of their own frontend alone.
            if _is_of_node(name):
                batches[0][name] = rows
                continue
            numbers = [self._of.get(owner, last) for owner in _owners(name, rows)]
            items = iter(rows.items())
            # Rows are in the order of their Services, so those of one batch are adjacent.
            for number, run in groupby(numbers):
                batches[number].setdefault(name, {}).update(islice(items, len(list(run))))
        return batches

    def _place(self, owners: Iterable[Owner], unplaced: Counter[Owner]) -> None:
        if self._filled >= self._limit:
            self.services.append({})
            self._filled = 0
        last = self.last
        for owner in owners:
            # The first Service that needs a shared row takes it into its batch.
            if rows := unplaced.pop(owner, 0):
                self._of[owner] = last
                self._filled += rows


def _owners(name: str, rows: Rows) -> Sequence[Owner]:
    width = _frontend_width(name)
    if width:
        return [key[:width] for key in rows]
    kind, family = BY_NAME[name]
    if kind.key[: len(NODE_PORT)] == NODE_PORT:
        return [owner_key(key[:NODE_PORT_KEY], family) for key in rows]
    return [(name, key) for key in rows]


def _owners_in(routing: ServiceRouting) -> Sequence[Owner]:
    owners: list[Owner] = list(shared_rows(routing))
    for port in routing.ports:
        # Cut like the keys of its rows: a key that is too long goes with its Service, so that the
        # kernel's rejection names that Service.
        width, protocol = _WIDTHS[port.family], port.protocol
        owners += [
            owner_key(frontend_key(f.address, protocol, f.port)[:width], port.family)
            for f in port.frontends
        ]
    return owners


@cache
def _is_of_node(name: str) -> bool:
    kind, _ = BY_NAME[name]
    # An older version has node ports with addresses. Their rows are removed later than this.
    return kind is NODE_PORT_ADDRESSES or (
        kind.shape is not Shape.EXACT and not _frontend_width(name)
    )


@cache
def _frontend_width(name: str) -> int:
    """Return the bytes of a set's key that are a frontend, 0 if it has none."""
    kind, family = BY_NAME[name]
    return _WIDTHS[family] if kind.key[: len(FRONTEND)] == FRONTEND else 0
