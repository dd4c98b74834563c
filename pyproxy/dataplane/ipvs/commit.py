"""Writing a plan to a kernel part that has no transactions.

The order keeps every state in between serving: new virtual services first and then their servers,
then the rules in one transaction, then the addresses, and weights of 0 and removals last. A request
that the kernel rejects costs its Service alone: what was written of it is undone.

The set `claims` names the virtual services of ours that `frontends` does not list yet, or no
longer. So a process that starts after another was killed, at any point, knows them from those of
other programs.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

import msgspec

from pyproxy.dataplane.diff import Delta
from pyproxy.dataplane.interface import Failure
from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.plan import (
    IpvsPlan,
    Write,
    new_servers,
    new_virtuals,
    removals,
    virtual_text,
)
from pyproxy.dataplane.ipvs.rows import key_of_virtual, virtual_of_key
from pyproxy.dataplane.ipvs.schema import ADDRESSES_ON_DEVICE, BY_NAME, SERVERS, VIRTUALS, Table
from pyproxy.errors import KernelError, RejectedError, StaleStateError
from pyproxy.model.address import Address, Family
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import ElementMessage, element_at
from pyproxy.netlink.ipvs import Messages, Scheduling, Virtual
from pyproxy.netlink.kernel_errors import MessageError
from pyproxy.netlink.requests import Request

# IPVS reports an absent real server as ENOENT, and an absent virtual service as ESRCH.
_GONE = (errno.ENOENT, errno.ESRCH)

_Packer = Callable[[Delta[Any, Any], Messages], Iterable[Write]]


class Ipvs(Protocol):
    """Writes to IPVS and the device. The methods block."""

    @property
    def write(self) -> Messages:
        """The packer of requests for this kernel. Raises KernelError without IPVS."""
        ...

    def send(self, requests: Sequence[Request]) -> list[MessageError]:
        """Send requests in order; return those that failed. Raises KernelError."""
        ...

    def scheduling(self, virtual: Virtual) -> Scheduling | None:
        """Read one virtual service; None if there is none. Raises KernelError."""
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
        # A full plan removes the claims that it has read. Here they follow the virtual services.
        self._delta = _without_claims(plan.delta)
        self._failed: dict[ObjectName, KernelError] = {}
        # Each written row's value before this commit, None if there was no such row.
        self._before: dict[tuple[str, Any], Any] = {}

    def run(self) -> tuple[Failure, ...]:
        self._look_for_foreign()
        self._claim()
        try:
            # A server that is sent with its virtual service would be added to another program's.
            self._send(new_virtuals, self._delta)
        except KernelError:
            # One that another program has added just now must not look like ours.
            self._release_claims()
            raise
        self._send(new_servers, self._delta)
        self._write_rules()
        # After the rules: packets to an address on the device are local, and meet them and IPVS.
        self._change_addresses()
        self._send(removals, self._delta)
        self._release_claims()
        return tuple(Failure(name, error) for name, error in self._failed.items())

    def _claim(self) -> None:
        """Write down which virtual services are about to be ours, in one transaction.

        IPVS cannot say whose a virtual service is. If the process is killed before the rules are
        written, the next one finds its own by these elements.
        """
        new = self._delta.add.get(VIRTUALS, {})
        virtuals = chain(new, self._held.get(VIRTUALS, {})) if self._plan.whole else new
        self._write_claims(Delta({}, self._missing_claims(virtuals, Delta({}, {}))))

    def _release_claims(self) -> None:
        self._write_claims(self._with_claims(Delta({}, {})))

    def _write_claims(self, delta: Delta[Any, Any]) -> None:
        if elements := self._elements(delta):
            with self._rules.unannounced() if self._plan.whole else nullcontext():
                failed = self._rules.write(elements)
            if failed:
                raise failed.error
            self._note_elements(delta)

    def _with_claims(self, delta: Delta[Any, Any]) -> Delta[Any, Any]:
        """Add the claims that change with a delta of the rules.

        A virtual service that exists and that `frontends` does not list has a claim.
        """
        there = self._held.get(VIRTUALS, {})
        gone = delta.remove.get(VIRTUALS, {}).keys() & there.keys()
        new = self._missing_claims(gone, delta)
        old: Table = {}
        for family in Family:
            name = schema.CLAIMS.of(family)
            for key in self._held.get(name, {}):
                virtual = virtual_of_key(key, family)
                if virtual not in there or self._is_listed(virtual, delta):
                    old.setdefault(name, {})[key] = b""
        return Delta({**delta.remove, **old}, {**delta.add, **new})

    def _missing_claims(self, virtuals: Iterable[Virtual], delta: Delta[Any, Any]) -> Table:
        missing: Table = {}
        for virtual in virtuals:
            if virtual.mark or self._is_listed(virtual, delta):
                continue
            name, key = schema.CLAIMS.of(virtual.family), key_of_virtual(virtual)
            if key not in self._held.get(name, {}):
                missing.setdefault(name, {})[key] = b""
        return missing

    def _is_listed(self, virtual: Virtual, delta: Delta[Any, Any]) -> bool:
        """Return whether `frontends` has a virtual service after a delta."""
        name, key = schema.FRONTENDS.of(virtual.family), key_of_virtual(virtual)
        if key in delta.add.get(name, {}):
            return True
        return key in self._held.get(name, {}) and key not in delta.remove.get(name, {})

    def _look_for_foreign(self) -> None:
        """Reject Services whose virtual services other programs have, before anything is written.

        Raises StaleStateError if only a read-back can tell whose they are.
        """
        had = self._delta.remove.get(VIRTUALS, {})
        new = [v for v in self._delta.add.get(VIRTUALS, {}) if v not in had]
        if not self._plan.whole:
            for virtual in new:
                if self._kernel.scheduling(virtual) is not None:
                    text = virtual_text(virtual)
                    raise StaleStateError(f"virtual service {text} exists", errno.EEXIST)
            return
        rejected: dict[ObjectName, KernelError] = {}
        for virtual in self._plan.foreign.intersection(new):
            error = _is_foreign(virtual)
            if (name := self._owners.get((VIRTUALS, virtual))) is None:
                raise error
            rejected.setdefault(name, error)
        self._reject(rejected)

    def _send(self, pack: _Packer, delta: Delta[Any, Any]) -> None:
        writes = list(pack(delta, self._kernel.write))
        if not writes:
            return
        errors = {
            failed.index: failed
            for failed in self._kernel.send([write.request for write in writes])
        }
        # All accepted rows are noted before an error is raised: IPVS has executed them.
        gone: set[Virtual] = set()
        for number, write in enumerate(writes):
            failed = errors.get(number)
            if failed is None or _is_gone(write, failed):
                self._note(write.table, write.key, write.value)
                if write.table == VIRTUALS and write.value is None:
                    gone.add(write.key)
        # The kernel removes the servers of a removed virtual service.
        for key in delta.remove.get(SERVERS, {}) if gone else ():
            if key[0] in gone:
                self._note(SERVERS, key, None)
        rejected: dict[ObjectName, KernelError] = {}
        for number, failed in errors.items():
            if not _is_gone(writes[number], failed):
                name, error = self._judge(writes[number], failed)
                rejected.setdefault(name, error)
        self._reject(rejected)

    def _judge(self, write: Write, failed: MessageError) -> tuple[ObjectName, KernelError]:
        """Return the Service that an error rejects; raise the error if it rejects none."""
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
            error = _is_foreign(write.key)
        name = self._owners.get((write.table, write.key))
        if name is None or not isinstance(error, RejectedError):
            raise error
        return name, error

    def _write_rules(self) -> None:
        # The notifications of a large transaction would overflow the monitor's socket.
        with self._rules.unannounced() if self._plan.whole else nullcontext():
            # The loop ends, because each aborted transaction leaves out one Service more.
            while elements := self._elements(delta := self._with_claims(self._delta)):
                failed = self._rules.write(elements)
                if failed is None:
                    # `_reject` took the rows of rejected Services out: the rest was written.
                    self._note_elements(delta)
                    break
                self._reject(self._attribute(elements, failed))

    def _elements(self, delta: Delta[Any, Any]) -> list[ElementMessage]:
        return msgspec.structs.replace(self._plan, delta=delta).elements()

    def _note_elements(self, delta: Delta[Any, Any]) -> None:
        for side, forget in ((delta.remove, True), (delta.add, False)):
            for name in side.keys() & BY_NAME.keys():
                for key, value in side[name].items():
                    self._note(name, key, None if forget else value)

    def _attribute(
        self, elements: list[ElementMessage], failed: MessageError
    ) -> dict[ObjectName, KernelError]:
        error = failed.error
        if not 0 <= failed.index < len(elements) or not isinstance(error, RejectedError):
            raise error
        # The kernel names the attribute that it rejected by its offset: it lies in one element.
        write = elements[failed.index]
        place = element_at(write.message, failed.offset)
        name = None if place is None else self._owners.get((write.set_name, write.keys[place]))
        if name is None or name in self._failed:
            raise error
        return {name: error}

    def _change_addresses(self) -> None:
        rejected: dict[ObjectName, KernelError] = {}
        for address, error in self._send_addresses(self._delta).items():
            name = self._owner_of_address.get(address)
            if name is None or not isinstance(error, RejectedError):
                raise error
            rejected.setdefault(name, error)
        self._reject(rejected)

    def _send_addresses(self, delta: Delta[Any, Any]) -> dict[Address, KernelError]:
        gone = delta.remove.get(ADDRESSES_ON_DEVICE, {})
        new = delta.add.get(ADDRESSES_ON_DEVICE, {})
        if not gone and not new:
            return {}
        rejected = dict(self._kernel.change_addresses(gone, new))
        for address in gone.keys() - rejected.keys():
            self._note(ADDRESSES_ON_DEVICE, address, None)
        for address in new.keys() - rejected.keys():
            self._note(ADDRESSES_ON_DEVICE, address, b"")
        return rejected

    def _reject(self, errors: dict[ObjectName, KernelError]) -> None:
        """Leave Services out of the rest of the commit, and undo the rows written of them."""
        new = {name: error for name, error in errors.items() if name not in self._failed}
        if not new:
            return
        self._failed.update(new)
        rows = _Rows(self._rows_of(self._plan, name) for name in new)
        self._delta = Delta(rows.missing_in(self._delta.remove), rows.missing_in(self._delta.add))
        remove: Table = {}
        add: Table = {}
        for (table, key), before in self._before.items():
            now = self._held[table].get(key)
            if now == before or not rows.have(table, key):
                continue
            if now is not None:
                remove.setdefault(table, {})[key] = now
            if before is not None:
                add.setdefault(table, {})[key] = before
        self._undo(Delta(remove, add))

    def _undo(self, delta: Delta[Any, Any]) -> None:
        # Errors other than of a rejected Service's own rows are raised: a read-back comes next.
        self._send(new_virtuals, delta)
        self._send(new_servers, delta)
        rows = self._with_claims(delta)
        if elements := self._elements(rows):
            if failed := self._rules.write(elements):
                raise StaleStateError(f"undoing a rejected change: {failed.error}", failed.errno)
            self._note_elements(rows)
        for error in self._send_addresses(delta).values():
            raise StaleStateError(f"undoing a rejected change: {error}", error.errno)
        self._send(removals, delta)

    @cached_property
    def _owners(self) -> dict[tuple[str, Any], ObjectName]:
        # Made once, at the first error: many Services may be rejected in one commit.
        owners: dict[tuple[str, Any], ObjectName] = {}
        for name in self._plan.services:
            for table, rows in self._rows_of(self._plan, name).items():
                for key in rows:
                    owners.setdefault((table, key), name)
        return owners

    @cached_property
    def _owner_of_address(self) -> dict[Address, ObjectName]:
        owners: dict[Address, ObjectName] = {}
        for name, routing in self._plan.services.items():
            for port in routing.ports if routing else ():
                for frontend in port.frontends:
                    owners.setdefault(frontend.address, name)
        return owners

    def _note(self, table: str, key: Any, value: Any) -> None:
        rows = self._held.setdefault(table, {})
        self._before.setdefault((table, key), rows.get(key))
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value


class _Rows:
    """The rows of some Services, with all servers of their virtual services."""

    def __init__(self, tables: Iterable[Table]) -> None:
        self._keys: dict[str, set[Any]] = {}
        for table in tables:
            for name, rows in table.items():
                self._keys.setdefault(name, set()).update(rows)

    def have(self, table: str, key: Any) -> bool:
        if key in self._keys.get(table, ()):
            return True
        # After a restart no routing says which servers a rejected Service had before.
        return table == SERVERS and key[0] in self._keys.get(VIRTUALS, ())

    def missing_in(self, side: Table) -> Table:
        kept = {
            name: {key: value for key, value in rows.items() if not self.have(name, key)}
            for name, rows in side.items()
        }
        return {name: rows for name, rows in kept.items() if rows}


def _without_claims(delta: Delta[Any, Any]) -> Delta[Any, Any]:
    claims = {schema.CLAIMS.of(family) for family in Family}
    return Delta(
        *(
            {name: rows for name, rows in side.items() if name not in claims}
            for side in (delta.remove, delta.add)
        )
    )


def _is_foreign(virtual: Virtual) -> RejectedError:
    text = virtual_text(virtual)
    return RejectedError(f"another program has the virtual service {text}", errno.EEXIST)


def _is_gone(write: Write, failed: MessageError) -> bool:
    return write.value is None and failed.errno in _GONE
