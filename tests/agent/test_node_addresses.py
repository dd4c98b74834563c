"""The machine's addresses as a kernel gives them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyproxy_lab.network import Network
from pyproxy_lab.topology import TWO_NODES

from pyproxy.agent.node_addresses import local_addresses
from pyproxy.model.address import address_text
from pyproxy.netlink.rtnetlink import AddressMonitor

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


def test_a_machine_without_routes_has_addresses_all_the_same(network: Network) -> None:
    here = network.namespace("b1")
    here.ip([f"route del default via {gateway}" for gateway in TWO_NODES.site("nb").gateways])
    found = [address_text(address) for address in here.call(local_addresses)]
    assert set(found) == {*network.addresses("b1"), "127.0.0.1", "::1"}


def test_changes_of_addresses_are_told_and_nothing_else_is(network: Network) -> None:
    here = network.namespace("na")
    watch = here.call(AddressMonitor)
    try:
        assert not watch.changed()
        for address, length in (("192.168.8.1", 24), ("fd99::1", 64)):
            for verb in ("add", "del"):
                here.ip([f"addr {verb} {address}/{length} dev eth0"])
                assert watch.changed()
                assert not watch.changed()
        here.ip(["link add quiet type bridge", "link del quiet"])
        assert not watch.changed()
    finally:
        watch.close()


def test_more_changes_than_the_socket_holds_are_a_change(network: Network) -> None:
    here = network.namespace("na")
    many = [f"192.168.{n // 250}.{n % 250 + 1}/32" for n in range(1500)]
    watch = here.call(AddressMonitor)
    try:
        here.ip([f"addr add {address} dev lo" for address in many])
        assert watch.changed()
        assert not watch.changed()
    finally:
        watch.close()
        here.ip([f"addr del {address} dev lo" for address in many])
