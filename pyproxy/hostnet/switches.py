"""The sysctls that decide whether the kernel forwards, accepts and tracks packets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from pyproxy.errors import KernelError
from pyproxy.hostnet.devices import Devices
from pyproxy.hostnet.packet import ServicePaths
from pyproxy.model.address import Family
from pyproxy.netlink.conntrack_statistics import ConntrackCounters, read_counters

_ROOT = Path("/proc/sys/net")
_MAX_DEVICES = 32
_WHOLE = (
    "ipv4.ip_default_ttl",
    "ipv4.ip_forward",
    "ipv4.neigh.default.gc_thresh3",
    "ipv6.neigh.default.gc_thresh3",
    "ipv6.conf.all.forwarding",
    "bridge.bridge-nf-call-iptables",
    "bridge.bridge-nf-call-ip6tables",
    "netfilter.nf_conntrack_count",
    "netfilter.nf_conntrack_max",
    "netfilter.nf_conntrack_tcp_be_liberal",
    "netfilter.nf_conntrack_tcp_timeout_syn_sent",
    "netfilter.nf_conntrack_tcp_timeout_syn_recv",
    "netfilter.nf_conntrack_tcp_timeout_established",
    "netfilter.nf_conntrack_udp_timeout",
    "netfilter.nf_conntrack_udp_timeout_stream",
)
_IPV4_DEVICE = ("arp_ignore", "forwarding", "rp_filter", "route_localnet")
_IPV6_DEVICE = ("disable_ipv6", "force_forwarding")


class SwitchFacts(msgspec.Struct, frozen=True):
    """Sysctls by their name after `net.`; those that this kernel lacks are missing.

    `devices` are those that were asked about. `conntrack` is None if its counters were not read.
    `local_ports` is the number of ports from which this node connects.
    """

    values: Mapping[str, int] = {}
    devices: tuple[str, ...] = ()
    conntrack: ConntrackCounters | None = None
    local_ports: int | None = None

    def get(self, name: str) -> int | None:
        """Return the value of a sysctl."""
        return self.values.get(name)

    def of_device(self, family: Family, device: str, name: str) -> int | None:
        """Return the value of a device's sysctl."""
        version = "ipv4" if family is Family.IPV4 else "ipv6"
        return self.values.get(f"{version}.conf.{device}.{name}")

    def strongest(self, device: str, name: str) -> int:
        """Return an IPv4 sysctl whose value for `all` holds on each device if it is higher."""
        values = (self.of_device(Family.IPV4, each, name) or 0 for each in ("all", device))
        return max(values)

    def is_set(self, device: str, name: str) -> bool:
        """Return whether an IPv4 sysctl is not 0 for `all` or for a device (IN_DEV_ORCONF)."""
        return any(self.of_device(Family.IPV4, each, name) for each in ("all", device))


def read_switches(paths: ServicePaths, devices: Devices) -> SwitchFacts:
    """Read the sysctls that apply to paths. Blocks for files of /proc. Raises OSError."""
    names = tuple(dict.fromkeys(_devices(paths, devices)))[:_MAX_DEVICES]
    whole = (*_WHOLE, *paths.required)
    values = {name: value for name in whole if (value := _read(*name.split("."))) is not None}
    for device in ("all", *names):
        for version, fields in (("ipv4", _IPV4_DEVICE), ("ipv6", _IPV6_DEVICE)):
            for field in fields:
                # Not split at dots, which names of devices may have.
                value = _read(version, "conf", device, field)
                if value is not None:
                    values[f"{version}.conf.{device}.{field}"] = value
    try:
        counters = read_counters()
    except KernelError:
        counters = None
    return SwitchFacts(values, names, counters, _local_ports())


def _local_ports() -> int | None:
    try:
        low, high = (_ROOT / "ipv4/ip_local_port_range").read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(high) - int(low) + 1


def _devices(paths: ServicePaths, devices: Devices) -> Iterator[str]:
    """Yield the devices of the packets, and those with an address of the node or its pods."""
    for path in paths.paths:
        for device in (path.leaving.in_device, path.leaving.out_device):
            if device:
                yield device
    for address, index in devices.by_address.items():
        if address in paths.node_addresses or any(address in n for n in paths.pod_networks):
            yield devices.name(index)


def _read(*parts: str) -> int | None:
    try:
        return int(_ROOT.joinpath(*parts).read_text())
    except (FileNotFoundError, ValueError):
        return None
