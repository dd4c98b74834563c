"""Devices of a real network namespace and those of its default routes, as they change."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from pyproxy_lab.namespace import HAS_IPV6, Namespace

from pyproxy.errors import TransientKernelError
from pyproxy.netlink.device_monitor import DeviceMonitor
from pyproxy.netlink.links import Link
from pyproxy.netlink.sockets import NetlinkSocket
from tests.namespaces import empty_namespace
from tests.waiting import until

pytestmark = pytest.mark.kernel


@pytest.fixture
def here() -> Iterator[Namespace]:
    with empty_namespace("devmon") as made:
        made.ip(["link set lo up"])
        yield made


@pytest.fixture
def monitor(here: Namespace) -> Iterator[DeviceMonitor]:
    with closing(here.call(DeviceMonitor)) as made:
        yield made


def names(monitor: DeviceMonitor) -> dict[str, Link]:
    return {link.name: link for link in monitor.devices().links}


def uplinks(monitor: DeviceMonitor) -> set[str]:
    devices = monitor.devices()
    return {link.name for link in devices.links if link.index in devices.uplinks}


def wait_for(monitor: DeviceMonitor, wanted: set[str]) -> None:
    while names(monitor).keys() != wanted:
        assert monitor.wait()


def test_devices_come_get_another_name_and_go(here: Namespace, monitor: DeviceMonitor) -> None:
    before = names(monitor).keys()
    here.ip(["link add v1 type veth peer name v2", "link add br0 type bridge"])
    wait_for(monitor, before | {"v1", "v2", "br0"})
    assert names(monitor)["v1"].kind == "veth"
    here.ip(["link set v1 name web", "link set v2 master br0"])
    wait_for(monitor, before | {"web", "v2", "br0"})
    while not names(monitor)["v2"].master:
        assert monitor.wait()
    assert names(monitor)["v2"].master == names(monitor)["br0"].index
    # A bridge announces the deletion of a port, and the device stays.
    here.ip(["link set v2 nomaster"])
    while names(monitor)["v2"].master:
        assert monitor.wait()
    here.ip(["link del web"])
    wait_for(monitor, before | {"br0"})


def test_the_devices_of_default_routes_are_followed(
    here: Namespace, monitor: DeviceMonitor
) -> None:
    assert uplinks(monitor) == set()
    here.ip(
        [
            "link add v1 type veth peer name v2",
            "link set v1 up",
            "link set v2 up",
            "addr add 192.0.2.1/24 dev v1",
            "addr add 198.51.100.1/24 dev v2",
            "addr add 2001:db8::1/64 dev v2 nodad",
            # The next hop's state has no meaning here, and IPv6 would wait for it.
            "route add default via 192.0.2.254",
            "route add 203.0.113.0/24 via 198.51.100.254",
        ]
    )
    while uplinks(monitor) != {"v1"}:
        assert monitor.wait()
    if HAS_IPV6:
        here.ip(["route add default via 2001:db8::fe"])
        while uplinks(monitor) != {"v1", "v2"}:
            assert monitor.wait()
        here.ip(["route del default via 2001:db8::fe"])
    here.ip(
        [
            "route replace default nexthop via 192.0.2.254 nexthop via 198.51.100.254",
        ]
    )
    while uplinks(monitor) != {"v1", "v2"}:
        assert monitor.wait()
    here.ip(["route del default"])
    while uplinks(monitor) != set():
        assert monitor.wait()


def test_what_was_there_before_is_read_at_the_start(here: Namespace) -> None:
    here.ip(
        [
            "link add v1 type veth peer name v2",
            "link set v1 up",
            "addr add 192.0.2.1/24 dev v1",
            "route add default via 192.0.2.254",
        ]
    )
    with closing(here.call(DeviceMonitor)) as monitor:
        assert {"v1", "v2"} <= names(monitor).keys()
        assert uplinks(monitor) == {"v1"}


@pytest.mark.parametrize("of", ["devices", "routes"])
@pytest.mark.parametrize("is_lost", [True, False])
def test_after_an_error_all_is_read_again(
    here: Namespace,
    monitor: DeviceMonitor,
    monkeypatch: pytest.MonkeyPatch,
    of: str,
    is_lost: bool,
) -> None:
    """The kernel announces no change twice."""
    monitor.devices()
    here.ip(
        [
            "link add v1 type veth peer name v2",
            "link set v1 up",
            "addr add 192.0.2.1/24 dev v1",
            "route add default via 192.0.2.254",
        ]
    )
    with monkeypatch.context() as patch:
        read, request = NetlinkSocket.read_notifications, NetlinkSocket.request

        def lost(sock: NetlinkSocket) -> tuple[list[bytes], bool]:
            found, _ = read(sock)
            return ([], True) if is_lost else (found, False)

        def refused(sock: NetlinkSocket, *arguments: Any, **options: Any) -> list[memoryview]:
            # Links are read only where notifications were lost.
            if sock._purpose == of or not is_lost:
                raise TransientKernelError("no memory", errno.ENOMEM)
            return request(sock, *arguments, **options)

        patch.setattr(NetlinkSocket, "read_notifications", lost)
        patch.setattr(NetlinkSocket, "request", refused)
        with pytest.raises(TransientKernelError):
            wait_to_end(monitor)
    assert {"v1", "v2"} <= names(monitor).keys()
    assert uplinks(monitor) == {"v1"}


def test_a_namespace_without_a_table_of_routes_has_no_uplink(here: Namespace) -> None:
    with closing(here.call(DeviceMonitor)) as monitor:
        assert uplinks(monitor) == set()


def test_a_change_of_state_wakes_nobody_and_the_end_does(
    here: Namespace, monitor: DeviceMonitor
) -> None:
    here.ip(["link add v1 type veth peer name v2"])
    wait_for(monitor, names(monitor).keys() | {"v1", "v2"})
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(monitor.wait()))
    thread.start()
    here.ip(["link set v1 up", "link set v2 up", "link set v1 mtu 1400", "link set v1 down"])
    here.ip(["link add v3 type veth peer name v4"])
    until(lambda: woken == [True])
    thread.join()
    assert {"v3", "v4"} & names(monitor).keys()
    ended = threading.Thread(target=lambda: woken.append(wait_to_end(monitor)))
    ended.start()
    monitor.end()
    ended.join()
    assert woken == [True, False]


def wait_to_end(monitor: DeviceMonitor) -> bool:
    while monitor.wait():
        pass
    return False
