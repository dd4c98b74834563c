"""The reconciler on the kernel's own table, with invented entries and a clock set by hand."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

from pyproxy.dataplane.conntrack import Reconciler
from pyproxy.dataplane.conntrack.frontends import FrontendKey
from pyproxy.dataplane.conntrack.recheck_queue import (
    LAST_DELAY,
    RETRY_DELAYS,
    SECOND_SWEEP,
    RecheckQueue,
)
from pyproxy.model.address import Backend, Family, Port, Protocol, parse_address
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.conntrack import Conntrack
from pyproxy.netlink.flows import Flow
from pyproxy.policy.parts import parts
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.dataplane.conntrack_service import (
    CLIENTS,
    NAME,
    NODE,
    NODE_PORT,
    Clock,
    Flaky,
    Tally,
    goal,
    pod,
    routing,
)
from tests.netlink.conntrack_entries import Entry, count, empty_table, insert, place
from tests.waiting import PATIENCE

pytestmark = pytest.mark.kernel


@pytest.fixture
def table() -> Iterator[Conntrack]:
    with empty_table() as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest.fixture
def reconciler(table: Conntrack, tally: Tally, clock: Clock) -> Reconciler:
    made = Reconciler(table, tally, clock)
    made.node_addresses(NODE)
    return made


def left(table: Conntrack, protocol: Protocol = Protocol.UDP) -> set[tuple[bytes, bytes]]:
    return {
        (flow.destination, flow.reply_source)
        for family in Family
        for piece in table.flows(family, protocol)
        for flow in piece
    }


class Situation(msgspec.Struct, frozen=True):
    """A Service's pods before and after (None: no Service), and those whose flows stay."""

    before: list[int] | None
    after: list[int] | None
    kept: list[int] = []


SITUATIONS = {
    "N to M": Situation([1, 2], [2, 3], [2]),
    "N to 0": Situation([1, 2], []),
    "0 to N": Situation([], [1]),
    "a Service is new": Situation(None, [1]),
    "a Service is deleted": Situation([1, 2], None),
    "another order": Situation([1, 2], [2, 1], [1, 2]),
}


@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.SCTP])
@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_flows_follow_their_service(
    reconciler: Reconciler,
    table: Conntrack,
    situation: Situation,
    scope: Scope,
    family: Family,
    protocol: Protocol,
) -> None:
    before, after = situation.before, situation.after
    to = goal(family, scope)
    if before is not None:
        reconciler.full([routing(before, protocol=protocol)])
        reconciler.step()
    insert(
        Entry(place(CLIENTS[family], 40000 + number), to, pod(family, number), protocol)
        for number in before or []
    )
    if not before:
        insert([Entry(place(CLIENTS[family], 40000), to, protocol=protocol)])
    expected = {(to, pod(family, number)) for number in situation.kept}
    strangers = [
        Entry(place(CLIENTS[family], 50001), pod(family, 9), pod(family, 8), protocol),
        Entry(place(CLIENTS[family], 50002), pod(family, 9), Backend(b""), protocol),
    ]
    insert(strangers)
    reconciler.changed({NAME: None if after is None else routing(after, protocol=protocol)})
    reconciler.step()
    expected |= {(entry.to, entry.by or entry.to) for entry in strangers}
    assert left(table, protocol) == expected


@pytest.mark.parametrize("after", [[2], [], None])
def test_tcp_is_never_touched(
    table: Conntrack, reconciler: Reconciler, after: list[int] | None
) -> None:
    entries = [
        Entry(place(CLIENTS[family], 40000), goal(family, scope), pod(family, 1), protocol)
        for family in Family
        for scope in (Scope.CLUSTER_IP, Scope.NODE_PORT)
        for protocol in (Protocol.TCP, Protocol.UDP)
    ]
    tcp = routing([1], protocol=Protocol.TCP, name=ObjectName("shop", "tcp"))
    reconciler.full([routing([1]), tcp])
    insert(entries[:2] + entries[4:6])
    reconciler.changed(
        {
            NAME: None if after is None else routing(after),
            tcp.name: None if after is None else routing(after, (), Protocol.TCP, tcp.name),
        }
    )
    reconciler.step()
    assert left(table) == set()
    assert len(left(table, Protocol.TCP)) == 2


