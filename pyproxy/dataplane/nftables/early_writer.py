"""Write Services into an empty kernel while the agent still routes the others.

At a first start no rule serves anything, and routing, compiling and packing all Services take
longer than the kernel's part. So a thread writes each Service as soon as its routing is final, a
batch at a time. The kernel works without the interpreter lock. The plan of the first sync then has
what is left. Each Service comes with all of its rows, after the base rules and the node's rows.

Nothing depends on it: after an error the plan starts from a read-back, as at any other start.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

import msgspec

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables.compile import add_service, node_table, shared_rows
from pyproxy.errors import KernelError
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting

log = logging.getLogger(__name__)

_FIRST_ROWS = 2_500
"""Rows of the first batch, which is small because nothing is served before it."""


class EarlyBatch(msgspec.Struct, frozen=True):
    """Services to write in one transaction, and all rows that they add."""

    services: Sequence[ServiceRouting]
    rows: Table


class Written(msgspec.Struct, frozen=True):
    """The Services that the kernel holds now, and the rows that others may need as well."""

    services: dict[ObjectName, ServiceRouting]
    shared: Table


class EarlyWriter:
    """Writes Services in a thread of its own, from `add` to `finish`.

    `session` runs its argument, which writes, and `write` sends one batch. Both are called in that
    thread and raise KernelError. Batches have about `batch_rows` rows.
    """

    def __init__(
        self,
        node: NodeRouting,
        session: Callable[[Callable[[], None]], None],
        write: Callable[[EarlyBatch], None],
        batch_rows: int,
    ) -> None:
        self._session = session
        self._write = write
        self._batch_rows = batch_rows
        self._queue: queue.SimpleQueue[list[ServiceRouting] | None] = queue.SimpleQueue()
        self._waiting: list[ServiceRouting] = []
        self._rows = 0
        self._limit = min(_FIRST_ROWS, batch_rows)
        self._node_rows = node_table(node)
        self._written = Written({}, {name: dict(rows) for name, rows in self._node_rows.items()})
        self._is_complete = False
        self._thread = threading.Thread(target=self._run, name="early-writer", daemon=True)
        self._thread.start()

    def add(self, routing: ServiceRouting) -> None:
        """Have a Service written, whose routing is final. Does not block."""
        self._waiting.append(routing)
        for port in routing.ports:  # a loop, because a generator would be slower here
            self._rows += len(port.frontends) * (2 + len(port.cluster) + len(port.local))
        if self._rows >= self._limit:
            self._queue.put(self._waiting)
            self._waiting, self._rows, self._limit = [], 0, self._batch_rows

    def finish(self) -> Written | None:
        """Write the rest and return all that is written; None after an error. Blocks."""
        self._queue.put(self._waiting)
        self._queue.put(None)
        self._thread.join()
        return self._written if self._is_complete else None

    def _run(self) -> None:
        try:
            self._session(self._write_all)
            self._is_complete = True
        except KernelError as error:
            log.info("cannot write the first Services ahead of the others: %s", error)

    def _write_all(self) -> None:
        rows = self._node_rows
        while (services := self._queue.get()) is not None:
            for routing in services:
                add_service(routing, rows)
                for set_name, key in shared_rows(routing):
                    known = self._written.shared.setdefault(set_name, {})
                    if key not in known:
                        known[key] = b""
                        rows.setdefault(set_name, {})[key] = b""
            if rows:
                self._write(EarlyBatch(services, rows))
            self._written.services.update((each.name, each) for each in services)
            rows = {}
