"""A process killed at any write leaves a kernel that the next one makes equal to a fresh one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.errors import StaleStateError
from pyproxy.model.address import Backend, Port, Protocol, parse_address
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.ipvs import Scheduling, Virtual
from pyproxy.policy.routing import Scope, Use
from tests.dataplane.ipvs.stage import Routings, Stage
from tests.dataplane.ipvs.test_dataplane import (
    FOREIGN,
    NODE,
    ONE,
    THREE,
    TWO,
    many,
    of,
    service,
    taking,
)
from tests.dataplane.ipvs.test_histories import node_of
from tests.dataplane.nftables.scenes import LOCAL, Scene, scenes
from tests.examples import examples

SPLIT = parse_address("192.0.2.1")
OTHER_PORT = FOREIGN._replace(port=Port(30080))


class Killed(BaseException):
    """SIGKILL: no handler of exceptions runs after it."""


def kinds(*backends: Backend, protocol: Protocol = Protocol.TCP) -> Routings:
    """Return a Service of each kind, with these endpoints."""
    own = service(*backends, protocol=protocol)
    return of(
        taking(own, OTHER_PORT._replace(protocol=int(protocol))),
        service(
            *backends,
            protocol=protocol,
            use=Use.SPLIT,
            scope=Scope.EXTERNAL_IP,
            local=backends[:1],
            address=SPLIT,
            name=ObjectName("shop", "split"),
        ),
    )


(STAYS,) = many(1)
UDP = kinds(ONE, TWO, protocol=Protocol.UDP)
CHANGES: dict[str, tuple[Routings, Routings]] = {
    "first": ({}, kinds(ONE, TWO)),
    "added": (of(STAYS), {**of(STAYS), **kinds(ONE, TWO)}),
    "added, UDP": (of(STAYS), {**of(STAYS), **UDP}),
    "endpoints": (kinds(ONE, TWO), kinds(TWO, THREE)),
    "endpoints, UDP": (UDP, kinds(TWO, THREE, protocol=Protocol.UDP)),
    "protocol": (kinds(ONE), kinds(ONE, protocol=Protocol.UDP)),
    "scheduler": (kinds(ONE), {n: replace(each, scheduler="lc") for n, each in kinds(TWO).items()}),
    "no endpoints": (UDP, of(service(use=Use.REJECT, protocol=Protocol.UDP))),
    "endpoints again": (of(service(use=Use.REJECT)), of(service(ONE))),
    "removed": ({**of(STAYS), **kinds(ONE, TWO)}, of(STAYS)),
    "removed, UDP": ({**of(STAYS), **UDP}, of(STAYS)),
    "all removed": (UDP, {}),
}  # fmt: skip


def staged(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage(monkeypatch, [NODE])
    stage.kernel.table[FOREIGN], stage.kernel.how[FOREIGN] = {THREE: 3}, Scheduling("wrr")
    return stage


def written(stage: Stage, write: Callable[[], object], most: int | None = None) -> int:
    """Count the writes of a call; with `most`, kill the process before one more."""
    count = 0

    def before_write() -> None:
        nonlocal count
        if count == most:
            raise Killed
        count += 1

    stage.before_writes(before_write)
    with suppress(Killed):
        write()
    stage.before_writes(lambda: None)
    return count


def sync(stage: Stage, after: Routings, *, whole: bool) -> None:
    """Write changes, in a full sync after a restart or in a partial one."""
    if whole:
        stage.restarted()
        assert not stage.begin(after)
    else:
        assert not stage.change(after)


@pytest.mark.parametrize("whole", [True, False], ids=["full", "partial"])
@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES)
def test_a_sync_may_be_killed_at_each_write(
    monkeypatch: pytest.MonkeyPatch, before: Routings, after: Routings, whole: bool
) -> None:
    fresh = staged(monkeypatch)
    assert not fresh.begin(after)
    at = 0
    for then in (after, before):
        fresh = staged(monkeypatch)
        assert not fresh.begin(then)
        at, is_killed = 0, True
        while is_killed:
            stage = staged(monkeypatch)
            if before or not whole:
                assert not stage.begin(before)
            wanted = after
            is_killed = written(stage, lambda: sync(stage, wanted, whole=whole), at) == at  # noqa: B023
            stage.restarted()
            assert not stage.begin(then)
            stage.hang_up()
            assert stage.state() == fresh.state(), at
            at += 1
    assert at > 1


@pytest.mark.parametrize("whole", [True, False], ids=["full", "partial"])
@pytest.mark.parametrize("change", ["endpoints", "endpoints, UDP", "scheduler", "added", "removed"])
def test_a_service_serves_between_any_two_writes(stage: Stage, change: str, whole: bool) -> None:
    before, after = CHANGES[change]
    assert not stage.begin(before)
    had = {virtual for virtual in stage.kernel.table if not virtual.mark}
    writes = 0

    def check() -> None:
        nonlocal writes
        writes += 1
        for virtual in had & kept:
            key = frontend_key(virtual.address, Protocol(virtual.protocol), virtual.port)
            assert any(stage.kernel.table[virtual].values())
            assert key in stage.rules.table["frontends4"]
            assert key not in stage.rules.table.get("no-endpoint-services4", {})
            is_own = virtual.address == NODE or virtual.address in stage.kernel.on_device
            assert is_own

    kept = {
        Virtual(port.family, int(port.protocol), frontend.address, frontend.port)
        for routing in after.values()
        for port in routing.ports
        for frontend in port.frontends
    }
    stage.before_writes(check)
    sync(stage, after, whole=whole)
    check()
    assert writes > 1
    assert had & kept


@pytest.mark.parametrize("whole", [True, False], ids=["full", "partial"])
def test_a_foreign_virtual_service_is_never_taken_for_ours(
    monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    before, after = {**of(STAYS)}, {**of(STAYS), **of(taking(service(ONE)))}
    fresh = staged(monkeypatch)
    assert not fresh.begin(before)

    def change(stage: Stage) -> None:
        if not whole:
            with suppress(StaleStateError):
                stage.change(after)
            return
        stage.restarted()
        stage.begin(after)

    at, is_killed = 0, True
    while is_killed:
        stage = staged(monkeypatch)
        assert whole or not stage.begin(before)
        is_killed = written(stage, lambda: change(stage), at) == at  # noqa: B023
        stage.restarted()
        (failure,) = stage.begin(after)
        assert "another program has" in str(failure.error)
        assert stage.state() == fresh.state()
        at += 1


def test_one_that_appears_during_a_sync_gets_neither_servers_nor_a_claim(stage: Stage) -> None:
    assert not stage.begin(of(STAYS))
    before = stage.state()
    foreign = {FOREIGN: {THREE: 3}}

    def appear() -> None:
        # The claim is written just before the virtual service.
        if any(stage.rules.table.get("claims4", {})) and FOREIGN not in stage.kernel.table:
            stage.kernel.table[FOREIGN], stage.kernel.how[FOREIGN] = {THREE: 3}, Scheduling("wrr")

    stage.before_writes(appear)
    with pytest.raises(StaleStateError):
        stage.change({**of(STAYS), **of(taking(service(ONE)))})
    assert FOREIGN in stage.kernel.table
    (failure,) = stage.begin()
    assert "another program has" in str(failure.error)
    assert stage.kernel.table[FOREIGN] == foreign[FOREIGN]
    stage.change(of(STAYS))
    stage.begin()
    stage.hang_up()
    del stage.kernel.table[FOREIGN], stage.kernel.how[FOREIGN]
    assert stage.state() == before


def test_the_table_may_be_deleted_while_no_agent_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    after = {**of(STAYS), **kinds(ONE, TWO)}
    fresh = staged(monkeypatch)
    assert not fresh.begin(after)
    at, is_killed = 0, True
    while is_killed:
        stage = staged(monkeypatch)
        assert not stage.begin(after)
        stage.rules.delete()
        # The sync that restores the table may be killed too.
        is_killed = written(stage, lambda: sync(stage, after, whole=True), at) == at  # noqa: B023
        stage.restarted()
        assert not stage.begin(after)
        # A mark is in the table alone, so the Service has got another one.
        stage.hang_up()
        assert stage.state() == fresh.state()
        at += 1


@settings(max_examples=examples(100), deadline=None)
@given(scenes(), scenes(), scenes(), st.data())
def test_a_history_may_be_killed_at_any_write(
    before: Scene, after: Scene, then: Scene, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        whole = data.draw(st.booleans())

        def change(stage: Stage) -> None:
            if whole:
                stage.restarted()
                stage.begin(after.routings(), node_of(after))
            else:
                stage.change(after.routings(), node_of(after))

        def begun() -> Stage:
            stage = Stage(monkeypatch, LOCAL)
            assert not stage.begin(before.routings(), node_of(before))
            return stage

        counted = begun()
        writes = written(counted, lambda: change(counted))
        stage = begun()
        written(stage, lambda: change(stage), data.draw(st.integers(0, writes)))
        stage.restarted()
        assert not stage.begin(then.routings(), node_of(then))
        stage.hang_up()
        fresh = Stage(monkeypatch, LOCAL)
        assert not fresh.begin(then.routings(), node_of(then))
        assert stage.state() == fresh.state()
