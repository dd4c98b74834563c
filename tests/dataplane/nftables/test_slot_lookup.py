"""Large maps of endpoints read by their keys: never less than a dump, or than packets can reach."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nft import readback as tables
from pyproxy.dataplane.nft.schema import SetKind, Table
from pyproxy.dataplane.nftables import schema, slot_lookup
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.readback import read_table
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.dataplane.nftables.slot_lookup import SLOTS, find_unreachable
from pyproxy.errors import StaleStateError
from pyproxy.model.address import Family
from pyproxy.netlink import elements, nftables
from pyproxy.netlink.elements import DROP, ElementMessage, Shape, Tag, Value
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM
from tests.dataplane.nftables.scenes import Scene, compiled, scenes
from tests.dataplane.nftables.test_dataplane import (
    OPTIONS,
    node_routing,
    numbered,
    programming,
    unordered,
    write,
)
from tests.examples import examples

pytestmark = pytest.mark.kernel

SERVICES = 2_600
"""With 50 endpoints each they have more than are dumped, also as estimated without a count."""

ENDPOINTS = schema.ENDPOINTS.of(Family.IPV4)


@contextmanager
def by_keys(counts: bool) -> Iterator[None]:
    """Read maps of any size by keys, on this kernel or as on one before 6.16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slot_lookup, "LARGE", 0)
        if not counts:
            patch.setattr(nftables, "read_set_sizes", lambda _: {})
            patch.setattr(slot_lookup, "read_set_sizes", lambda _: {})
        yield


class Harm(dict[str, dict[bytes, Value | None]]):
    """Another program's writes: elements by set and key, None for a deleted one."""


@st.composite
def harms(draw: st.DrawFn, table: Table) -> Harm:
    """Delete, change and add elements of a table, anywhere."""
    harm = Harm()
    for name, rows in table.items():
        kind, _ = schema.BY_NAME[name]
        if kind.shape is not Shape.EXACT:
            continue
        some = draw(st.lists(st.sampled_from(sorted(rows)), unique=True, max_size=3))
        for key in some:
            value = rows[key]
            other: Value = Tag(DROP) if isinstance(value, Tag) and value.target else value
            if name in SLOTS:
                other = draw(st.sampled_from(sorted(map(bytes_of, rows.values()))))
            harm.setdefault(name, {})[key] = draw(st.sampled_from([None, other]))
        if name in SLOTS:
            for key in draw(st.lists(st.sampled_from(sorted(rows)), max_size=2)):
                # Behind the last slot, beyond the class, or of no frontend at all.
                index = struct.pack("=I", draw(st.integers(1, 40)))
                stray = draw(st.sampled_from([key[:-4], key[:-5] + b"\7"])) + index
                if stray not in rows:
                    harm.setdefault(name, {})[stray] = rows[key]
    return harm


def bytes_of(value: Value) -> bytes:
    assert isinstance(value, bytes)
    return value


def do(namespace: Namespace, harm: Harm, table: Table) -> None:
    netlink = namespace.call(Nfnetlink)
    with closing(netlink):
        messages: list[ElementMessage] = []
        for name, rows in harm.items():
            gone = [key for key in rows if key in table[name]]
            new = {key: value for key, value in rows.items() if value is not None}
            messages += elements.delete_elements(TABLE, name, gone, Shape.EXACT)
            messages += elements.add_elements(TABLE, name, new, Shape.EXACT)
        assert not netlink.transact([each.message for each in messages], SUBSYSTEM)


@contextmanager
def restarted(namespace: Namespace) -> Iterator[NftablesDataplane]:
    made = namespace.call(lambda: NftablesDataplane(OPTIONS))
    try:
        namespace.call(made.prepare)
        yield made
    finally:
        made.close()


def settle(namespace: Namespace, dataplane: NftablesDataplane, scene: Scene) -> None:
    """Start as an agent does, and repair what is found later."""
    namespace.call(dataplane.read_ahead)
    ahead = dataplane._ahead
    assert ahead is not None
    services, node = scene.undivided().values(), node_routing(scene)
    try:
        first = dataplane.plan_full(services, node)
        assert namespace.call(lambda: dataplane.commit(first)) == ()
    except StaleStateError:
        # An endpoint that no packet can reach is in a slot that a Service needs. The agent then
        # reads the whole table.
        second = dataplane.plan_full(services, node)
        assert namespace.call(lambda: dataplane.commit(second)) == ()
    ahead.wait()
    while dataplane._monitor._found:
        drift = dataplane.wait_for_drift()
        assert drift is not None
        repair = partial(dataplane.commit, dataplane.plan_repair(drift.sets))
        assert namespace.call(repair) == ()


