"""The fast path: a flowtable, its devices, and the chain that puts connections on it.

A packet of a connection in the flowtable goes from the device that it came in by to the device that
it leaves by, past routing and all hooks of all tables. `offload_chain` says which connections.

All is written in transactions of its own, after those of the Services: a node whose kernel refuses
the fast path serves without it.
"""

from __future__ import annotations

import errno
import logging
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pyproxy.backoff import Backoff
from pyproxy.dataplane.interface import FlowOffloadState
from pyproxy.dataplane.nftables import offload_chain
from pyproxy.dataplane.nftables.offload_chain import NAME
from pyproxy.dataplane.nftables.offload_plan import NOTHING, Held, OffloadPlan, plan_offload
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.errors import (
    KernelError,
    PermissionKernelError,
    StaleStateError,
    TransientKernelError,
)
from pyproxy.netlink import flowtables, nftables
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM

if TYPE_CHECKING:
    from pyproxy.dataplane.nftables.offload_devices import OffloadDevices

log = logging.getLogger(__name__)

_ATTEMPTS = 4
"""Transactions for one plan: each one but the last leaves out devices that the kernel refused."""

_KEEPS_TIMEOUTS = Path("/proc/sys/net/netfilter/nf_flowtable_tcp_timeout")
"""A sysctl of Linux 5.14 and newer. An older kernel cuts the conntrack timeout of a connection that
leaves the fast path to 120 s, and one that is idle for longer is then broken."""

_CONNTRACK = _KEEPS_TIMEOUTS.with_name("nf_conntrack_max")
"""A file of the same module, which the first rules may load."""

_LONGEST_RETRY = 32
"""Calls of `retry` between two attempts at most: about a minute."""

_MOST_DEVICES = 1000
"""The kernel lists no flowtable whose devices exceed one message of 32 KiB: about 1,600."""

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)


class _Refusal(msgspec.Struct, frozen=True):
    """Why the kernel refused to bind the device with an index."""

    index: int
    error: KernelError


