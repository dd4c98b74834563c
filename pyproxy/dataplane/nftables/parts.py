"""A large plan in parts, each a transaction: values in, values out.

While the kernel takes in a transaction nobody else on the node can write to nf_tables: not a CNI
plugin that has a pod to connect, nor a firewall. So what is large goes in parts. A Service is in
one of them with all that it gains, and with all that its frontends lose; so a packet finds each
Service as it was or as it is to be. What nobody wants any more goes last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby, islice

import msgspec

from pyproxy.dataplane.diff import Delta
from pyproxy.dataplane.nft.rows import SharedRow, frontend_key
from pyproxy.dataplane.nft.schema import FRONTEND, Rows, Table
from pyproxy.dataplane.nftables.compile_all import Cut
from pyproxy.dataplane.nftables.plan import NftablesPlan
from pyproxy.dataplane.nftables.rows import shared_rows
from pyproxy.dataplane.nftables.schema import BY_NAME
from pyproxy.model.address import Family
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import Shape, Value
from pyproxy.policy.routing import ServiceRouting

Owner = bytes | SharedRow
"""Whom a row goes along with: its frontend, or itself where several Services may want it."""

_Part = tuple[Mapping[ObjectName, ServiceRouting | None], Delta[bytes, Value]]

_WIDTHS = {family: sum(field.size(family) for field in FRONTEND) for family in Family}
"""The bytes of a frontend's key."""


def size(plan: NftablesPlan) -> int:
    """Count the rows that a plan removes and adds."""
    sides = (plan.delta.remove, plan.delta.add)
    return sum(len(rows) for side in sides for rows in side.values())


def parts(plan: NftablesPlan, limit: int) -> Iterator[NftablesPlan]:
    """Split a plan into parts of about `limit` rows; one that is no larger is its only part.

    Where the plan says where it is cut, `limit` is what its cuts were made for.
    A part names the Services that it writes, the last one all of them. What any of them means for
    shared rows, and for the node, the plan alone says.
    """
    if size(plan) <= limit:
        yield plan
        return
    split = list(_cut(plan)) if plan.cuts else _sort(plan, limit)
    for number, (services, delta) in enumerate(split):
        yield msgspec.structs.replace(
            plan,
            delta=delta,
            services=plan.services if number == len(split) - 1 else services,
            shared={},
            chains=() if number else plan.chains,
            node=None,
            cuts=(),
        )


def _cut(plan: NftablesPlan) -> Iterator[_Part]:
    """Cut the rows where they may be cut; nobody has to look at each."""
    services = iter(plan.services.items())
    left = {name: iter(rows.items()) for name, rows in plan.delta.add.items()}
    before = Cut(0, {})
    for cut in plan.cuts:
        counts = {name: size - before.sizes.get(name, 0) for name, size in cut.sizes.items()}
        rows = {name: dict(islice(left[name], count)) for name, count in counts.items() if count}
        yield dict(islice(services, cut.services - before.services)), Delta({}, rows)
        before = cut


def _sort(plan: NftablesPlan, limit: int) -> Sequence[_Part]:
    """Find each row's part."""
    places = _Places(plan, limit)
    removed, added = places.divide(plan.delta.remove), places.divide(plan.delta.add)
    return list(zip(places.services, map(Delta, removed, added), strict=True))


class _Places:
    """Which part each row goes into, and which Services each part writes."""

    def __init__(self, plan: NftablesPlan, limit: int) -> None:
        self.services: list[dict[ObjectName, ServiceRouting]] = [{}]
        self._limit = limit
        self._of: dict[Owner, int] = {}
        self._filled = 0
        waiting: Counter[Owner] = Counter()
        for side in (plan.delta.remove, plan.delta.add):
            for name, rows in side.items():
                if _is_of_ranges(name):
                    self._filled += len(rows)
                else:
                    waiting.update(_owners(name, rows))
        for service, routing in plan.services.items():
            if routing is not None:
                self._put(_owners_in(routing), waiting)
                self.services[-1][service] = routing
        for owner in [owner for owner in waiting if isinstance(owner, bytes)]:
            self._put((owner,), waiting)

    @property
    def last(self) -> int:
        """The number of the last part, into which all goes that has no place of its own."""
        return len(self.services) - 1

    def divide(self, table: Table) -> Sequence[Table]:
        """Divide rows among the parts."""
        parts: list[Table] = [{} for _ in self.services]
        last = self.last
        for name, rows in table.items():
            # Ranges exclude each other, so that all of a set's must come and go together. None of
            # them says anything before a frontend does.
            if _is_of_ranges(name):
                parts[0][name] = rows
                continue
            numbers = [self._of.get(owner, last) for owner in _owners(name, rows)]
            items = iter(rows.items())
            # Rows come in the order of their Services, so those of a part stand together.
            for number, run in groupby(numbers):
                parts[number].setdefault(name, {}).update(islice(items, len(list(run))))
        return parts

    def _put(self, owners: Iterable[Owner], waiting: Counter[Owner]) -> None:
        if self._filled >= self._limit:
            self.services.append({})
            self._filled = 0
        last = self.last
        for owner in owners:
            if rows := waiting.pop(owner, 0):
                self._of[owner] = last
                self._filled += rows


def _owners(name: str, rows: Rows) -> Sequence[Owner]:
    width = _frontend_width(name)
    return [key[:width] for key in rows] if width else [(name, key) for key in rows]


def _owners_in(routing: ServiceRouting) -> Sequence[Owner]:
    owners: list[Owner] = list(shared_rows(routing))
    for port in routing.ports:
        # Cut as its rows' keys are: one that is too long goes with its Service, to be refused.
        width, protocol = _WIDTHS[port.family], port.protocol
        owners += [frontend_key(f.address, protocol, f.port)[:width] for f in port.frontends]
    return owners


@cache
def _is_of_ranges(name: str) -> bool:
    return BY_NAME[name][0].shape is not Shape.EXACT


@cache
def _frontend_width(name: str) -> int:
    """Give the bytes of a set's key that are a frontend, 0 where there is none."""
    kind, family = BY_NAME[name]
    return _WIDTHS[family] if kind.key[: len(FRONTEND)] == FRONTEND else 0
