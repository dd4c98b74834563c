"""The type of a proxy mode's declaration: one value with all that depends on the mode.

Each dataplane's package has such a value in its module `mode`. That module is imported by every
agent, whichever mode serves, so it imports the rest of its package inside its functions.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import msgspec

from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import Settings
from pyproxy.dataplane.connections import ConnectionCounters
from pyproxy.dataplane.interface import Dataplane
from pyproxy.dataplane.packets import PacketTracer
from pyproxy.model.address import Address
from pyproxy.takeover.leftovers import InService

LocalAddresses = Callable[[], Iterable[Address]]
"""Returns the addresses of this machine's interfaces. May raise KernelError."""


class Capability(enum.IntEnum):
    """The capabilities that an agent may need, by the kernel's numbers."""

    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    NET_RAW = 13


class KernelPart(msgspec.Struct, frozen=True):
    """A part of the kernel: the module that it may be in, and a file below / that it shows."""

    module: str
    shown: str


NF_TABLES = KernelPart("nf_tables", "")
"""nf_tables shows no file, and is asked over netlink."""


class KernelSetting(msgspec.Struct, frozen=True):
    """A file below / with one number in it; `at_least` leaves a larger number as it is.

    `module` is the kernel module that has it.
    """

    path: PurePath
    value: int
    at_least: bool = False
    module: str = "nf_conntrack"

    @property
    def name(self) -> str:
        """The sysctl's name, or the file's path."""
        parts = self.path.parts
        return ".".join(parts[2:]) if parts[:2] == ("proc", "sys") else f"/{self.path}"

    def is_met_by(self, value: int) -> bool:
        """Return whether nothing has to be done if the file holds `value`."""
        return value >= self.value if self.at_least else value == self.value


class FailureNames(msgspec.Struct, frozen=True):
    """kube-proxy's names of two counters in one mode, after `kubeproxy_sync_proxy_rules_`.

    Empty if it has no such counter in that mode.
    """

    sync: str = ""
    cleanup: str = ""


def _no_modules(_: Settings) -> tuple[str, ...]:
    return ()


def _no_settings(_: Settings) -> tuple[KernelSetting, ...]:
    return ()


def _no_capabilities() -> frozenset[Capability]:
    return frozenset()


def _nothing_in_service(_: Dataplane[Any]) -> InService:
    return InService()


class Mode(msgspec.Struct, frozen=True, kw_only=True):
    """All that depends on one proxy mode. No function is called before its answer is needed.

    - `make`: return the dataplane for these settings, in the caller's network namespace. Raises
      UsageError if this machine cannot have one.
    - `tracer`: return the packet tracer for these settings. Raises KernelError.
    - `counters`: return the reader of connection counters. Raises KernelError.
    - `remove_leftovers`: remove our objects of this mode, and yield a line for each kind removed.
      Idempotent; blocks. Its argument is the dataplane that serves in this mode, whose objects
      stay; None if another mode serves. Raises KernelError, UsageError.
    - `in_service`: return what of kube-proxy's objects this dataplane has adopted, which a
      takeover must not remove.
    - `programs`: each program that the mode runs, and its Debian package.
    - `kernel_parts`: of each group one part must be there.
    - `modules`: kernel modules that the kernel does not load by itself.
    - `kernel_settings`: sysctls that the mode needs for as long as it serves.
    - `capabilities`: those that serving needs beyond CAP_NET_ADMIN.
    - `capabilities_to_remove`: those that `remove_leftovers` needs beyond CAP_NET_ADMIN.
    - `device`: the network device with service addresses, which are not the node's own.
    - `failure_names`: kube-proxy's names of the metrics that count failures in this mode.
    """

    proxy_mode: ProxyMode
    make: Callable[[Settings], Dataplane[Any]]
    tracer: Callable[[Settings, LocalAddresses], PacketTracer]
    counters: Callable[[Settings], ConnectionCounters]
    remove_leftovers: Callable[[Dataplane[Any] | None], Iterator[str]]
    in_service: Callable[[Dataplane[Any]], InService] = _nothing_in_service
    programs: Mapping[str, str] = {}
    kernel_parts: tuple[tuple[KernelPart, ...], ...] = ()
    modules: Callable[[Settings], tuple[str, ...]] = _no_modules
    kernel_settings: Callable[[Settings], tuple[KernelSetting, ...]] = _no_settings
    capabilities: frozenset[Capability] = frozenset()
    capabilities_to_remove: Callable[[], frozenset[Capability]] = _no_capabilities
    device: str = ""
    failure_names: FailureNames = FailureNames()

    @property
    def name(self) -> str:
        """The mode as `--proxy-mode` has it."""
        return self.proxy_mode.value