class FlowOffload:
    """Keeps the fast path on these devices, or removes it if they are None.

    `plan` and `apply` are for the thread that commits. The others say who may call them.
    """

    def __init__(self, netlink: Nfnetlink, devices: OffloadDevices | None) -> None:
        self._netlink = netlink
        self._devices = devices
        # A device that the kernel refused is not tried again until it is another one, or until
        # `retry` if the error may pass.
        self._refused: dict[str, _Refusal] = {}
        # The errors that have been logged, by device.
        self._logged: dict[str, str] = {}
        self._bound: frozenset[str] = frozenset()
        self._left_out = 0
        self._inactive = "" if devices is None else "the first sync is not complete"
        self._has_failed = False
        # Whether the last plan was made without an error.
        self._is_planned = False
        # Whether something failed that no change will repeat.
        self._is_behind = False
        self._backoff = Backoff(1, _LONGEST_RETRY)
        self._calls_until_retry = 0

    def state(self) -> FlowOffloadState | None:
        """Return the state for people; None if no fast path is wanted. Any thread."""
        if self._devices is None:
            return None
        return FlowOffloadState(
            tuple(sorted(self._bound)),
            {name: str(each.error) for name, each in self._refused.items()},
            self._inactive,
            _read_added(),
        )

    def wait(self) -> bool:
        """Block until devices change; False after `close`, or if none matters. KernelError."""
        return self._devices is not None and self._devices.wait()

    def plan(self) -> OffloadPlan:
        """Read the fast path back and plan from there. Raises PermissionKernelError.

        Another error is logged. The plan is then empty, and `retry` makes another one.
        """
        self._is_planned = False
        if self._devices is not None and not self._has_failed and _cuts_timeouts():
            self._failed("this kernel lacks flowtables that keep conntrack's timeouts (Linux 5.14)")
        try:
            plan = plan_offload(self._read(), None if self._has_failed else self._wanted())
        except PermissionKernelError:
            raise
        except KernelError as error:
            self._failed_for_now(error)
            return NOTHING
        self._is_planned = True
        return plan

    def is_intact(self) -> bool:
        """Return whether flowtable and chains are as they were written.

        Devices that are about to be bound do not count. Raises PermissionKernelError.
        """
        plan = self.plan()
        return not plan.without(frozenset((*plan.bind, *plan.release)))

    def plan_devices(self) -> OffloadPlan:
        """Plan a change of devices alone. Raises KernelError; `retry` then makes another plan."""
        if self._inactive or self._devices is None:
            return NOTHING
        was_behind, self._is_behind, self._is_planned = self._is_behind, True, False
        held = self._read_devices()
        self._bound = held or frozenset()
        # A table without it is a drift, which a repair restores.
        plan = NOTHING if held is None else plan_offload(Held(held, True, True), self._wanted())
        self._is_behind, self._is_planned = was_behind, True
        return plan

    def apply(self, plan: OffloadPlan) -> None:
        """Write the last plan. Raises PermissionKernelError.

        Devices that the kernel refuses are logged once, and left out. `retry` repeats what fails
        for now, which is logged.
        """
        if not self._is_planned:
            return
        is_first = bool(self._inactive) and not self._has_failed
        self._is_behind, is_whole = True, True
        try:
            for _ in range(_ATTEMPTS):
                messages = list(plan.messages())
                errors = self._netlink.transact([each for _, each in messages], SUBSYSTEM)
                if not errors:
                    self._written(plan, is_first=is_first)
                    self._is_behind |= not is_whole
                    return
                at_fault = {
                    messages[each.index][0]: each.error for each in errors if each.index >= 0
                }
                if not at_fault or "" in at_fault:
                    self._refused_by_kernel(errors[0].error)
                    return
                for device, error in at_fault.items():
                    is_whole &= self._could_not_bind(device, error, plan)
                plan = plan.without(frozenset(at_fault))
        except PermissionKernelError:
            raise
        except KernelError as error:
            self._failed_for_now(error)
            return
        log.info("devices change faster than flow offload follows them, trying again later")

    def retry(self) -> None:
        """Try again what failed for now, as no change of devices may do it.

        Call it every few seconds: after more failures it tries less often. Raises
        PermissionKernelError; other failures are logged.
        """
        if not self._is_behind:
            return
        self._calls_until_retry -= 1
        if self._calls_until_retry >= 0:
            return
        self._refused = {
            name: each for name, each in self._refused.items() if not _may_pass(each.error)
        }
        self.apply(self.plan())
        if self._is_behind:
            self._calls_until_retry = int(self._backoff.next())
        else:
            self._backoff.reset()

    def close(self) -> None:
        """End `wait`."""
        if self._devices is not None:
            self._devices.end()

    def _wanted(self) -> frozenset[str] | None:
        if self._devices is None:
            return None
        present = self._devices.indices()
        self._refused = {
            name: each for name, each in self._refused.items() if present.get(name) == each.index
        }
        self._logged = {name: text for name, text in self._logged.items() if name in present}
        return self._bounded(self._devices.chosen() - self._refused.keys())

    def _bounded(self, wanted: frozenset[str]) -> frozenset[str]:
        left_out = max(0, len(wanted) - _MOST_DEVICES)
        if left_out and not self._left_out:
            log.warning(
                "flow offload leaves %d interfaces out, because a flowtable has %d at most: name "
                "those to bind by --flow-offload-interfaces",
                left_out,
                _MOST_DEVICES,
            )
        self._left_out = left_out
        # Those that are bound come first, so that others do not take their places.
        ordered = sorted(wanted, key=lambda name: (name not in self._bound, name))
        return frozenset(ordered[:_MOST_DEVICES]) if left_out else wanted

    def _read(self) -> Held:
        devices = self._read_devices()
        # Rules of the chain use the flowtable, which therefore outlives them.
        if devices is None:
            return Held()
        chains = nftables.read_chains(self._netlink.dump(nftables.get_chains()), TABLE)
        hook = chains.get(NAME)
        if hook is None:
            return Held(devices)
        return Held(devices, True, offload_chain.is_complete(hook, _read_rules(self._netlink)))

    def _read_devices(self) -> frozenset[str] | None:
        try:
            replies = self._netlink.dump(flowtables.get_flowtables(TABLE))
        except StaleStateError:
            return None
        found = flowtables.read_flowtables(replies).get(NAME)
        return None if found is None else found.devices

    def _written(self, plan: OffloadPlan, *, is_first: bool) -> None:
        # Writing the chain may have loaded conntrack, which shows what the kernel can do.
        self._is_behind = (
            self._devices is not None and not self._has_failed and _cuts_timeouts()
        ) or any(_may_pass(each.error) for each in self._refused.values())
        if self._devices is None or self._has_failed:
            if plan:
                log.info("flow offload is off: removed flowtable inet %s %s", TABLE, NAME)
            return
        for device in plan.bind:
            self._logged.pop(device, None)
        self._bound = (self._bound | frozenset(plan.bind)) - frozenset(plan.release)
        self._inactive = ""
        if is_first:
            self._bound = self._read_devices() or frozenset()
            log.info(
                "flow offload: established connections to Services pass routing and all hooks by, "
                "on %s",
                ", ".join(sorted(self._bound)) or "no interface yet",
            )

    def _refused_by_kernel(self, error: KernelError) -> None:
        # Without the table this error says nothing: another program has deleted it, and the repair
        # writes it again.
        if _may_pass(error) or not self._has_table():
            self._failed_for_now(error)
            return
        cause = "this kernel has no flowtables" if error.errno in _UNSUPPORTED else "kernel error"
        self._failed(f"{cause} ({error})")

    def _has_table(self) -> bool:
        return TABLE in nftables.read_table_names(self._netlink.dump(nftables.get_tables()))

    def _failed_for_now(self, error: KernelError) -> None:
        # Once for all failures in a row.
        level = logging.DEBUG if self._backoff.failures else logging.INFO
        log.log(level, "cannot change flow offload now, trying again: %s", error)
        self._is_behind = True

    def _failed(self, reason: str) -> None:
        self._has_failed = True
        self._is_behind = False
        self._bound = frozenset()
        self._inactive = reason
        log.warning("flow offload is not active: %s: connections take the slow path", reason)

    def _could_not_bind(self, device: str, error: KernelError, plan: OffloadPlan) -> bool:
        """Note that the kernel refused a device; return False if the next plan may have it."""
        index = self._devices.indices().get(device) if self._devices is not None else None
        # The device is gone, or another of its name came: its notification is under way.
        if error.errno in (errno.ENOENT, errno.ENODEV) or device in plan.release or index is None:
            return False
        self._refused[device] = _Refusal(index, error)
        if self._logged.get(device) != str(error):
            self._logged[device] = str(error)
            log.warning("flow offload leaves interface %s out: cannot bind it: %s", device, error)
        return not _may_pass(error)


def _may_pass(error: KernelError) -> bool:
    return isinstance(error, TransientKernelError)


def _cuts_timeouts() -> bool:
    """Return whether conntrack is loaded, and flowtables of this kernel would cut its timeouts."""
    return _CONNTRACK.exists() and not _KEEPS_TIMEOUTS.exists()


def _read_rules(netlink: Nfnetlink) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for name in offload_chain.CHAINS:
        found |= nftables.read_rules(netlink.dump(nftables.get_chain_rules(TABLE, name)))
    return found


def _read_added() -> int:
    # A socket of its own: this is called in any thread.
    with closing(Nfnetlink()) as netlink:
        try:
            return offload_chain.count_added(_read_rules(netlink))
        except StaleStateError:
            return 0
