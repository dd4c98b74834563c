"""A kernel in dicts: it reads the real one's requests, and fails where the real one would."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from pyproxy.dataplane.ipvs.kernel import Addresses
from pyproxy.dataplane.ipvs.ruleset import Options
from pyproxy.dataplane.ipvs.schema import BY_NAME
from pyproxy.dataplane.nft.schema import Table
from pyproxy.errors import KernelError
from pyproxy.model.address import Address, Backend
from pyproxy.netlink import elements as packed
from pyproxy.netlink import ipvs
from pyproxy.netlink.attributes import attribute_map, nested, string
from pyproxy.netlink.elements import ElementMessage
from pyproxy.netlink.generic import GENERIC_SIZE
from pyproxy.netlink.ipvs import Messages, Scheduling, Server, Timeouts, Virtual
from pyproxy.netlink.kernel_errors import MessageError
from pyproxy.netlink.nfnetlink import HEADER_SIZE
from pyproxy.netlink.requests import Request


def _nothing() -> None:
    """Let a write happen."""


SCHEDULERS = ("rr", "wrr", "lc", "wlc", "sh", "mh")
_SERVICE, _DEST, _WEIGHT = 1, 2, 4
_DELSETELEM = 14


class FakeKernel:
    """IPVS and the device. `connections` counts a server's, `closed` says that they ended.

    `routed` are servers that another program has changed to direct routing.

    `before_write` is called before each write, and may raise.
    """

    def __init__(self, others: Iterable[Address] = ()) -> None:
        self.write = Messages(30)
        self.table: dict[Virtual, dict[Backend, int]] = {}
        self.how: dict[Virtual, Scheduling] = {}
        self.connections: dict[tuple[Virtual, Backend], int] = {}
        self.closed = False
        self.routed: set[tuple[Virtual, Backend]] = set()
        self.device = 0
        self.labelled = False
        self.on_device: set[Address] = set()
        self.others = frozenset(others)
        self.touched = False
        self.before_write: Callable[[], None] = _nothing
        self.messages_sent = 0
        self.bytes_sent = 0
        self.send_seconds = 0.0

    def prepare(self) -> None:
        pass

    def set_timeouts(self, wanted: Timeouts) -> None:
        pass

    def close(self) -> None:
        pass

    def virtuals(self) -> dict[Virtual, Scheduling]:
        return dict(self.how)

    def scheduling(self, virtual: Virtual) -> Scheduling | None:
        return self.how.get(virtual)

    def servers(self, virtual: Virtual) -> list[Server]:
        found = []
        for backend, weight in self.table.get(virtual, {}).items():
            count = self.connections.get((virtual, backend), 0)
            active = 0 if self.closed else count
            masqueraded = (virtual, backend) not in self.routed
            found.append(Server(backend, weight, count, active, masqueraded))
        return found

    def count(self) -> int:
        return len(self.table)

    def addresses(self) -> Addresses:
        return Addresses(self.device, frozenset(self.on_device), self.others, self.labelled)

    def addresses_changed(self) -> bool:
        touched, self.touched = self.touched, False
        return touched

    def make_device(self) -> None:
        assert not self.device
        self.before_write()
        self.device = 7
        self.label_device()

    def label_device(self) -> None:
        self.before_write()
        self.labelled = True

    def delete_device(self) -> None:
        self.device, self.labelled = 0, False
        self.on_device.clear()

    def change_addresses(
        self, gone: Iterable[Address], new: Iterable[Address]
    ) -> list[tuple[Address, KernelError]]:
        assert self.device
        for address in gone:
            self.before_write()
            self.messages_sent += 1
            self.on_device.remove(address)
        for address in new:
            self.before_write()
            self.messages_sent += 1
            assert address not in self.on_device
            self.on_device.add(address)
        return []

    def send(self, requests: Sequence[Request]) -> list[MessageError]:
        self.messages_sent += len(requests)
        found = []
        for number, request in enumerate(requests):
            self.before_write()
            if code := self._one(request):
                found.append(MessageError(number, code, 0, ""))
        return found

    def _one(self, request: Request) -> int:
        command, _, _ = struct.unpack_from("=BBH", request.body)
        attributes = attribute_map(request.body[GENERIC_SIZE:])
        service = attribute_map(attributes[_SERVICE])
        is_whole = 6 in service
        whole = request.body if is_whole else _with_scheduler(request.body)
        ((virtual, how),) = ipvs.read_virtuals([memoryview(whole)]).items()
        there = virtual in self.table
        if there == (command == 1):
            return errno.EEXIST if there else errno.ESRCH
        if command in (1, 2) and how.scheduler not in SCHEDULERS:
            return errno.ENOENT
        if command > 3:
            (server,) = ipvs.read_servers([memoryview(request.body)], virtual.family)
            return self._dest(command, virtual, server)
        if command == 3:
            del self.table[virtual], self.how[virtual]
        else:
            self.table.setdefault(virtual, {})
            self.how[virtual] = how
        return 0

    def _dest(self, command: int, virtual: Virtual, server: Server) -> int:
        servers = self.table[virtual]
        if command == 5:
            if server.backend in servers:
                return errno.EEXIST
        elif server.backend not in servers:
            return errno.ENOENT
        assert server.masqueraded
        self.routed.discard((virtual, server.backend))
        if command == 7:
            del servers[server.backend]
        else:
            servers[server.backend] = server.weight
        return 0


def _with_scheduler(body: bytes) -> bytes:
    """Add a scheduler to an identity, because the reader needs one."""
    service = bytes(attribute_map(body[GENERIC_SIZE:])[_SERVICE])
    return body[:GENERIC_SIZE] + nested(_SERVICE, service, string(6, "rr"))


class FakeRules:
    """The table of rules; `loaded` are the options that it was loaded for.

    `before_write` is called before each write, and may raise.
    """

    def __init__(self) -> None:
        self.loaded: Options | None = None
        self.table: Table = {}
        self.before_write: Callable[[], None] = _nothing
        self.netlink = self
        self.messages_sent = 0
        self.bytes_sent = 0
        self.send_seconds = 0.0

    def prepare(self) -> None:
        pass

    def read(self) -> Table:
        return {name: dict(rows) for name, rows in self.table.items() if rows}

    def is_loaded(self, options: Options) -> bool:
        return self.loaded == options

    def check(self, options: Options) -> tuple[str, ...]:
        return () if self.is_loaded(options) else ("the base rules differ",)

    def load(self, options: Options) -> None:
        self.before_write()
        self.loaded = options

    def seal(self, options: Options) -> None:
        self.before_write()
        assert self.loaded == options

    def write(self, elements: list[ElementMessage]) -> MessageError | None:
        self.before_write()
        after = {name: dict(rows) for name, rows in self.table.items()}
        for number, each in enumerate(elements):
            self.messages_sent += 1
            rows = after.setdefault(each.set_name, {})
            shape = BY_NAME[each.set_name][0].shape
            found = packed.read_elements([memoryview(each.message.body)], shape)
            for key, value in found.items():
                if each.message.kind & 0xFF == _DELSETELEM:
                    if key not in rows:
                        return MessageError(number, errno.ENOENT, HEADER_SIZE, "")
                    del rows[key]
                else:
                    if key in rows:
                        return MessageError(number, errno.EEXIST, HEADER_SIZE, "")
                    rows[key] = value
        self.table = after
        return None

    def unannounced(self) -> AbstractContextManager[None]:
        return nullcontext()

    def delete(self) -> None:
        self.table, self.loaded = {}, None

    def close(self) -> None:
        pass