@pytest.mark.parametrize("counts", [True, False])
@settings(max_examples=examples(12), deadline=None)
@given(scenes(), st.data())
def test_any_state_is_repaired_by_a_restart(
    namespace: Namespace, counts: bool, scene: Scene, data: st.DataObject
) -> None:
    routings = tuple(scene.undivided().values())
    wanted = compiled(routings, scene.rules)
    with programming(namespace) as before:
        whole = before.plan_full(routings, node_routing(scene))
        assert namespace.call(lambda: before.commit(whole)) == ()
    there = held_by_dump(namespace)
    do(namespace, data.draw(harms(there)), there)
    with by_keys(counts), restarted(namespace) as dataplane:
        check_lookups(namespace)
        settle(namespace, dataplane, scene)
        assert unordered(held_by_dump(namespace)) == unordered(wanted)
        again = dataplane.plan_full(routings, node_routing(scene))
        assert not again, str(again)


def check_lookups(namespace: Namespace) -> None:
    """Compare what lookups and the search find with a dump."""
    dumped = held_by_dump(namespace)
    with closing(namespace.call(Nfnetlink)) as netlink:
        assert read_table(netlink) == dumped
        reachable = read_table(netlink, reachable=True)
        rest = find_unreachable(netlink, reachable)
        counts = nftables.read_set_sizes(netlink.dump(nftables.get_sets(TABLE)))
        assert not (counts and rest)
        merged = {name: reachable.get(name, {}) | rest.get(name, {}) for name in dumped}
        assert merged == dumped


def test_a_large_map_is_read_by_its_keys(namespace: Namespace) -> None:
    routings = [numbered(number, 50) for number in range(SERVICES)]
    lost = {b"\xc0\0\2\1" + b"\6\0\0\0" + b"\0\x50\0\0" + bytes(4): bytes((10, 9, 9, 9)) + bytes(4)}
    with programming(namespace) as dataplane, closing(namespace.call(Nfnetlink)) as netlink:
        whole = dataplane.plan_full(routings, NodeRouting())
        assert namespace.call(lambda: dataplane.commit(whole)) == ()
        before = netlink.bytes_sent
        reachable = read_table(netlink, reachable=True)
        # Each key is in a request, with 12 bytes of headers.
        assert netlink.bytes_sent - before > SERVICES * 50 * (16 + 12)
        assert reachable == compiled(routings)
        write(namespace, schema.ENDPOINTS, Family.IPV4, lost)
        before = netlink.bytes_sent
        reachable = read_table(netlink, reachable=True)
        rest = find_unreachable(netlink, reachable)
        assert (reachable[ENDPOINTS] | rest.get(ENDPOINTS, {})).items() >= lost.items()
        assert len(reachable[ENDPOINTS]) == SERVICES * 50 + (not rest)


@pytest.mark.parametrize(
    ("kind", "key_size"), [(schema.ENDPOINTS, 16 + 12), (schema.NODE_PORT_ENDPOINTS, 12)]
)
def test_a_map_of_nothing_but_strays_is_emptied(
    namespace: Namespace, kind: SetKind, key_size: int
) -> None:
    """The first read-back does not find the map's elements, and the search finds them in time."""
    stray: dict[bytes, Value] = {bytes(key_size): bytes(16) + bytes(4)}
    with programming(namespace) as before:
        empty = before.plan_full([], NodeRouting())
        assert namespace.call(lambda: before.commit(empty)) == ()
    write(namespace, kind, Family.IPV6, stray)
    with by_keys(counts=False), restarted(namespace) as dataplane:
        namespace.call(dataplane.read_ahead)
        assert dataplane._ahead is not None
        dataplane._ahead.wait()
        plan = dataplane.plan_full([], NodeRouting())
        assert plan.delta.remove == {kind.of(Family.IPV6): stray}
        assert namespace.call(lambda: dataplane.commit(plan)) == ()
    assert held_by_dump(namespace) == {}


def held_by_dump(namespace: Namespace) -> Table:
    netlink = namespace.call(Nfnetlink)
    with closing(netlink):
        return tables.read_table(netlink, TABLE, schema.BY_NAME)
