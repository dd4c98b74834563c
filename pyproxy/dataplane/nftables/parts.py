"""A large plan in parts, each a transaction: values in, values out.

While the kernel takes in a transaction nobody else on the node can write to nf_tables: not a CNI
plugin that has a pod to connect, nor a firewall. So what is large goes in parts. A Service is in
one of them with all that it gains, and with all that its frontends lose; so a packet finds each
Service as it was or as it is to be. What nobody wants any more goes last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import msgspec

from pyproxy.dataplane.diff import Delta
from pyproxy.dataplane.nftables.plan import NftablesPlan
from pyproxy.dataplane.nftables.rows import add_service, shared_rows
from pyproxy.dataplane.nftables.schema import BY_NAME, FRONTEND, Table
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import Shape, Value
from pyproxy.policy.answer import ServiceAnswer


def size(plan: NftablesPlan) -> int:
    """Count the rows that a plan removes and adds."""
    sides = (plan.delta.remove, plan.delta.add)
    return sum(len(rows) for side in sides for rows in side.values())


def parts(plan: NftablesPlan, limit: int) -> Iterator[NftablesPlan]:
    """Split a plan into parts of about `limit` rows; one that is no larger is its only part.

    A part names the Services that it writes, the last one all of them. What any of them means for
    shared rows, and for the node, the plan alone says.
    """
    if size(plan) <= limit:
        yield plan
        return
    rest = _Rest(plan.delta)
    part = _Part()
    chains = plan.chains
    # Ranges exclude each other, so that all of a set's must come and go together. None of them
    # says anything before a frontend does.
    rest.move_ranges(part)
    for name, answer in plan.services.items():
        if answer is None:
            continue
        rest.move_service(answer, part)
        part.services[name] = answer
        if part.size >= limit:
            yield part.of(plan, chains)
            part, chains = _Part(), ()
    while rest.move_frontend(part):
        if part.size >= limit:
            yield part.of(plan, chains)
            part, chains = _Part(), ()
    rest.move_all(part)
    part.services.update(plan.services)
    yield part.of(plan, chains)


class _Part:
    """What one part removes and adds, as it is filled."""

    def __init__(self) -> None:
        self.services: dict[ObjectName, ServiceAnswer | None] = {}
        self.remove: Table = {}
        self.add: Table = {}
        self.size = 0

    def of(self, plan: NftablesPlan, chains: tuple[str, ...]) -> NftablesPlan:
        """Write it as a plan; `chains` are those that it makes."""
        return msgspec.structs.replace(
            plan,
            delta=Delta(self.remove, self.add),
            services=self.services,
            shared={},
            chains=chains,
            node=None,
        )


class _Rest:
    """What no part has yet."""

    def __init__(self, delta: Delta[bytes, Value]) -> None:
        self._remove = {name: dict(rows) for name, rows in delta.remove.items()}
        self._add = {name: dict(rows) for name, rows in delta.add.items()}
        self._leaving: dict[bytes, list[tuple[str, bytes]]] = {}
        for name, rows in self._remove.items():
            if width := _frontend_width(name):
                for key in rows:
                    self._leaving.setdefault(key[:width], []).append((name, key))

    def move_ranges(self, part: _Part) -> None:
        """Move all rows of the sets whose keys are ranges."""
        for name in self._remove.keys() | self._add.keys():
            if BY_NAME[name][0].shape is not Shape.EXACT:
                self._move_set(name, part)

    def move_service(self, answer: ServiceAnswer, part: _Part) -> None:
        """Move what a Service gains, and what its frontends lose."""
        wanted: Table = {}
        add_service(answer, wanted)
        for name, rows in wanted.items():
            self._move(name, rows, part)
            if self._leaving and (width := _frontend_width(name)):
                for frontend in {key[:width] for key in rows}:
                    self._leave(frontend, part)
        for name, key in shared_rows(answer):
            self._move(name, (key,), part)

    def move_frontend(self, part: _Part) -> bool:
        """Move what one frontend loses that nobody wants any more; False when there is none."""
        if not self._leaving:
            return False
        self._leave(next(iter(self._leaving)), part)
        return True

    def move_all(self, part: _Part) -> None:
        """Move whatever is left."""
        for name in self._remove.keys() | self._add.keys():
            self._move_set(name, part)

    def _leave(self, frontend: bytes, part: _Part) -> None:
        for name, key in self._leaving.pop(frontend, ()):
            self._move(name, (key,), part)

    def _move_set(self, name: str, part: _Part) -> None:
        keys = self._remove.get(name, {}).keys() | self._add.get(name, {}).keys()
        self._move(name, keys, part)

    def _move(self, name: str, keys: Iterable[bytes], part: _Part) -> None:
        # A row whose value changes is on both sides.
        for source, target in ((self._remove, part.remove), (self._add, part.add)):
            rows = source.get(name)
            if not rows:
                continue
            moved = {key: rows.pop(key) for key in keys if key in rows}
            if moved:
                target.setdefault(name, {}).update(moved)
                part.size += len(moved)


@cache
def _frontend_width(name: str) -> int:
    """Give the bytes of a set's key that are a frontend, 0 where there is none."""
    kind, family = BY_NAME[name]
    if kind.key[: len(FRONTEND)] != FRONTEND or kind.shape is not Shape.EXACT:
        return 0
    return sum(field.size(family) for field in FRONTEND)
