"""Write Services into an empty kernel while the agent still routes the others.

At a first start no rule serves anything, and routing, compiling and packing all Services take
longer than the kernel's part. So each Service is written as soon as its routing is final, a batch
at a time. The calling thread compiles and packs, because all Python code shares one lock. A second
thread only sends, and the kernel works without the lock. The plan of the first sync then has what
is left. Each Service comes with all of its rows, after the base rules and the node's rows.

Nothing depends on it: after an error the plan starts from a read-back, as at any other start.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nft.rows import SharedRow
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables.batches import PackedBatch
from pyproxy.dataplane.nftables.compile import add_service, hairpin_rows, node_table, shared_rows
from pyproxy.dataplane.nftables.plain_rows import PlainRows
from pyproxy.errors import KernelError
from pyproxy.policy.routing import ServiceRouting

log = logging.getLogger(__name__)

_FIRST_ROWS = 2_500
"""Rows of the first batch, which is small because nothing is served before it."""


class Written(msgspec.Struct, frozen=True):
    """The Services that the kernel holds now, and how many of them use each shared row."""

    services: list[ServiceRouting]
    users: Counter[SharedRow]


class EarlyWriter:
    """Writes Services, from `add` to `end`, and sends them in a thread of its own.

    `pack` packs the rows of a batch, in the thread of `add` and `end`. `session` runs its
    argument, which writes, and `write` sends one batch; both are called in the other thread and
    raise KernelError. Batches have about `batch_rows` rows.
    """

    def __init__(
        self,
        node: NodeRouting,
        session: Callable[[Callable[[], None]], None],
        pack: Callable[[Table, PlainRows], PackedBatch],
        write: Callable[[PackedBatch], None],
        batch_rows: int,
    ) -> None:
        self._session = session
        self._pack = pack
        self._write = write
        self._batch_rows = batch_rows
        self._queue: queue.SimpleQueue[PackedBatch | None] = queue.SimpleQueue()
        self._rows = node_table(node)
        self._plain = PlainRows()
        self._shared: list[SharedRow] = []
        self._size = 0
        self._limit = min(_FIRST_ROWS, batch_rows)
        self._written = Written([], Counter())
        self._is_complete = False
        self._has_served = threading.Event()
        self._thread = threading.Thread(target=self._run, name="early-writer", daemon=True)
        self._thread.start()

    def add(self, routing: ServiceRouting, size: int) -> None:
        """Have a Service of `size` rows written, whose routing is final.

        Blocks until the first batch is written. Otherwise routing would delay it: after each system
        call the thread waits for the interpreter lock, 5 ms each time.
        """
        shared: Sequence[SharedRow]
        if self._plain.add(routing):
            (port,) = routing.ports
            shared = hairpin_rows(port) if port.hairpin else ()
        else:
            add_service(routing, self._rows)
            shared = shared_rows(routing)
        for set_name, key in shared:
            # An earlier batch may have it: the kernel accepts an element that exists.
            self._rows.setdefault(set_name, {})[key] = b""
        self._shared += shared
        self._written.services.append(routing)
        # One more for the cluster IP.
        self._size += size + 1 + len(shared)
        if self._size >= self._limit:
            self._send()
            self._has_served.wait()

    def end(self) -> Written:
        """Have the rest written, and return all that is being written. Does not block."""
        self._send()
        self._queue.put(None)
        # Counted while the kernel takes the last batch.
        self._written.users.update(self._shared)
        return self._written

    def wait(self) -> bool:
        """Block until all is written after `end`; return False after an error."""
        self._thread.join()
        return self._is_complete

    def _send(self) -> None:
        if self._size or self._rows:
            self._queue.put(self._pack(self._rows, self._plain))
        self._shared += self._plain.shared
        self._rows, self._plain, self._size = {}, PlainRows(), 0
        self._limit = self._batch_rows

    def _run(self) -> None:
        try:
            self._session(self._write_all)
            self._is_complete = True
        except KernelError as error:
            log.info("cannot write the first Services ahead of the others: %s", error)
        finally:
            self._has_served.set()

    def _write_all(self) -> None:
        while (batch := self._queue.get()) is not None:
            self._write(batch)
            self._has_served.set()
