"""Writing a plan to a kernel part that has no transactions.

The order keeps every state in between serving: new virtual services and servers first, then the
rules in one transaction, then the addresses, and weights of 0 and removals last. A request that the
kernel rejects costs its Service alone.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, Protocol

import msgspec

from pyproxy.dataplane.diff import Delta
from pyproxy.dataplane.interface import Failure
from pyproxy.dataplane.ipvs.plan import IpvsPlan, Write, additions, removals, virtual_text
from pyproxy.dataplane.ipvs.schema import ADDRESSES_ON_DEVICE, BY_NAME, SERVERS, VIRTUALS, Table
from pyproxy.errors import KernelError, RejectedError
from pyproxy.model.address import Address
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import ElementMessage, element_at
from pyproxy.netlink.ipvs import Messages
from pyproxy.netlink.kernel_errors import MessageError
from pyproxy.netlink.requests import Request

# IPVS reports an absent real server as ENOENT, and an absent virtual service as ESRCH.
_GONE = (errno.ENOENT, errno.ESRCH)


class Ipvs(Protocol):
    """Writes to IPVS and the device. The methods block."""

    @property
    def write(self) -> Messages:
        """The packer of requests for this kernel. Raises KernelError without IPVS."""
        ...

    def send(self, requests: Sequence[Request]) -> list[MessageError]:
        """Send requests in order; return those that failed. Raises KernelError."""
        ...

    def change_addresses(
        self, gone: Iterable[Address], new: Iterable[Address]
    ) -> list[tuple[Address, KernelError]]:
        """Remove addresses from the device and add others; return those that failed."""
        ...


class Rules(Protocol):
    """Writes to the table of rules. `write` blocks for a transaction."""

    def write(self, elements: list[ElementMessage]) -> MessageError | None:
        """Write elements in one transaction; return the error that aborted it, if any."""
        ...

    def unannounced(self) -> AbstractContextManager[None]:
        """Inside it writes are not notified; other programs' are reported afterwards."""
        ...


def commit(
    plan: IpvsPlan,
    kernel: Ipvs,
    rules: Rules,
    held: Table,
    rows_of: Callable[[IpvsPlan, ObjectName], Table],
) -> tuple[Failure, ...]:
    """Write a plan, and update `held` with each row that the kernel accepted.

    `rows_of` returns a Service's rows before and after the plan. Raises TransientKernelError,
    StaleStateError and PermissionKernelError, with a part of the plan written.
    """
    return _Commit(plan, kernel, rules, held, rows_of).run()


