"""Another program that keeps changing the table, and changes without a notification."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import Drift
from pyproxy.dataplane.nftables import schema
from pyproxy.dataplane.nftables.readback import read_table
from pyproxy.model.address import Family
from pyproxy.model.objects import Kind
from pyproxy.netlink.elements import Shape, delete_elements
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM
from tests.agent.objects import HOSTNAME, Clock
from tests.builders import endpoint_slice, service
from tests.chaos.kernel_agent import RunningAgent, SteppedAgent, first_lists
from tests.waiting import again_and_again, until

pytestmark = pytest.mark.kernel

WEB, WEB_SLICE = service("web", 1), endpoint_slice("web", ["10.244.1.5", "10.244.2.5"])
API, API_SLICE = service("api", 2), endpoint_slice("api", ["10.244.1.6"])
SERVICES = schema.SERVICES.of(Family.IPV4)
ENDPOINTS = schema.ENDPOINTS.of(Family.IPV4)
AN_HOUR = 3600.0
AUDIT_SECONDS = 600.0


class Foe:
    """A program that deletes every verdict that it sees, as fast as it can."""

    def __init__(self, namespace: Namespace, *names: bytes) -> None:
        self._netlink = namespace.call(Nfnetlink)
        self.wins = 0

    def strike(self) -> None:
        keys = list(read_table(self._netlink).get(SERVICES, {}))
        writes = delete_elements(schema.TABLE, SERVICES, keys, Shape.EXACT)
        messages = [each.message for each in writes]
        if messages and not self._netlink.transact(messages, SUBSYSTEM):
            self.wins += 1

    def close(self) -> None:
        self._netlink.close()

    def striking(self) -> AbstractContextManager[None]:
        return again_and_again(self.strike, pause=0.01)


@pytest.fixture
def foe(namespace: Namespace) -> Iterator[Foe]:
    made = Foe(namespace)
    yield made
    made.close()


def test_a_fight_is_reported_once_and_changes_go_through(
    namespace: Namespace, foe: Foe, caplog: pytest.LogCaptureFixture
) -> None:
    with RunningAgent(namespace) as live:
        whole = live.start(WEB, WEB_SLICE)
        with foe.striking():
            until(lambda: bool(live.reported), "the fight is noticed")
            rounds = foe.wins
            live.apply(API, API_SLICE)
            took = until(
                lambda: len(live.snapshot().rows[ENDPOINTS]) == 3,
                "a change in the middle of a fight",
            )
            print(f"a change in the middle of a fight went through after {took:.3f} s")
            assert foe.wins <= rounds + 2
        (problem,) = live.reported
        assert (problem.kind, problem.name) == (Kind.NODE.value, HOSTNAME)
        assert "keeps undoing what pyproxy writes" in problem.message
        assert sum("keeps undoing" in record.message for record in caplog.records) == 1
        # The last repair comes when the truce ends.
        until(lambda: len(live.snapshot().rows.get(SERVICES, {})) == 2, "the last repair")
        assert whole.rows[SERVICES].items() <= live.snapshot().rows[SERVICES].items()


def test_an_hour_of_fighting_costs_few_repairs(namespace: Namespace, foe: Foe) -> None:
    clock = Clock()
    core = SteppedAgent(namespace, clock)

    def through_the_hour() -> None:
        agent, end = core.agent, clock.now + AN_HOUR
        while clock.now < end:
            foe.strike()
            agent.drifted(Drift("nft (pid 1)"))
            due = agent.due()
            assert due is not None
            clock.now = max(clock.now, due)
            agent.sync()

    try:
        core.start(WEB, WEB_SLICE)
        namespace.call(through_the_hour)
        assert 60 <= core.repairs()["element"] <= 75
        assert len(core.reported) == 1
    finally:
        core.close()


def test_a_change_in_a_truce_is_due_at_once(namespace: Namespace, foe: Foe) -> None:
    clock = Clock()
    core = SteppedAgent(namespace, clock)

    def change_in_a_truce() -> None:
        agent = core.agent
        while not core.reported:
            foe.strike()
            agent.drifted(Drift("nft (pid 1)"))
            clock.now = max(clock.now, agent.due() or 0.0)
            agent.sync()
        agent.drifted(Drift("nft (pid 1)"))
        assert (agent.due() or 0.0) > clock.now
        for event in first_lists((WEB, WEB_SLICE, API, API_SLICE), clock.now):
            agent.handle_event(event)
        assert (agent.due() or 0.0) <= clock.now
        agent.sync()

    try:
        core.start(WEB, WEB_SLICE)
        namespace.call(change_in_a_truce)
        assert len(core.snapshot().rows[ENDPOINTS]) == 3
    finally:
        core.close()


def test_an_audit_finds_a_change_without_a_notification(
    namespace: Namespace, foe: Foe, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    core = SteppedAgent(namespace, clock)

    def ends() -> bool:
        core.agent.tick()
        return not core.dataplane.is_auditing

    def audit_after(seconds: float) -> None:
        clock.now += seconds
        core.agent.audit()
        until(ends, "the end of the audit")
        if (due := core.agent.due()) is not None:
            clock.now = max(clock.now, due)
            core.agent.sync()

    try:
        whole = core.start(WEB, WEB_SLICE)
        foe.strike()
        namespace.call(lambda: audit_after(AUDIT_SECONDS - 1))
        assert core.snapshot() != whole
        assert not core.repairs()
        with caplog.at_level(logging.WARNING):
            namespace.call(lambda: audit_after(1))
        assert core.snapshot() == whole
        assert core.repairs() == {"element": 1}
        assert "repaired changes by an unknown program: 1 element: add element" in caplog.text
    finally:
        core.close()


def test_lost_notifications_cause_a_read_back(
    namespace: Namespace, foe: Foe, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    core = SteppedAgent(namespace, clock)

    def listen() -> None:
        drift = core.dataplane.wait_for_drift()
        assert drift == Drift("")
        core.agent.drifted(drift)
        clock.now = core.agent.due() or 0.0
        core.agent.sync()

    try:
        whole = core.start(WEB, WEB_SLICE)
        # The smallest buffer that the kernel allows, which is not read meanwhile.
        listening = core.dataplane._monitor._socket._socket
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        foe.strike()
        addresses = ", ".join(f"10.0.{n >> 8}.{n & 255}" for n in range(1000))
        text = (
            "add table inet theirs; add set inet theirs many { type ipv4_addr; }; "
            f"add element inet theirs many {{ {addresses} }}"
        )
        namespace.run(["nft", "-f", "-"], text=text)
        namespace.call(listen)
        assert core.snapshot() == whole
        assert core.repairs() == {"element": 1}
        assert "repaired changes by an unknown program: 1 element: add element" in caplog.text
    finally:
        core.close()


MEDDLER = """#!/bin/sh
{nft} "$@" || exit
rm {flag} 2>/dev/null || exit 0
exec {nft} 'add element inet pyproxy no-endpoint-services4 {{ 10.96.0.1 . tcp . 80 }}'
"""


def test_a_change_during_the_first_commit_is_repaired(
    namespace: Namespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The agent receives no notifications during a large transaction of its own."""
    nft, flag = tmp_path / "nft", tmp_path / "flag"
    nft.write_text(MEDDLER.format(nft=shutil.which("nft"), flag=flag))
    nft.chmod(0o755)
    flag.touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with RunningAgent(namespace) as live:
        live.start(WEB, WEB_SLICE)
        assert not flag.exists()
        until(lambda: live.repairs() == {"element": 1}, "the foreign element is gone")
        assert "no-endpoint-services4" not in live.snapshot().rows
        until(lambda: "repaired changes by an unknown program: 1 element" in caplog.text, "the log")