def test_an_unchanged_restart_removes_nothing(
    table: Conntrack, reconciler: Reconciler, clock: Clock, tally: Tally
) -> None:
    insert(
        Entry(place(CLIENTS[family], 40000 + index), goal(family, scope), pod(family, 1))
        for family in Family
        for index, scope in enumerate((Scope.CLUSTER_IP, Scope.NODE_PORT))
    )
    before = count()
    reconciler.full([routing([1, 2])])
    for _ in range(3):
        reconciler.step()
        clock.now += SECOND_SWEEP
    assert count() == before
    assert tally.sweeps
    assert tally.deleted() == 0


def test_a_restart_finds_flows_that_became_stale_meanwhile(
    table: Conntrack, reconciler: Reconciler
) -> None:
    family = Family.IPV4
    to = goal(family, Scope.CLUSTER_IP)
    insert(Entry(place(CLIENTS[family], 40000 + n), to, pod(family, n)) for n in (1, 2))
    reconciler.full([routing([2])])
    reconciler.step()
    assert left(table) == {(to, pod(family, 2))}


def test_an_entry_that_appears_late_is_found_by_the_second_sweep(
    table: Conntrack, reconciler: Reconciler, clock: Clock
) -> None:
    family = Family.IPV6
    reconciler.full([routing([1])])
    reconciler.changed({NAME: routing([2])})
    reconciler.step()
    insert([Entry(place(CLIENTS[family], 40000), goal(family, Scope.CLUSTER_IP), pod(family, 1))])
    reconciler.step()
    assert len(left(table)) == 1
    clock.now += SECOND_SWEEP
    reconciler.step()
    assert left(table) == set()


