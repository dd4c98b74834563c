"""The agent's loop: events, periodic work and the garbage collector around a sync."""

from __future__ import annotations

import errno
import gc
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from pyproxy.agent.address_watcher import AddressWatcher
from pyproxy.agent.loop import (
    SWITCH_INTERVAL,
    AddressesChanged,
    Chores,
    DevicesChanged,
    Inbox,
    Loop,
    Stop,
)
from pyproxy.config.settings import NodePorts
from pyproxy.errors import PermissionKernelError, TransientKernelError
from pyproxy.model.address import Address, parse_address
from pyproxy.model.events import Upsert
from pyproxy.netlink.address_monitor import LocalAddressMonitor
from tests.agent.objects import PlannedTable, Stage
from tests.builders import service
from tests.namespaces import empty_namespace


def looping(stage: Stage, inbox: Inbox) -> Loop[PlannedTable]:
    stage.begin(service("web", 1))
    inbox.put(Upsert(service("api", 2)))
    return Loop(stage.agent, inbox, Chores(), stage.health)


def test_the_garbage_collector_rests_during_the_first_sync_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, inbox = Stage(), Inbox()
    loop = looping(stage, inbox)
    then: Iterator[Upsert | Stop] = iter([Upsert(service("db", 3)), Stop()])
    rested = []

    def committed(*_: object) -> None:
        rested.append(not gc.isenabled())
        inbox.put(next(then))

    monkeypatch.setattr(stage.recorder, "committed", committed)
    loop.run()
    assert rested == [True, False]
    assert gc.isenabled()


