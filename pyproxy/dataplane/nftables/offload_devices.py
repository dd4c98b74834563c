"""Which network devices are bound to the flowtable: those that packets of Services come in by."""

from __future__ import annotations

from collections.abc import Container

import msgspec

from pyproxy.netlink.device_monitor import DeviceMonitor, Devices
from pyproxy.netlink.links import Link

_POD_KINDS = ("veth", "netkit")
_BRIDGES = ("bridge", "bond", "team", "openvswitch")
_TUNNELS = ("vxlan", "geneve", "ipip", "sit", "gre", "ip6gre", "ip6tnl", "wireguard")
_LOOPBACK = "lo"


class DeviceChoice(msgspec.Struct, frozen=True):
    """The configured choice of devices.

    `patterns` are names, and prefixes that end in `*`. Without any, the devices are those of pods,
    of default routes and of tunnels to other nodes. Those of pods match `pod_interface`, or without
    it are found by their kind.
    """

    patterns: tuple[str, ...] = ()
    pod_interface: str = ""


class OffloadDevices:
    """The devices to bind in the network namespace that this is made in, as they come and go."""

    def __init__(self, choice: DeviceChoice) -> None:
        self._choice = choice
        self._monitor = DeviceMonitor()

    def present(self) -> frozenset[str]:
        """Return the names of all devices. Blocks at the first call. Raises KernelError."""
        return frozenset(link.name for link in self._monitor.devices().links)

    def chosen(self) -> frozenset[str]:
        """Return the names of the devices to bind. Blocks at the first call. Raises KernelError."""
        return choose_devices(self._monitor.devices(), self._choice)

    def wait(self) -> bool:
        """Block until devices change; False, once, after `end`. Raises KernelError."""
        if self._monitor.wait():
            return True
        self._monitor.close()
        return False

    def end(self) -> None:
        """Make `wait` return False."""
        self._monitor.end()


def choose_devices(devices: Devices, choice: DeviceChoice) -> frozenset[str]:
    """Return the names of the devices to bind.

    A port of a bridge or of a bond that is bound too is left out: a packet would pass the
    flowtable twice.
    """
    pod_bridges = {link.master for link in devices.links if _leads_to_pod(link)}
    chosen = {
        link.index: link for link in devices.links if _is_chosen(link, devices, choice, pod_bridges)
    }
    return frozenset(
        link.name
        for link in chosen.values()
        if not (link.master in chosen and chosen[link.master].kind in _BRIDGES)
    )


def _is_chosen(
    link: Link, devices: Devices, choice: DeviceChoice, pod_bridges: Container[int]
) -> bool:
    if link.name == _LOOPBACK:
        return False
    if choice.patterns:
        return any(_matches(link.name, pattern) for pattern in choice.patterns)
    if link.index in devices.uplinks or link.kind in _TUNNELS:
        return True
    if choice.pod_interface:
        return _matches(link.name, choice.pod_interface)
    if link.kind == "bridge":
        return link.index in pod_bridges
    return _leads_to_pod(link)


def _leads_to_pod(link: Link) -> bool:
    return link.kind in _POD_KINDS and link.peer_elsewhere


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