@pytest.fixture(params=[1_000, 0], ids=["each address", "each node port"])
def many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queue each address and node port by itself, or each node port on all addresses."""
    monkeypatch.setattr("pyproxy.dataplane.conntrack.reconciler._MOST_KEYS", request.param)


@pytest.mark.usefixtures("many")
def test_flows_to_an_address_that_left_the_node_are_deleted(
    table: Conntrack, reconciler: Reconciler, clock: Clock
) -> None:
    family = Family.IPV4
    to = goal(family, Scope.NODE_PORT)
    reconciler.changed({NAME: routing([1])})
    insert([Entry(place(CLIENTS[family], 40000), to, pod(family, 1))])
    reconciler.step()
    assert len(left(table)) == 1
    other = Entry(place(CLIENTS[family], 40001), Backend(to[:-2] + b"\1\1"), pod(family, 1))
    insert([other])
    reconciler.node_addresses(())
    # The second sweep finds one that came late.
    for number in range(2):
        insert([Entry(place(CLIENTS[family], 40002 + number), to, pod(family, 1))])
        reconciler.step()
        assert left(table) == {(other.to, pod(family, 1))}
        clock.now += SECOND_SWEEP
    # Another node may have the address now.
    insert([Entry(place(CLIENTS[family], 40010), to, pod(family, 1))])
    reconciler.recheck()
    reconciler.step()
    assert len(left(table)) == 2


def test_a_node_of_many_addresses_costs_a_key_for_each_node_port(
    reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconciler.full([routing([1])])
    queued: list[int] = []

    def add(queue: RecheckQueue, keys: Iterable[FrontendKey], now: float) -> None:
        queued.append(len(list(keys)))

    monkeypatch.setattr(RecheckQueue, "add", add)
    many = [parse_address(f"10.9.{number >> 8}.{number & 255}") for number in range(2_000)]
    reconciler.node_addresses([*NODE, *many])
    reconciler.node_addresses(NODE)
    # One of each family.
    assert queued == [2, 2]


def test_the_flows_of_a_service_that_the_kernel_rejected_stay(
    table: Conntrack, reconciler: Reconciler, clock: Clock
) -> None:
    family = Family.IPV4
    part = parts(routing([1]))
    other = ObjectName("shop", "gone")
    to = goal(family, Scope.CLUSTER_IP)
    reconciler.full([routing([1])])
    insert([Entry(place(CLIENTS[family], 40000), to, pod(family, 1))])
    for kept in ([NAME], [NAME, other]):
        reconciler.full([], kept)
        for _ in range(2):
            reconciler.step()
            clock.now += SECOND_SWEEP
        assert len(left(table)) == 1
    # Those of its parts too.
    reconciler.full(part.values())
    reconciler.full([], [NAME])
    reconciler.step()
    assert len(left(table)) == 1
    reconciler.full([], [other])
    reconciler.step()
    assert left(table) == set()


@pytest.mark.usefixtures("many")
def test_untranslated_flows_to_an_address_new_to_the_node_are_deleted(
    table: Conntrack, tally: Tally, clock: Clock
) -> None:
    family = Family.IPV6
    reconciler = Reconciler(table, tally, clock)
    reconciler.changed({NAME: routing([1])})
    insert([Entry(place(CLIENTS[family], 40000), goal(family, Scope.NODE_PORT))])
    reconciler.step()
    assert len(left(table)) == 1
    reconciler.node_addresses(NODE)
    reconciler.step()
    assert left(table) == set()


def test_a_failed_deletion_is_tried_again(
    table: Conntrack, clock: Clock, tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    family = Family.IPV4
    reconciler = Reconciler(Flaky(table, failures=1), tally, clock)
    reconciler.changed({NAME: routing([1, 2])})
    to = goal(family, Scope.CLUSTER_IP)
    insert(Entry(place(CLIENTS[family], 40000 + n), to, pod(family, 1)) for n in range(5))
    reconciler.changed({NAME: routing([2])})
    reconciler.step()
    assert count() == 1
    assert "EBUSY" in caplog.text
    clock.now += RETRY_DELAYS[0]
    reconciler.step()
    assert count() == 0
    assert tally.deleted() == 5
    assert reconciler.abandoned == 0


@pytest.mark.parametrize("selective", [True, False])
def test_a_failed_reading_is_tried_again(
    table: Conntrack,
    clock: Clock,
    tally: Tally,
    caplog: pytest.LogCaptureFixture,
    selective: bool,
) -> None:
    family = Family.IPV4
    flaky = Flaky(table, unreadable=len(Scope))
    flaky.selective = selective
    reconciler = Reconciler(flaky, tally, clock)
    insert([Entry(place(CLIENTS[family], 40000), goal(family, Scope.CLUSTER_IP), pod(family, 1))])
    reconciler.changed({NAME: routing([2], [family])})
    sweeps = 0
    while count():
        reconciler.step()
        clock.now += max(RETRY_DELAYS)
        sweeps += 1
        assert sweeps <= len(RETRY_DELAYS)
    assert sweeps == (2 if selective else 1 + len(Scope))
    assert "ENOBUFS" in caplog.text
    assert reconciler.abandoned == 0


def test_an_entry_that_cannot_be_deleted_is_tried_until_it_can_be(
    table: Conntrack, clock: Clock, tally: Tally
) -> None:
    family = Family.IPV4
    reconciler = Reconciler(Flaky(table, failures=len(RETRY_DELAYS) + 3), tally, clock)
    reconciler.changed({NAME: routing([1])})
    to = goal(family, Scope.CLUSTER_IP)
    insert([Entry(place(CLIENTS[family], 40000), to, pod(family, 1))])
    reconciler.changed({NAME: routing([2])})
    for _ in range(len(RETRY_DELAYS) + 4):
        assert count() == 1
        reconciler.step()
        clock.now += LAST_DELAY
    assert count() == 0
    assert reconciler.abandoned == 0


def test_a_few_frontends_are_read_one_by_one_and_many_all_at_once(
    table: Conntrack, clock: Clock, tally: Tally
) -> None:
    asked = Flaky(table)
    reconciler = Reconciler(asked, tally, clock)
    reconciler.changed({NAME: routing([1], [Family.IPV4])})
    reconciler.step()
    addresses = {goal(Family.IPV4, scope) for scope in Scope if scope is not Scope.NODE_PORT}
    assert set(asked.asked) == {*addresses, NODE_PORT.to_bytes(2, "big")}
    asked.asked.clear()
    clock.now += SECOND_SWEEP / 2
    port = PortRouting(
        "many",
        Family.IPV4,
        Protocol.UDP,
        tuple(
            Frontend(Scope.CLUSTER_IP, parse_address("10.96.1.1"), Port(1000 + n), Use.CLUSTER)
            for n in range(100)
        ),
        (pod(Family.IPV4, 1),),
        (),
    )
    reconciler.changed({ObjectName("shop", "many"): ServiceRouting(NAME, (port,))})
    reconciler.step()
    assert asked.asked == [b""]


def test_a_burst_of_changes_is_one_sweep(table: Conntrack, clock: Clock, tally: Tally) -> None:
    asked = Flaky(table)
    reconciler = Reconciler(asked, tally, clock)
    for change in range(50):
        reconciler.changed({NAME: routing([1 + change % 2], [Family.IPV4])})
    reconciler.step()
    assert len(asked.asked) == len(Scope)


@pytest.mark.parametrize(("waited", "ran", "rest"), [(30.0, 0.01, 0.1), (30.0, 2.0, 6.0)])
def test_the_time_between_sweeps_depends_on_the_cpu_time_of_the_last_one(
    table: Conntrack, clock: Clock, tally: Tally, waited: float, ran: float, rest: float
) -> None:
    cpu = Clock()

    class Slow(Flaky):
        def flows(
            self, family: Family, protocol: Protocol, destination: bytes = b""
        ) -> Iterator[list[Flow]]:
            clock.now += waited
            cpu.now += ran
            return super().flows(family, protocol, destination)

    slow = Slow(table)
    slow.selective = False
    reconciler = Reconciler(slow, tally, clock, cpu)
    assert reconciler.due() is None
    reconciler.changed({NAME: routing([1], [Family.IPV4])})
    assert reconciler.due() == clock.now
    reconciler.step()
    reconciler.changed({NAME: None})
    assert reconciler.due() == pytest.approx(clock.now + rest)


def test_a_kernel_that_does_not_filter_is_read_once(
    table: Conntrack, clock: Clock, tally: Tally
) -> None:
    asked = Flaky(table)
    asked.selective = False
    reconciler = Reconciler(asked, tally, clock)
    reconciler.changed({NAME: routing([1], [Family.IPV4])})
    reconciler.step()
    assert asked.asked == [b""]


def test_nothing_is_read_for_tcp_alone(table: Conntrack, clock: Clock, tally: Tally) -> None:
    asked = Flaky(table)
    reconciler = Reconciler(asked, tally, clock)
    reconciler.full([routing([1, 2], protocol=Protocol.TCP)])
    reconciler.changed({NAME: routing([3], protocol=Protocol.TCP)})
    reconciler.step()
    assert asked.asked == []
    assert tally.sweeps == []


def test_the_worker_stops_and_may_be_stopped_twice(table: Conntrack, tally: Tally) -> None:
    before = set(threading.enumerate())
    reconciler = Reconciler(table, tally)
    reconciler.start()
    reconciler.stop(PATIENCE)
    assert set(threading.enumerate()) <= before
    reconciler.stop()


def peak_memory() -> int:
    """The process's largest resident size so far, or since it was last reset, in bytes."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) << 10


def test_fifty_thousand_entries_take_little_memory() -> None:
    """Half of the table is stale, and is deleted while it is being read."""
    # Other threads of this process may take memory meanwhile, but not each time.
    assert any(memory_for(50_000) < 4 << 20 for _ in range(3))


def memory_for(total: int) -> int:
    """Return by how many bytes the process grows while half of a table is deleted."""
    tally = Tally()
    with empty_table() as table:
        reconciler = Reconciler(table, tally, Clock())
        reconciler.node_addresses(NODE)
        return _memory_for(total, reconciler, tally)


def _memory_for(total: int, reconciler: Reconciler, tally: Tally) -> int:
    to = goal(Family.IPV4, Scope.CLUSTER_IP)
    by = pod(Family.IPV4, 1), pod(Family.IPV4, 2)
    insert(
        Entry(Backend(b"\x0a" + index.to_bytes(3, "big") + b"\x99\x99"), to, by[index % 2])
        for index in range(total)
    )
    assert count() == total
    reconciler.full([routing([2])])
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    reconciler.step()
    grown = peak_memory() - before
    assert count() == total // 2
    assert tally.deleted() == total // 2
    return grown