def test_threads_interrupt_one_another_sooner_after_the_first_sync(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, inbox = Stage(), Inbox()
    loop = looping(stage, inbox)
    then: Iterator[Upsert | Stop] = iter([Upsert(service("db", 3)), Stop()])
    intervals = []

    def committed(*_: object) -> None:
        intervals.append(sys.getswitchinterval())
        inbox.put(next(then))

    monkeypatch.setattr(stage.recorder, "committed", committed)
    before = sys.getswitchinterval()
    loop.run()
    assert intervals == [before, pytest.approx(SWITCH_INTERVAL)]
    assert sys.getswitchinterval() == before


def test_it_works_again_after_a_sync_that_ends_the_agent() -> None:
    stage, inbox = Stage(), Inbox()
    loop = looping(stage, inbox)
    stage.dataplane.trouble = [PermissionKernelError("EPERM", errno.EPERM)]
    with pytest.raises(PermissionKernelError):
        loop.run()
    assert gc.isenabled()


def test_spare_work_goes_on_in_parts_without_waiting_for_an_event() -> None:
    stage, inbox = Stage(), Inbox()
    # The loop waits for its first event.
    inbox.put(Upsert(service("web", 1)))
    parts = 0

    def spare() -> bool:
        nonlocal parts
        parts += 1
        if parts == 3:
            inbox.put(Stop())
        return parts < 3

    Loop(stage.agent, inbox, Chores(period=60.0, spare=spare), stage.health).run()
    assert parts == 3


def test_addresses_that_change_together_are_read_once_and_at_once() -> None:
    stage, inbox = Stage(node_ports=NodePorts(primary=False, everywhere=True)), Inbox()
    stage.local_addresses = (parse_address("172.30.0.11"),)
    stage.begin(service("web", 1, node_port=30080))
    stage.address_reads = 0
    stage.local_addresses += (parse_address("203.0.113.7"),)
    for _ in range(500):
        inbox.put(AddressesChanged())

    class Ending:
        """Ends the loop at the commit, so that no periodic work comes first."""

        def committed(self, *_: object) -> None:
            inbox.put(Stop())

    stage.listeners.append(Ending())
    Loop(stage.agent, inbox, Chores(period=3600.0), stage.health).run()
    assert stage.address_reads == 1
    assert len(stage.dataplane.kernel["node-port-addresses4"]) == 2


def test_devices_that_come_together_are_followed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, inbox = Stage(), Inbox()
    stage.begin(service("web", 1))
    now, followed = 0.0, 0

    def clock() -> float:
        return now

    def idle() -> bool:
        """Let time pass in which the devices of a hundred pods come, one after another."""
        nonlocal now
        now += 0.01
        inbox.put(DevicesChanged() if now < 1.0 else Stop())
        return False

    def follow() -> None:
        nonlocal followed
        followed += 1

    monkeypatch.setattr(stage.dataplane, "devices_changed", follow)
    inbox.put(DevicesChanged())
    Loop(stage.agent, inbox, Chores(period=3600.0, spare=idle), stage.health, clock).run()
    # Half a second after the first one: a stream of others does not delay it.
    assert followed == 1


def test_devices_that_cannot_be_followed_now_end_nothing(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.begin(service("web", 1))
    stage.dataplane.device_trouble = [TransientKernelError("EBUSY: planted", errno.EBUSY)]
    stage.agent.devices_changed()
    assert "cannot follow changes of network devices: EBUSY: planted" in caplog.text
    stage.dataplane.device_trouble = [PermissionKernelError("EPERM", errno.EPERM)]
    with pytest.raises(PermissionKernelError):
        stage.agent.devices_changed()


def test_an_address_that_flaps_for_hours_takes_a_share_of_the_time() -> None:
    stage, inbox = Stage(), Inbox()
    stage.begin(service("web", 1))
    now, busy = 0.0, 0.0

    def clock() -> float:
        return now

    def read() -> tuple[Address, ...]:
        nonlocal now, busy
        now, busy = now + 0.1, busy + 0.1
        inbox.put(AddressesChanged())
        return ()

    def idle() -> bool:
        nonlocal now
        now += 0.05
        inbox.put(AddressesChanged() if now < 1000 else Stop())
        return False

    stage.reading = read
    inbox.put(AddressesChanged())
    Loop(stage.agent, inbox, Chores(period=3600.0, spare=idle), stage.health, clock).run()
    assert 0.2 < busy / now < 0.3


def test_addresses_that_cannot_be_read_keep_no_service_waiting() -> None:
    stage, inbox = Stage(node_ports=NodePorts(primary=False, everywhere=True)), Inbox()
    stage.local_addresses = (parse_address("172.30.0.11"),)
    stage.begin(service("web", 1, node_port=30080))
    stage.local_addresses += (parse_address("203.0.113.7"),)
    failures = 3

    def read() -> tuple[Address, ...]:
        nonlocal failures
        failures -= 1
        if failures < 0:
            return stage.local_addresses
        # A change of a Service that comes meanwhile.
        inbox.put(Upsert(service("web", 2 + failures, node_port=30080)))
        raise TransientKernelError("EINTR", errno.EINTR)

    def spare() -> bool:
        stage.clock.now += 0.5
        if len(stage.dataplane.kernel["node-port-addresses4"]) == 2:
            inbox.put(Stop())
        return False

    stage.reading = read
    inbox.put(AddressesChanged())
    loop = Loop(stage.agent, inbox, Chores(period=0.1, spare=spare), stage.health, stage.clock)
    loop.run()
    assert stage.address_reads == 1 + 3 + 1
    written = {name.name for each in stage.recorder.commits for name in each.routings}
    assert written == {"web"}
    assert len(stage.recorder.commits) == 1 + 3 + 1


@pytest.mark.kernel
def test_the_watcher_waits_for_the_kernel_and_ends() -> None:
    inbox = Inbox()
    with (
        empty_namespace("watched") as empty,
        closing(empty.call(LocalAddressMonitor)) as monitor,
    ):
        watcher = AddressWatcher(monitor, lambda: inbox.put(AddressesChanged()))
        watcher.start()
        try:
            for _ in range(2):
                empty.ip(["addr add 203.0.113.7/32 dev lo"])
                assert isinstance(inbox.get(timeout=60), AddressesChanged)
                empty.ip(["addr del 203.0.113.7/32 dev lo"])
                assert isinstance(inbox.get(timeout=60), AddressesChanged)
        finally:
            watcher.stop()
        assert monitor.wait() is False
