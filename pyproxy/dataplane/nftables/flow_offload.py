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

from pyproxy.dataplane.interface import FlowOffloadState
from pyproxy.dataplane.nftables import offload_chain
from pyproxy.dataplane.nftables.offload_chain import NAME
from pyproxy.dataplane.nftables.offload_plan import NOTHING, Held, OffloadPlan, plan_offload
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.errors import KernelError, StaleStateError, TransientKernelError
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

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)


class FlowOffload:
    """Keeps the fast path on these devices, or removes it if they are None.

    `plan` and `apply` are for the thread that commits. The others say who may call them.
    """

    def __init__(self, netlink: Nfnetlink, devices: OffloadDevices | None) -> None:
        self._netlink = netlink
        self._devices = devices
        # A device that the kernel refused is not tried again until it is another one.
        self._refused: dict[str, str] = {}
        self._bound: frozenset[str] = frozenset()
        self._inactive = "" if devices is None else "the first sync is not complete"
        self._has_failed = False

    def state(self) -> FlowOffloadState | None:
        """Return the state for people; None if no fast path is wanted. Any thread."""
        if self._devices is None:
            return None
        return FlowOffloadState(
            tuple(sorted(self._bound)), dict(self._refused), self._inactive, _read_added()
        )

    def wait(self) -> bool:
        """Block until devices change; False after `close`, or if none matters. KernelError."""
        return self._devices is not None and self._devices.wait()

    def plan(self) -> OffloadPlan:
        """Read the fast path back and plan from there. Raises KernelError."""
        if self._devices is not None and not self._has_failed and not _KEEPS_TIMEOUTS.exists():
            self._failed("this kernel lacks flowtables that keep conntrack's timeouts (Linux 5.14)")
        return plan_offload(self._read(), None if self._has_failed else self._wanted())

    def is_intact(self) -> bool:
        """Return whether flowtable and chains are as they were written. Raises KernelError.

        Devices that are about to be bound do not count.
        """
        plan = self.plan()
        return not plan.without(frozenset((*plan.bind, *plan.release)))

    def plan_devices(self) -> OffloadPlan:
        """Plan a change of devices alone. Raises KernelError."""
        if self._inactive or self._devices is None:
            return NOTHING
        held = self._read_devices()
        self._bound = held or frozenset()
        # A table without it is a drift, which a repair restores.
        return NOTHING if held is None else plan_offload(Held(held, True, True), self._wanted())

    def apply(self, plan: OffloadPlan) -> None:
        """Write a plan. Devices that the kernel refuses are logged once, and left out.

        Raises KernelError if nothing could be sent.
        """
        is_first = bool(self._inactive) and not self._has_failed
        for _ in range(_ATTEMPTS):
            messages = list(plan.messages())
            errors = self._netlink.transact([each for _, each in messages], SUBSYSTEM)
            if not errors:
                self._written(plan, is_first=is_first)
                return
            at_fault = {messages[each.index][0]: each.error for each in errors if each.index >= 0}
            if not at_fault or "" in at_fault:
                self._refused_by_kernel(errors[0].error)
                return
            for device, error in at_fault.items():
                self._could_not_bind(device, error, plan)
            plan = plan.without(frozenset(at_fault))
        log.info("devices change faster than flow offload follows them, trying again later")

    def close(self) -> None:
        """End `wait`."""
        if self._devices is not None:
            self._devices.end()

    def _wanted(self) -> frozenset[str] | None:
        if self._devices is None:
            return None
        for gone in self._refused.keys() - self._devices.present():
            del self._refused[gone]
        return self._devices.chosen() - self._refused.keys()

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
        if self._devices is None or self._has_failed:
            if plan:
                log.info("flow offload is off: removed flowtable inet %s %s", TABLE, NAME)
            return
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
        if isinstance(error, TransientKernelError):
            log.info("cannot change flow offload now, trying again: %s", error)
            return
        cause = "this kernel has no flowtables" if error.errno in _UNSUPPORTED else "kernel error"
        self._failed(f"{cause} ({error})")

    def _failed(self, reason: str) -> None:
        self._has_failed = True
        self._bound = frozenset()
        self._inactive = reason
        log.warning("flow offload is not active: %s: connections take the slow path", reason)

    def _could_not_bind(self, device: str, error: KernelError, plan: OffloadPlan) -> None:
        # The device is gone, or another of its name came: its notification is under way.
        if error.errno in (errno.ENOENT, errno.ENODEV) or device in plan.release:
            return
        self._refused[device] = str(error)
        log.warning("flow offload leaves interface %s out: cannot bind it: %s", device, error)


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
