"""Compute the next item of an iterator in a thread, while the caller uses the one before.

The kernel works through a transaction within `sendmsg`, which releases the interpreter lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

T = TypeVar("T")


@contextmanager
def one_ahead(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """Return an iterator over the same items, none of which may be None.

    An exception in the thread is raised when its item is taken.
    """
    # Imported here: commands that inspect one Service must not wait for it.
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    # One worker, because `items` may be a generator: it keeps the order, and is not thread-safe.
    with ThreadPoolExecutor(1, "packing") as worker:
        yield _each(worker, items, worker.submit(next, items, None))


def _each(worker: Executor, items: Iterator[T], first: Future[T | None]) -> Iterator[T]:
    upcoming = first
    while (item := upcoming.result()) is not None:
        upcoming = worker.submit(next, items, None)
        yield item
