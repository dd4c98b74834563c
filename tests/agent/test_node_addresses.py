"""The machine's addresses as a kernel gives them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest
from pyproxy_lab.network import Network
from pyproxy_lab.topology import TWO_NODES

from pyproxy.agent.node_addresses import LocalAddresses, local_addresses, route_to
from pyproxy.model.address import address_text
from pyproxy.netlink.address_monitor import LocalAddressMonitor
from tests.builders import ip
from tests.namespaces import empty_namespace
from tests.waiting import until

pytestmark = pytest.mark.kernel

SITE = TWO_NODES.site("na")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


def addresses(network: Network) -> list[str]:
    return [address_text(address) for address in network.namespace("na").call(local_addresses)]


def test_what_leads_outside_comes_first_and_link_local_addresses_not_at_all(
    network: Network,
) -> None:
    found = addresses(network)
    assert found[:2] == list(SITE.addresses)
    api_link = {address for address in found if address.startswith("10.250.0.")}
    assert set(found) - api_link == {*SITE.addresses, *SITE.gateways, "127.0.0.1", "::1"}
    assert len(api_link) == 1
    assert len(found) == len(set(found))


def test_of_an_interface_to_one_peer_the_address_is_ours(network: Network) -> None:
    here = network.namespace("na")
    here.ip(["addr add 192.168.9.1 peer 192.168.9.2/32 dev eth0"])
    assert "192.168.9.1" in addresses(network)
    assert "192.168.9.2" not in addresses(network)
    here.ip(["addr del 192.168.9.1 peer 192.168.9.2/32 dev eth0"])


@pytest.mark.parametrize(
    ("commands", "there", "absent"),
    [
        (["addr add 203.0.113.5/32 dev eth0 scope link"], ["203.0.113.5"], []),
        (["addr add 169.254.7.7/16 dev eth0 scope global"], [], ["169.254.7.7"]),
        (["addr add fe80::77/64 dev eth0 scope global"], [], ["fe80::77"]),
        (["route add local 203.0.113.7 dev eth0"], ["203.0.113.7"], []),
        (["route add local fd77::7 dev eth0"], ["fd77::7"], []),
        (["route add local 203.0.113.16/30 dev lo"], ["203.0.113.16", "203.0.113.19"], []),
        (["route add local 203.0.112.0/20 dev lo"], [], ["203.0.112.1"]),
        (["route add local 203.0.113.9 dev lo table 100"], [], ["203.0.113.9"]),
        (["route add 203.0.113.10 dev eth0 table local"], [], ["203.0.113.10"]),
    ],
    ids=lambda each: each[0] if each else "",
)
def test_the_local_routing_table_says_what_belongs_to_the_node(
    commands: list[str], there: list[str], absent: list[str]
) -> None:
    with empty_namespace("local") as here:
        here.ip(["link set lo up", "link add eth0 type bridge", "link set eth0 up", *commands])
        found = {address_text(address) for address in here.call(local_addresses)}
    assert found >= set(there)
    assert not found & set(absent)


def test_networks_with_too_many_addresses_are_listed_apart() -> None:
    with empty_namespace("large") as here:
        here.ip(["link set lo up", "link add eth0 type bridge", "link set eth0 up"])
        here.ip(["route add local 203.0.112.0/20 dev lo", "route add local fd77::/64 dev lo"])
        here.ip(["route add local 203.0.113.0/24 dev lo"])
        with closing(here.call(LocalAddresses)) as local:
            assert len(local.read()) == 2 + 256
            assert list(map(str, local.large_networks())) == ["203.0.112.0/20", "fd77::/64"]
            here.ip(["route del local 203.0.112.0/20 dev lo"])
            local.read()
            assert list(map(str, local.large_networks())) == ["fd77::/64"]


def test_a_namespace_without_any_address_has_none() -> None:
    with empty_namespace("bare") as here:
        assert here.call(local_addresses) == ()


def test_service_addresses_on_the_device_of_ipvs_mode_are_not_the_nodes() -> None:
    with empty_namespace("local") as here:
        here.ip(["link add kube-ipvs0 type bridge", "addr add 10.96.0.1/32 dev kube-ipvs0"])
        assert "10.96.0.1" not in {address_text(each) for each in here.call(local_addresses)}


def test_a_route_that_goes_with_its_device_is_noticed() -> None:
    with empty_namespace("gone") as here:
        here.ip(["link add eth0 type bridge", "link set eth0 up"])
        here.ip(["route add local 203.0.113.7 dev eth0"])
        with closing(here.call(LocalAddressMonitor)) as watch:
            here.ip(["link del eth0"])
            assert watch.changed()
        assert here.call(local_addresses) == ()


def test_an_address_that_another_machine_has_is_not_the_nodes() -> None:
    """Duplicate address detection takes it from the node; until then it is tentative."""
    with empty_namespace("first") as first, empty_namespace("second") as second:
        first.ip(["link add eth0 type veth peer name eth1", f"link set eth1 netns {second.name}"])
        first.ip(["addr add fd55::1/64 dev eth0 nodad", "link set eth0 up"])
        # On this device the detection does not end during the test.
        second.ip(["link add eth2 type veth peer name eth3"])
        second.sysctl({"ipv6/conf/eth2/dad_transmits": 10_000})
        second.ip([*(f"link set {device} up" for device in ("eth2", "eth3"))])
        # optimistic_dad is off, so an address is not used before the detection is over.
        second.ip(["addr add fd56::1/64 dev eth2"])
        assert second.call(local_addresses) == ()
        with closing(second.call(LocalAddressMonitor)) as watch:
            second.ip(["link set eth1 up"])
            assert ip("fd55::1") in first.call(local_addresses)
            second.ip(["addr add fd55::1/64 dev eth1", "addr add fd55::2/64 dev eth1"])
            until(lambda: second.call(local_addresses) == (ip("fd55::2"),))
            assert watch.changed()
        assert ip("fd55::1") not in second.call(local_addresses)


def test_changes_of_service_addresses_do_not_count() -> None:
    """In ipvs mode the agent itself adds and deletes them."""
    with empty_namespace("local") as here:
        here.ip(["link add kube-ipvs0 type bridge", "link add eth0 type bridge"])
        local = here.call(LocalAddresses)
        monitor = partial(LocalAddressMonitor, lambda: local.service_devices)
        with closing(local), closing(here.call(monitor)) as watch:
            local.read()
            for device, counts in (("kube-ipvs0", False), ("eth0", True)):
                for verb in ("add", "del"):
                    for address in ("10.96.0.1/32", "fd96::1/128"):
                        here.ip([f"addr {verb} {address} dev {device}"])
                        assert watch.changed() is counts


def test_a_machine_without_routes_has_addresses_all_the_same(network: Network) -> None:
    here = network.namespace("b1")
    here.ip([f"route del default via {gateway}" for gateway in TWO_NODES.site("nb").gateways])
    found = [address_text(address) for address in here.call(local_addresses)]
    assert set(found) == {*network.addresses("b1"), "127.0.0.1", "::1"}


def test_changes_of_addresses_are_told_and_nothing_else_is(network: Network) -> None:
    here = network.namespace("na")
    watch = here.call(LocalAddressMonitor)
    try:
        assert not watch.changed()
        for address, length in (("192.168.8.1", 24), ("fd99::1", 64)):
            for verb in ("add", "del"):
                here.ip([f"addr {verb} {address}/{length} dev eth0"])
                assert watch.changed()
                assert not watch.changed()
        here.ip(["link add quiet type bridge", "link set quiet up"])
        assert not watch.changed()
        here.ip(["link del quiet"])
        assert watch.changed()
    finally:
        watch.close()


def test_a_storm_of_other_routes_does_not_reach_the_agent() -> None:
    with empty_namespace("storm") as here:
        here.ip(["link set lo up", "link add eth0 type bridge", "link set eth0 up"])
        here.ip(["addr add 192.168.8.1/24 dev eth0", "addr add fd99::1/64 dev eth0 nodad"])
        with closing(here.call(LocalAddressMonitor)) as watch:
            # The kernel announces an IPv6 address again when it has noticed that the link is up.
            until(lambda: (way := here.call(partial(route_to, ip("fd99::1")))) and way.here)
            until(lambda: not watch.changed())
            before = watch.received
            many = [f"{n // 250 + 1}.{n % 250}" for n in range(2500)]
            for verb in ("add", "del"):
                here.ip(f"route {verb} 11.{each}.0/24 via 192.168.8.2" for each in many)
                here.ip([f"route {verb} fd11::{n:x}/128 via fd99::2" for n in range(500)])
            here.ip(["route add local 203.0.113.0/24 dev lo table 100"])
            assert not watch.changed()
            assert watch.received == before
            # Each pod's interface has a link-local address of its own.
            here.ip(["link add eth1 type bridge", "link set eth1 up", "link set eth1 down"])
            assert not watch.changed()
            for verb in ("add", "del"):
                here.ip([f"route {verb} local 203.0.113.7 dev eth0"])
                assert watch.changed()
                here.ip([f"route {verb} local fd77::7 dev eth0"])
                assert watch.changed()
                assert not watch.changed()


def test_more_changes_than_the_socket_holds_are_a_change(network: Network) -> None:
    here = network.namespace("na")
    many = [f"192.168.{n // 250}.{n % 250 + 1}/32" for n in range(1500)]
    watch = here.call(LocalAddressMonitor)
    try:
        here.ip([f"addr add {address} dev lo" for address in many])
        assert watch.changed()
        assert not watch.changed()
    finally:
        watch.close()
        here.ip([f"addr del {address} dev lo" for address in many])
