"""Reads and writes of IPVS's tables and of the device kube-ipvs0."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import closing

import msgspec

from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.schema import ALIAS, DEVICE
from pyproxy.errors import KernelError, StaleStateError
from pyproxy.model.address import Address, Backend, Network
from pyproxy.netlink import generic, ipvs, rtnetlink
from pyproxy.netlink.address_monitor import AddressMonitor
from pyproxy.netlink.ipvs import Messages, Scheduling, Server, Timeouts, Virtual
from pyproxy.netlink.kernel_errors import MessageError, kernel_error
from pyproxy.netlink.requests import Request, Requests
from pyproxy.netlink.sockets import NETLINK_GENERIC, NETLINK_ROUTE

_GET_INFO = 1153
"""IP_VS_SO_GET_INFO: version, size of the connection table, and the number of services (IPv4)."""

_INFO = struct.Struct("=III")


class Addresses(msgspec.Struct, frozen=True):
    """The addresses of our device and of all others; `device` is its index, 0 without one.

    `labelled` says that the device has our alias.
    """

    device: int
    ours: frozenset[Address]
    others: frozenset[Address]
    labelled: bool


class Kernel:
    """IPVS and the device, in the network namespace that this was made in. One thread."""

    def __init__(self) -> None:
        self._generic = Requests(NETLINK_GENERIC)
        self._route = Requests(NETLINK_ROUTE)
        # A notification has the sender's port, so changes through `_route` are left out.
        self._watch = AddressMonitor(self._route.port)
        # Any IPv4 socket serves: the kernel passes options that it does not know to netfilter.
        self._counting = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._write: Messages | None = None

    @property
    def write(self) -> Messages:
        """The packer of requests for this kernel. Raises KernelError without IPVS."""
        if self._write is None:
            replies = self._generic.get(generic.get_family(ipvs.FAMILY_NAME))
            self._write = Messages(generic.read_family_id(replies))
        return self._write

    @property
    def messages_sent(self) -> int:
        """Requests sent to the kernel, dumps not counted."""
        return self._generic.messages_sent + self._route.messages_sent

    @property
    def bytes_sent(self) -> int:
        """Bytes of those and of the dumps' requests."""
        return self._generic.bytes_sent + self._route.bytes_sent

    @property
    def send_seconds(self) -> float:
        """Seconds that sending took."""
        return self._generic.send_seconds + self._route.send_seconds

    def prepare(self) -> None:
        """Make the kernel load IPVS. Raises KernelError if it has none."""
        self.virtuals()

    def set_timeouts(self, wanted: Timeouts) -> None:
        """Set the timeouts of idle connections if they differ. Raises KernelError."""
        held = ipvs.read_timeouts(self._generic.get(self.write.get_timeouts()))
        if any(timeout not in (0, now) for timeout, now in zip(wanted, held, strict=True)):
            for failed in self.send([self.write.set_timeouts(wanted)]):
                raise failed.error

    def close(self) -> None:
        """Close the sockets."""
        self._generic.close()
        self._route.close()
        self._watch.close()
        self._counting.close()

    def virtuals(self) -> dict[Virtual, Scheduling]:
        """Read all virtual services, also those of other programs. Raises KernelError."""
        return ipvs.read_virtuals(self._generic.dump(self.write.get_virtuals()))

    def scheduling(self, virtual: Virtual) -> Scheduling | None:
        """Read one virtual service; None if there is none. Raises KernelError."""
        try:
            found = ipvs.read_virtuals(self._generic.get(self.write.get_virtual(virtual)))
        # ESRCH: no such virtual service.
        except StaleStateError:
            return None
        return found.get(virtual)

    def servers(self, virtual: Virtual) -> list[Server]:
        """Read a virtual service's real servers; none if it is gone. Raises KernelError.

        /proc/net/ip_vs has those of all, but at least up to Linux 6.1 it leaves some out while
        another network namespace has virtual services too.
        """
        return ipvs.read_servers(
            self._generic.dump(self.write.get_servers(virtual)), virtual.family
        )

    def service_connections(self) -> dict[Virtual, int]:
        """Read the connections so far of all virtual services. Raises KernelError."""
        return ipvs.count_service_connections(self._generic.dump(self.write.get_virtuals()))

    def server_connections(self, virtual: Virtual) -> dict[Backend, int]:
        """Read the connections so far of each real server. Raises KernelError."""
        replies = self._generic.dump(self.write.get_servers(virtual))
        return ipvs.count_server_connections(replies, virtual.family)

    def count(self) -> int:
        """Count the virtual services of IPv4, of all programs. Raises KernelError."""
        try:
            info = self._counting.getsockopt(socket.IPPROTO_IP, _GET_INFO, _INFO.size)
        except OSError as error:
            raise kernel_error(error.errno or 0, "reading the number of IPVS services") from error
        return int(_INFO.unpack(info)[2])

    def send(self, requests: Sequence[Request]) -> list[MessageError]:
        """Send requests to IPVS in order; return those that failed. Raises KernelError."""
        return self._generic.send(requests)

    def addresses(self) -> Addresses:
        """Read all devices' addresses. Raises KernelError."""
        link = rtnetlink.find_link(self._route, DEVICE)
        device = link.index if link else 0
        ours: set[Address] = set()
        others: set[Address] = set()
        for found in rtnetlink.read_addresses(self._route.dump(rtnetlink.get_addresses())):
            (ours if device and found.device == device else others).add(found.address)
        labelled = link is not None and link.alias == ALIAS
        return Addresses(device, frozenset(ours), frozenset(others), labelled)

    def addresses_changed(self) -> bool:
        """Return whether another program changed addresses or our device since the last call."""
        return self._watch.changed(self._device())

    def make_device(self) -> None:
        """Make the device. It stays down, and the kernel takes its addresses for local anyway.

        Raises KernelError.
        """
        self._change_device(rtnetlink.add_dummy_device(DEVICE), "adding")
        self.label_device()

    def label_device(self) -> None:
        """Set the device's alias to ours, unlike that of kube-proxy's. Raises KernelError."""
        self._change_device(rtnetlink.set_alias(self._device(), ALIAS), "labelling")

    def delete_device(self) -> None:
        """Delete the device with its addresses; idempotent. Raises KernelError."""
        if device := self._device():
            self._change_device(rtnetlink.delete_device(device), "deleting")

    def change_addresses(
        self, gone: Iterable[Address], new: Iterable[Address]
    ) -> list[tuple[Address, KernelError]]:
        """Remove addresses from the device and add others; return those that failed.

        Raises KernelError, StaleStateError if the device is gone.
        """
        device = self._device()
        if not device:
            raise StaleStateError(f"the device {DEVICE} is gone", errno.ENODEV)
        each = [*gone], [*new]
        requests = [
            *(rtnetlink.delete_address(device, address) for address in each[0]),
            *(rtnetlink.add_address(device, address) for address in each[1]),
        ]
        changed = [*each[0], *each[1]]
        # Messages are executed one by one: one that fails stops none of the others.
        failures = self._route.send(requests)
        # The device may be deleted meanwhile: no Service is at fault, and a read-back makes it.
        if any(failed.errno == errno.ENODEV for failed in failures):
            raise StaleStateError(f"the device {DEVICE} is gone", errno.ENODEV)
        return [
            (changed[failed.index], failed.error)
            for failed in failures
            if not rtnetlink.is_already_done(failed.errno)
        ]

    def _change_device(self, request: Request, doing: str) -> None:
        for failed in self._route.send([request]):
            raise kernel_error(failed.errno, f"{doing} the device {DEVICE}")

    def _device(self) -> int:
        return rtnetlink.find_device(self._route, DEVICE)


def has_own_device() -> bool:
    """Return whether there is a device that has our alias. Raises KernelError."""
    with closing(Requests(NETLINK_ROUTE)) as route:
        link = rtnetlink.find_link(route, DEVICE)
    return link is not None and link.alias == ALIAS


def is_ours(
    virtual: Virtual,
    on_device: frozenset[Address],
    listed: frozenset[Virtual],
    excluded: Iterable[Network],
) -> bool:
    """Return whether a virtual service is ours.

    It is if its mark is one of ours, if our table lists it, or if its address is on the device and
    in no excluded network.
    """
    if virtual.mark:
        return schema.is_our_mark(virtual.mark)
    if virtual in listed:
        return True
    return virtual.address in on_device and not any(virtual.address in each for each in excluded)
