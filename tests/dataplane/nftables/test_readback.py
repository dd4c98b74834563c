"""The table read ahead: it is used if no transaction was committed since."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.plan import NftablesPlan
from pyproxy.dataplane.nftables.schema import TABLE
from tests.dataplane.nftables.scenes import compiled
from tests.dataplane.nftables.test_dataplane import OPTIONS, held, numbered, programming

pytestmark = pytest.mark.kernel

ANSWERS = [numbered(number) for number in range(20)]
NODE = NodeRouting()


@contextmanager
def restarted(namespace: Namespace) -> Iterator[NftablesDataplane]:
    """A dataplane that finds what another has left."""
    with programming(namespace) as before:
        namespace.call(lambda: before.commit(before.plan_full(ANSWERS, NODE)))
        made = namespace.call(lambda: NftablesDataplane(OPTIONS))
        try:
            yield made
        finally:
            made.close()


def replanned(dataplane: NftablesDataplane) -> tuple[NftablesPlan, int]:
    """Return the plan of these Services, and the bytes of requests that making it sent."""
    before = dataplane.bytes_sent
    plan = dataplane.plan_full(ANSWERS, NODE)
    return plan, dataplane.bytes_sent - before


def test_a_table_read_ahead_is_not_read_again(namespace: Namespace) -> None:
    with restarted(namespace) as dataplane:
        namespace.call(dataplane.read_ahead)
        ahead, few = replanned(dataplane)
        then, many = replanned(dataplane)
        assert not ahead
        assert not then
        assert few < many / 2


def delete_some(namespace: Namespace) -> None:
    namespace.run(["nft", "flush", "map", "inet", TABLE, "endpoints4"])


def delete_all(namespace: Namespace) -> None:
    namespace.run(["nft", "delete", "table", "inet", TABLE])


@pytest.mark.parametrize("change", [delete_some, delete_all])
def test_a_foreign_write_after_reading_ahead_is_repaired(
    namespace: Namespace, change: Callable[[Namespace], None]
) -> None:
    with restarted(namespace) as dataplane:
        namespace.call(dataplane.read_ahead)
        change(namespace)
        plan, _ = replanned(dataplane)
        assert plan
        namespace.call(lambda: dataplane.commit(plan))
        assert held(namespace) == compiled(ANSWERS)


def test_reading_ahead_without_a_table_finds_nothing(namespace: Namespace) -> None:
    with programming(namespace) as dataplane:
        namespace.call(dataplane.read_ahead)
        plan, _ = replanned(dataplane)
        namespace.call(lambda: dataplane.commit(plan))
        assert held(namespace) == compiled(ANSWERS)
