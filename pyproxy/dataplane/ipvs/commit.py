"""Writing a plan: IPVS first, then the rules and the addresses, and what goes last."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import msgspec

from pyproxy.dataplane.diff import Delta
from pyproxy.dataplane.interface import Failure
from pyproxy.dataplane.ipvs.plan import IpvsPlan, Write, builds, clearances, virtual_text
from pyproxy.dataplane.ipvs.schema import ADDRESSES_ON_DEVICE, BY_NAME, SERVERS, VIRTUALS, Table
from pyproxy.errors import KernelError, RejectedError
from pyproxy.model.address import Address
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import ElementMessage, element_at
from pyproxy.netlink.ipvs import Messages
from pyproxy.netlink.kernel_errors import MessageError
from pyproxy.netlink.requests import Request

_GONE = (errno.ENOENT, errno.ESRCH)


class Ipvs(Protocol):
    """IPVS and the device, as far as writing is concerned."""

    @property
    def write(self) -> Messages:
        """Writes requests for this kernel."""
        ...

    def send(self, requests: Sequence[Request]) -> list[MessageError]:
        """Send requests; the refusals. Raises KernelError."""
        ...

    def change_addresses(
        self, gone: Iterable[Address], new: Iterable[Address]
    ) -> list[tuple[Address, KernelError]]:
        """Take addresses from the device and give it others; those that were refused."""
        ...


class Rules(Protocol):
    """The table of rules, as far as writing is concerned."""

    def write(self, elements: list[ElementMessage]) -> MessageError | None:
        """Write elements in one transaction; None says that it was committed."""
        ...

    def pause(self) -> None:
        """Hear nothing of others until `listen`."""
        ...

    def listen(self) -> None:
        """Hear of others again."""
        ...


class Outcome(msgspec.Struct, frozen=True):
    """The Services that the kernel would not take."""

    failures: tuple[Failure, ...]


def commit(
    plan: IpvsPlan,
    kernel: Ipvs,
    rules: Rules,
    held: Table,
    rows_of: Callable[[IpvsPlan, ObjectName], Table],
) -> Outcome:
    """Write a plan, and note in `held` what the kernel took.

    `rows_of` gives what a Service has or was to have. Raises TransientKernelError, StaleStateError
    and PermissionKernelError, with a part of it written.
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

    def run(self) -> Outcome:
        self._send(builds(self._delta, self._kernel.write))
        if any(name in BY_NAME for name in chain(self._delta.remove, self._delta.add)):
            self._write_rules()
        self._change_addresses()
        self._send(clearances(self._delta, self._kernel.write))
        return Outcome(tuple(Failure(name, error) for name, error in self._failed.items()))

    def _send(self, found: Iterable[Write]) -> None:
        writes = list(found)
        if not writes:
            return
        refusals = {
            refusal.index: refusal
            for refusal in self._kernel.send([write.request for write in writes])
        }
        for number, write in enumerate(writes):
            refusal = refusals.get(number)
            if refusal is None or (write.value is None and refusal.errno in _GONE):
                self._note(write.table, write.key, write.value)
        for number, refusal in refusals.items():
            self._refused(writes[number], refusal)

    def _refused(self, write: Write, refusal: MessageError) -> None:
        if write.value is None and refusal.errno in _GONE:
            return
        error = refusal.error
        is_new = write.table == VIRTUALS and write.key not in self._held.get(VIRTUALS, {})
        if is_new and refusal.errno == errno.ENOENT:
            error = RejectedError(f"no scheduler {write.value.scheduler} here", refusal.errno)
        elif is_new and refusal.errno == errno.EEXIST and self._plan.whole:
            text = virtual_text(write.key)
            error = RejectedError(f"another program has the virtual service {text}", errno.EEXIST)
        name = self._owner(write.table, write.key)
        if name in self._failed:
            return
        if name is None or not isinstance(error, RejectedError):
            raise error
        self._fail(name, error)

    def _write_rules(self) -> None:
        large = self._plan.whole
        if large:
            self._rules.pause()
        try:
            while elements := msgspec.structs.replace(self._plan, delta=self._delta).elements():
                refusal = self._rules.write(elements)
                if refusal is None:
                    break
                self._blame(elements, refusal)
        finally:
            if large:
                self._rules.listen()
        for side, forget in ((self._delta.remove, True), (self._delta.add, False)):
            for name in side.keys() & BY_NAME.keys():
                for key, value in side[name].items():
                    self._note(name, key, None if forget else value)

    def _blame(self, elements: list[ElementMessage], refusal: MessageError) -> None:
        error = refusal.error
        if not 0 <= refusal.index < len(elements) or not isinstance(error, RejectedError):
            raise error
        write = elements[refusal.index]
        place = element_at(write.message, refusal.offset)
        name = None if place is None else self._owner(write.set_name, write.keys[place])
        if name is None:
            raise error
        self._fail(name, error)

    def _change_addresses(self) -> None:
        gone = self._delta.remove.get(ADDRESSES_ON_DEVICE, {})
        new = self._delta.add.get(ADDRESSES_ON_DEVICE, {})
        if not gone and not new:
            return
        refused = dict(self._kernel.change_addresses(gone, new))
        for address in gone.keys() - refused.keys():
            self._note(ADDRESSES_ON_DEVICE, address, None)
        for address in new.keys() - refused.keys():
            self._note(ADDRESSES_ON_DEVICE, address, b"")
        for address, error in refused.items():
            name = next(self._claimants(address), None)
            if name is None or not isinstance(error, RejectedError):
                raise error
            self._failed.setdefault(name, error)

    def _claimants(self, address: Address) -> Iterator[ObjectName]:
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
            # With a virtual service go its servers.
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