class _Commit:
    def __init__(
        self,
        plan: IpvsPlan,
        kernel: Ipvs,
        rules: Rules,
        held: Table,
        rows_of: Callable[[IpvsPlan, ObjectName], Table],
    ) -> None:
        self._plan = plan
        self._kernel = kernel
        self._rules = rules
        self._held = held
        self._rows_of = rows_of
        self._delta = plan.delta
        self._failed: dict[ObjectName, KernelError] = {}

    def run(self) -> tuple[Failure, ...]:
        self._send(additions(self._delta, self._kernel.write))
        if any(name in BY_NAME for name in chain(self._delta.remove, self._delta.add)):
            self._write_rules()
        # After the rules: packets to an address on the device are local, and meet them and IPVS.
        self._change_addresses()
        self._send(removals(self._delta, self._kernel.write))
        return tuple(Failure(name, error) for name, error in self._failed.items())

    def _send(self, found: Iterable[Write]) -> None:
        writes = list(found)
        if not writes:
            return
        errors = {
            failed.index: failed
            for failed in self._kernel.send([write.request for write in writes])
        }
        # All accepted rows are noted before an error is raised: IPVS has executed them.
        for number, write in enumerate(writes):
            failed = errors.get(number)
            if failed is None or (write.value is None and failed.errno in _GONE):
                self._note(write.table, write.key, write.value)
        for number, failed in errors.items():
            self._handle_error(writes[number], failed)

    def _handle_error(self, write: Write, failed: MessageError) -> None:
        if write.value is None and failed.errno in _GONE:
            return
        error = failed.error
        is_new = write.table == VIRTUALS and write.key not in self._held.get(VIRTUALS, {})
        # IPVS reports an unknown scheduler as ENOENT.
        if is_new and failed.errno == errno.ENOENT:
            error = RejectedError(
                f"the kernel has no scheduler {write.value.scheduler}", failed.errno
            )
        # A full plan has just read the kernel, so the virtual service is not one of ours. After a
        # partial plan, memory may be out of date.
        elif is_new and failed.errno == errno.EEXIST and self._plan.whole:
            text = virtual_text(write.key)
            error = RejectedError(f"another program has the virtual service {text}", errno.EEXIST)
        name = self._owner(write.table, write.key)
        if name in self._failed:
            return
        if name is None or not isinstance(error, RejectedError):
            raise error
        self._fail(name, error)

    def _write_rules(self) -> None:
        # The notifications of a large transaction would overflow the monitor's socket.
        with self._rules.unannounced() if self._plan.whole else nullcontext():
            # The loop ends, because each aborted transaction leaves out one Service more.
            while elements := msgspec.structs.replace(self._plan, delta=self._delta).elements():
                failed = self._rules.write(elements)
                if failed is None:
                    break
                self._attribute(elements, failed)
        # `_fail` took the rows of rejected Services out of the delta: the rest was written.
        for side, forget in ((self._delta.remove, True), (self._delta.add, False)):
            for name in side.keys() & BY_NAME.keys():
                for key, value in side[name].items():
                    self._note(name, key, None if forget else value)

    def _attribute(self, elements: list[ElementMessage], failed: MessageError) -> None:
        error = failed.error
        if not 0 <= failed.index < len(elements) or not isinstance(error, RejectedError):
            raise error
        # The kernel names the attribute that it rejected by its offset: it lies in one element.
        write = elements[failed.index]
        place = element_at(write.message, failed.offset)
        name = None if place is None else self._owner(write.set_name, write.keys[place])
        if name is None:
            raise error
        self._fail(name, error)

    def _change_addresses(self) -> None:
        gone = self._delta.remove.get(ADDRESSES_ON_DEVICE, {})
        new = self._delta.add.get(ADDRESSES_ON_DEVICE, {})
        if not gone and not new:
            return
        rejected = dict(self._kernel.change_addresses(gone, new))
        for address in gone.keys() - rejected.keys():
            self._note(ADDRESSES_ON_DEVICE, address, None)
        for address in new.keys() - rejected.keys():
            self._note(ADDRESSES_ON_DEVICE, address, b"")
        for address, error in rejected.items():
            name = next(self._services_with(address), None)
            if name is None or not isinstance(error, RejectedError):
                raise error
            self._failed.setdefault(name, error)

    def _services_with(self, address: Address) -> Iterator[ObjectName]:
        for name, routing in self._plan.services.items():
            for port in routing.ports if routing else ():
                if any(frontend.address == address for frontend in port.frontends):
                    yield name

    def _fail(self, name: ObjectName, error: KernelError) -> None:
        self._failed[name] = error
        rows = self._rows_of(self._plan, name)
        self._delta = Delta(_less(self._delta.remove, rows), _less(self._delta.add, rows))

    def _owner(self, table: str, key: Any) -> ObjectName | None:
        for name in self._plan.services:
            if key in self._rows_of(self._plan, name).get(table, {}):
                return name
        return None

    def _note(self, table: str, key: Any, value: Any) -> None:
        rows = self._held.setdefault(table, {})
        if value is not None:
            rows[key] = value
            return
        rows.pop(key, None)
        if table == VIRTUALS:
            # The kernel removes the servers of a removed virtual service.
            servers = self._held.get(SERVERS, {})
            for server in self._plan.delta.remove.get(SERVERS, {}):
                if server[0] == key:
                    servers.pop(server, None)


def _less(side: Table, rows: Table) -> Table:
    kept = {
        name: {key: value for key, value in held.items() if key not in rows.get(name, {})}
        for name, held in side.items()
    }
    return {name: held for name, held in kept.items() if held}
