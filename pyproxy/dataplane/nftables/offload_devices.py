"""Which network devices are bound to the flowtable: those that packets of Services come in by.

Facts: nft_dev_forward_path in net/netfilter/nf_flow_table_path.c. The kernel follows the way of a
packet down through bridges and VLANs to the device at its end. Up to Linux 7.1 that device may be
bound or not. Linux 7.2 does not offload a connection if it is not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence

import msgspec

from pyproxy.netlink.device_monitor import DeviceMonitor, Devices
from pyproxy.netlink.links import Link

_POD_KINDS = ("veth", "netkit")
_BRIDGES = ("bridge", "bond", "team", "openvswitch")
_TUNNELS = ("vxlan", "geneve", "ipip", "sit", "gre", "ip6gre", "ip6tnl", "wireguard")
_LOOPBACK = "lo"
_BINDS_ENDS = (7, 2)


class DeviceChoice(msgspec.Struct, frozen=True):
    """The configured choice of devices.

    `patterns` are names, and prefixes that end in `*`. Without any, the devices are those of pods,
    of default routes and of tunnels to other nodes. Those of pods match `pod_interface`, or without
    it are found by their kind. With `ends`, the devices at the ends of bridges and VLANs take the
    place of these.
    """

    patterns: tuple[str, ...] = ()
    pod_interface: str = ""
    ends: bool = False


def must_bind_ends(release: str = "") -> bool:
    """Return whether a kernel, of this machine without a release, asks for `ends`."""
    found = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    return found is not None and (int(found[1]), int(found[2])) >= _BINDS_ENDS


class OffloadDevices:
    """The devices to bind in the network namespace that this is made in, as they come and go."""

    def __init__(self, choice: DeviceChoice) -> None:
        self._choice = choice
        self._monitor = DeviceMonitor()

    def indices(self) -> dict[str, int]:
        """Return the indices of all devices by name. May block for dumps. Raises KernelError."""
        return {link.name: link.index for link in self._monitor.devices().links}

    def chosen(self) -> frozenset[str]:
        """Return the names of the devices to bind. May block for dumps. Raises KernelError."""
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
    flowtable twice. With `ends`, a bridge is left out in favour of its ports.
    """
    pod_bridges = {link.master for link in devices.links if _leads_to_pod(link)}
    chosen = {
        link.index: link for link in devices.links if _is_chosen(link, devices, choice, pod_bridges)
    }
    bound = [
        link
        for link in chosen.values()
        if not (link.master in chosen and chosen[link.master].kind in _BRIDGES)
    ]
    return frozenset(
        link.name for link in (ends_of(bound, devices.links) if choice.ends else bound)
    )


def ends_of(chosen: Iterable[Link], links: Sequence[Link]) -> Iterator[Link]:
    """Yield the devices at the ends of bridges and VLANs, and the others as they are."""
    by_index = {link.index: link for link in links}
    above, seen = list(chosen), set[int]()
    while above:
        link = above.pop()
        # Notifications of one change come one by one, and a loop may seem to be there meanwhile.
        if link.index in seen:
            continue
        seen.add(link.index)
        if link.kind == "bridge":
            above += [port for port in links if port.master == link.index]
        elif link.kind == "vlan" and link.lower in by_index:
            above.append(by_index[link.lower])
        else:
            yield link


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
