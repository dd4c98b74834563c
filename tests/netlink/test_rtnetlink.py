"""Addresses, devices and routes of a real network namespace, and changes of them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.errors import KernelError
from pyproxy.model.address import parse_address
from pyproxy.netlink import rtnetlink
from pyproxy.netlink.address_monitor import AddressMonitor
from pyproxy.netlink.requests import Requests
from pyproxy.netlink.sockets import NETLINK_ROUTE
from tests.namespaces import empty_namespace

pytestmark = pytest.mark.kernel

ADDRESS, ADDRESS6 = parse_address("10.9.0.1"), parse_address("fd09::1")


@pytest.fixture
def here() -> Iterator[Namespace]:
    with empty_namespace("rtnl") as made:
        made.ip(["link set lo up"])
        yield made


@pytest.fixture
def kernel(here: Namespace) -> Iterator[Requests]:
    with closing(here.call(lambda: Requests(NETLINK_ROUTE))) as opened:
        yield opened


def test_addresses_are_added_read_and_deleted(kernel: Requests) -> None:
    device = rtnetlink.find_device(kernel, "lo")
    both = (ADDRESS, ADDRESS6)
    assert kernel.send([rtnetlink.add_address(device, each) for each in both]) == []
    (again,) = kernel.send([rtnetlink.add_address(device, ADDRESS)])
    assert again.errno == errno.EEXIST
    assert rtnetlink.is_already_done(again.errno)
    found = rtnetlink.read_addresses(kernel.dump(rtnetlink.get_addresses()))
    assert {each.address for each in found if each.device == device} >= set(both)
    assert kernel.send([rtnetlink.delete_address(device, each) for each in both]) == []
    (absent,) = kernel.send([rtnetlink.delete_address(device, ADDRESS)])
    assert rtnetlink.is_already_done(absent.errno)


def test_an_error_names_its_request_among_many(kernel: Requests) -> None:
    device = rtnetlink.find_device(kernel, "lo")
    requests = [rtnetlink.delete_address(device, ADDRESS)] * 3
    requests.insert(1, rtnetlink.add_address(device, ADDRESS))
    errors = kernel.send(requests)
    assert [each.index for each in errors] == [0, 3]


def test_a_device_that_does_not_exist_has_index_0(kernel: Requests) -> None:
    assert rtnetlink.find_device(kernel, "nosuch0") == 0


def test_the_route_to_a_local_address_is_local(kernel: Requests) -> None:
    device = rtnetlink.find_device(kernel, "lo")
    kernel.send([rtnetlink.add_address(device, ADDRESS)])
    route = rtnetlink.read_route(kernel.get(rtnetlink.get_route(ADDRESS)))
    assert route == rtnetlink.Route(device, ADDRESS, local=True)
    with pytest.raises(KernelError) as raised:
        kernel.get(rtnetlink.get_route(parse_address("192.0.2.1")))
    assert raised.value.errno == errno.ENETUNREACH


def test_changes_of_addresses_are_detected_except_ones_own(
    here: Namespace, kernel: Requests
) -> None:
    device = rtnetlink.find_device(kernel, "lo")
    with closing(here.call(lambda: AddressMonitor(kernel.port))) as monitor:
        kernel.send([rtnetlink.add_address(device, ADDRESS)])
        assert not monitor.changed()
        here.ip(["addr add 10.9.0.2/32 dev lo"])
        assert monitor.changed()
        assert not monitor.changed()
        here.ip(["link set lo down"])
        assert monitor.changed(device)
