from collections.abc import Iterable

import pytest

from pyproxy.health.admission import FairPool, Place, Reason, peer_of
from pyproxy.health.limits import RESERVE, within


def fill(pool: FairPool[str], listener: int, peer: bytes, names: Iterable[str]) -> list[str]:
    """Add connections of one client; return those that went for them."""
    gone = (pool.add(name, Place(listener, peer)) for name in names)
    return [each[0] for each in gone if each]


def test_the_oldest_of_a_client_goes_beyond_its_share() -> None:
    pool: FairPool[str] = FairPool(10, 2)
    assert pool.add("1", Place(0, b"a")) is None
    assert pool.add("2", Place(0, b"a")) is None
    assert pool.add("3", Place(0, b"a")) == ("1", Reason.SHARE)
    assert pool.add("4", Place(0, b"b")) is None
    assert pool.add("5", Place(1, b"a")) is None
    assert list(pool) == ["2", "3", "4", "5"]


def test_a_full_pool_drops_from_the_largest_client_of_the_largest_listener() -> None:
    pool: FairPool[str] = FairPool(6, 6)
    fill(pool, 0, b"a", "12")
    fill(pool, 1, b"a", "3")
    fill(pool, 1, b"b", "456")
    assert pool.add("7", Place(0, b"c")) == ("4", Reason.FULL)
    assert pool.add("8", Place(2, b"d")) == ("1", Reason.FULL)
    # Now all have about as many, and the newcomer still stays.
    assert "8" in pool


def test_a_newcomer_always_stays() -> None:
    pool: FairPool[int] = FairPool(4, 2)
    for number in range(1000):
        pool.add(number, Place(number % 3, bytes([number % 7])))
        assert number in pool
        assert len(pool) <= 4


def test_removed_connections_leave_nothing_behind() -> None:
    pool: FairPool[str] = FairPool(4, 4)
    fill(pool, 7, b"a", "123")
    assert pool.count(7) == 3
    for name in "1231":
        pool.discard(name)
    assert (len(pool), pool.count(7)) == (0, 0)
    assert fill(pool, 7, b"a", "45678") == ["4"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_a_client_is_an_ipv4_address_or_an_ipv6_network(one: str, other: str, same: bool) -> None:
    assert (peer_of(one) == peer_of(other)) is same


@pytest.mark.parametrize("descriptors", [64, 256, 1024, 4096, 1 << 20])
def test_listeners_and_connections_leave_descriptors_for_the_rest(descriptors: int) -> None:
    limits = within(descriptors)
    pools = (limits.public, limits.own)
    used = limits.listeners + 2 * (limits.queues + 1)
    used += sum(each.waiting + each.responding for each in pools)
    assert used <= descriptors - min(RESERVE, descriptors // 2)
    assert limits.listeners > 0
    for each in pools:
        assert 0 < each.waiting_share <= each.waiting
        assert 0 < each.responding_share <= each.responding
