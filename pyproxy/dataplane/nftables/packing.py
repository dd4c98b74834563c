"""The parts of a plan, packed: each one while the kernel takes in the one before it.

A transaction is worked through within the call that sends it, and Python may go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from pyproxy.dataplane.nftables.parts import parts, size
from pyproxy.dataplane.nftables.plan import NftablesPlan
from pyproxy.netlink.elements import ElementMessage

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future


class Packed(msgspec.Struct, frozen=True):
    """A plan, or a part of one, and the messages that write its elements."""

    plan: NftablesPlan
    writes: tuple[ElementMessage, ...]


def pack(plan: NftablesPlan) -> Packed:
    """Pack a plan's elements."""
    return Packed(plan, tuple(plan.messages()))


@contextmanager
def packed_ahead(plan: NftablesPlan, limit: int) -> Iterator[Iterable[Packed]]:
    """Give a plan's parts of about `limit` rows; the first is packed before it is asked for."""
    if size(plan) <= limit:
        yield (pack(plan),)
        return
    # Only what is large needs it, and a question about a Service shall not wait for its import.
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    with ThreadPoolExecutor(1, "packing") as worker:
        found = map(pack, parts(plan, limit))
        yield _each(worker, found, worker.submit(next, found, None))


def _each(
    worker: Executor, found: Iterator[Packed], first: Future[Packed | None]
) -> Iterator[Packed]:
    upcoming = first
    while (part := upcoming.result()) is not None:
        upcoming = worker.submit(next, found, None)
        yield part
