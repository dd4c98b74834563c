"""Compare the table with the last commit in a thread, while the agent goes on writing changes.

With 10,000 Services, reading the table and compiling its rows takes 0.6 to 1 s of CPU time. The
thread gives Python's lock to the agent's thread whenever that one waits for it.

The agent commits meanwhile, and a dump that a commit interrupts may lack any element. So each
difference is read again by its key, and compared with the commit of that moment. The agent's
thread, which is the one that commits, compares the last differences itself; mostly there are none.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import closing

from pyproxy.dataplane.committed_state import CommittedState
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nft.readback import read_element, read_set
from pyproxy.dataplane.nft.rows import SharedRow
from pyproxy.dataplane.nft.schema import Rows, Table
from pyproxy.dataplane.nftables.compile import add_service, node_table, shared_rows
from pyproxy.dataplane.nftables.readback import read_table
from pyproxy.dataplane.nftables.schema import BY_NAME, TABLE
from pyproxy.errors import KernelError
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import Shape
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.policy.routing import ServiceRouting

log = logging.getLogger(__name__)

_ROUNDS = 4
"""How often the thread reads differences again. Each round has the changes of a shorter time."""

_MOST_KEYS = 5_000
"""Differences of a set that are read by their keys: each takes 30 µs. More are another program's,
or those of a change of the Node, and a read-back is quicker."""

_LAST_KEYS = 200
"""The same in the agent's thread."""

Keys = dict[str, set[bytes]]
"""Keys of elements, by the set's name."""


class Audit:
    """One comparison with `committed`, in a thread that starts at once. Raises KernelError."""

    def __init__(self, committed: CommittedState[SharedRow]) -> None:
        # A socket belongs to the network namespace of the thread that opens it.
        self._netlink = Nfnetlink()
        self._committed = committed
        self._expected = ExpectedRows(committed.services, committed.node)
        self._differing: Keys | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether `differing` returns at once."""
        return self._ended.is_set()

    def differing(self, netlink: Nfnetlink) -> frozenset[str] | None:
        """Wait for the thread; return the sets that differ from the commit, None if unknown.

        For the thread that commits: it reads a few elements again. Raises KernelError.
        """
        self._ended.wait()
        keys = self._differing
        if not keys:
            return None if keys is None else frozenset()
        if sum(map(len, keys.values())) <= _LAST_KEYS:
            self._update()
            keys = self._expected.still_differing(netlink, keys)
        return frozenset(keys)

    def _run(self) -> None:
        with closing(self._netlink) as netlink:
            try:
                self._differing = self._compare(netlink)
            except KernelError as error:
                log.info("audit of table inet %s failed, reading it back: %s", TABLE, error)
            finally:
                self._ended.set()

    def _compare(self, netlink: Nfnetlink) -> Keys:
        keys = self._expected.differing(read_table(netlink, consistent=False))
        for _ in range(_ROUNDS):
            if not keys or any(len(each) > _MOST_KEYS for each in keys.values()):
                break
            self._update()
            keys = self._expected.still_differing(netlink, keys)
        return keys

    def _update(self) -> None:
        self._expected.update(self._committed.services, self._committed.node)


class ExpectedRows:
    """The rows that the table should have, by what is committed."""

    def __init__(self, services: Mapping[ObjectName, ServiceRouting], node: NodeRouting) -> None:
        # Copied in one call, so that no commit can change it meanwhile. Routings never change.
        self._services = dict(services)
        self._node = node
        self._table: Table | None = None
        self._users: Counter[SharedRow] = Counter()

    def differing(self, held: Table) -> Keys:
        """Return the keys of all rows that differ from those which the kernel holds."""
        table = self._compiled()
        found: Keys = {}
        for name in held.keys() | table.keys():
            rows, expected = held.get(name, {}), table.get(name, {})
            # No comparison of the dicts as a whole, which would keep Python's lock for 10 ms.
            keys = {key for key, value in rows.items() if expected.get(key) != value}
            keys.update([key for key in expected if key not in rows])
            if keys:
                found[name] = keys
        return found

    def still_differing(self, netlink: Nfnetlink, keys: Keys) -> Keys:
        """Read elements again, and return those that differ. Raises KernelError."""
        table = self._compiled()
        found: Keys = {}
        for name, some in keys.items():
            expected, shape = table.get(name, {}), BY_NAME[name][0].shape
            held: Rows = {}
            if shape is Shape.EXACT:
                for key in some:
                    held |= read_element(netlink, TABLE, name, key)
            else:
                held = read_set(netlink, TABLE, name, shape, consistent=False)
            if left := {key for key in some if held.get(key) != expected.get(key)}:
                found[name] = left
        return found

    def update(self, services: Mapping[ObjectName, ServiceRouting], node: NodeRouting) -> None:
        """Expect what is committed now; takes time in proportion to the Services that changed."""
        table, before, now = self._compiled(), self._services, dict(services)
        gone = [each for name, each in before.items() if now.get(name) is not each]
        come = [each for name, each in now.items() if before.get(name) is not each]
        lost = node_table(self._node)
        for each in gone:
            add_service(each, lost)
            self._users.subtract(shared_rows(each))
        for name, rows in lost.items():
            for key in rows:
                table.get(name, {}).pop(key, None)
        for each in gone:
            for name, key in shared_rows(each):
                if self._users[name, key] <= 0:
                    table.get(name, {}).pop(key, None)
        self._services, self._node = now, node
        # Last, because a frontend may have moved from one Service to another.
        for name, rows in node_table(node).items():
            table.setdefault(name, {}).update(rows)
        for each in come:
            self._add(each, table)

    def _compiled(self) -> Table:
        if self._table is None:
            self._table = node_table(self._node)
            for each in self._services.values():
                self._add(each, self._table)
        return self._table

    def _add(self, routing: ServiceRouting, table: Table) -> None:
        add_service(routing, table)
        for row in shared_rows(routing):
            self._users[row] += 1
            name, key = row
            table.setdefault(name, {})[key] = b""
