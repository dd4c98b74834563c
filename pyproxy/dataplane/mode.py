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
    # Legacy iptables opens a raw socket, which nf_tables does without.
    NET_RAW = 13


class KernelPart(msgspec.Struct, frozen=True):
    """A part of the kernel: the module that it may be in, and a file below / that it shows."""

    module: str
    shown: str


NF_TABLES = KernelPart("nf_tables", "")
"""nf_tables shows no file, and is detected over netlink."""


class KernelSetting(msgspec.Struct, frozen=True):
    """A file below / with one number in it; `at_least` leaves a larger number as it is.

    `module` is the kernel module that has it. An `optional` one is left out where the kernel lacks
    the file.
    """

    path: PurePath
    value: int
    at_least: bool = False
    module: str = "nf_conntrack"
    optional: bool = False

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
    """All that depends on one proxy mode. No function imports more than its result needs."""

    proxy_mode: ProxyMode
    make: Callable[[Settings], Dataplane[Any]]
    """Return the dataplane of the caller's network namespace. Raises UsageError."""

    tracer: Callable[[Settings, LocalAddresses], PacketTracer]
    """Return the packet tracer of the caller's network namespace. Raises KernelError."""

    counters: Callable[[Settings], ConnectionCounters]
    """Return the reader of connection counters. Raises KernelError."""

    remove_leftovers: Callable[[Dataplane[Any] | None], Iterator[str]]
    """Remove our objects of this mode, and yield a line for each kind removed.

    The argument is the dataplane that serves in this mode, whose objects stay; None if another mode
    serves. Idempotent; blocks. Raises KernelError, UsageError.
    """

    in_service: Callable[[Dataplane[Any]], InService] = _nothing_in_service
    """Return the objects of kube-proxy that a dataplane has adopted and a takeover must leave."""

    programs: Mapping[str, str] = {}
    """Each program that the mode runs, and its Debian package."""

    kernel_parts: tuple[tuple[KernelPart, ...], ...] = ()
    """The parts of the kernel that the mode needs: one of each group."""

    modules: Callable[[Settings], tuple[str, ...]] = _no_modules
    """Return the kernel modules that the kernel does not load by itself."""

    kernel_settings: Callable[[Settings], tuple[KernelSetting, ...]] = _no_settings
    """Return the sysctls that the mode needs for as long as it serves."""

    capabilities: frozenset[Capability] = frozenset()
    """The capabilities that serving needs beyond CAP_NET_ADMIN."""

    capabilities_to_remove: Callable[[], frozenset[Capability]] = _no_capabilities
    """Return the capabilities that `remove_leftovers` needs beyond CAP_NET_ADMIN."""

    device: str = ""
    """The network device with service addresses, which are not the node's own."""

    translates_before_routing: bool = True
    """Whether packets are routed after their translation, with their source and mark.

    IPVS looks up a route to the endpoint itself, without them (do_output_route4 in
    net/netfilter/ipvs/ip_vs_xmit.c).
    """

    owns_iptables: bool = False
    """Whether kube-proxy's chains of iptables are this mode's own while it serves."""

    owns_ipvs: bool = False
    """Whether IPVS virtual services are this mode's own while it serves."""

    divides_node_ports: bool = False
    """Whether the kernel needs a frontend of its own for a node port on each address."""

    serves_local_networks: bool = False
    """Whether `--nodeport-addresses=all` includes local routes to networks of any size."""

    failure_names: FailureNames = FailureNames()
    """kube-proxy's names of the counters of failures in this mode."""

    @property
    def name(self) -> str:
        """The mode as `--proxy-mode` has it."""
        return self.proxy_mode.value
