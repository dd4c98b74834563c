import pytest

from pyproxy.health.state import Health
from tests.health.conftest import Clock

SYNC_PERIOD = 30.0


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(SYNC_PERIOD, clock, clock.wall)


def test_unhealthy_until_the_first_commit(health: Health) -> None:
    assert not health.is_healthy()
    assert health.report().last_updated == 0
    health.queued()
    assert not health.is_healthy()
    health.updated()
    assert health.is_healthy()


def test_healthy_while_no_sync_is_due(health: Health, clock: Clock) -> None:
    health.updated()
    clock.seconds += 10_000
    assert health.is_healthy()


@pytest.mark.parametrize(("waited", "healthy"), [(0, True), (59.9, True), (60, False), (99, False)])
def test_unhealthy_once_a_sync_is_due_for_twice_the_period(
    health: Health, clock: Clock, waited: float, healthy: bool
) -> None:
    health.updated()
    clock.seconds += 500
    health.queued()
    clock.seconds += waited
    assert health.is_healthy() is healthy
    health.updated()
    assert health.is_healthy()


def test_more_changes_do_not_reset_an_overdue_sync(health: Health, clock: Clock) -> None:
    health.updated()
    health.queued()
    clock.seconds += 59
    health.queued()
    clock.seconds += 1
    assert not health.is_healthy()


def test_a_node_being_removed_leaves_the_proxy_healthy(health: Health) -> None:
    health.updated()
    health.set_node_eligible(eligible=False)
    assert health.is_healthy()
    assert not health.report().node_eligible
    health.set_node_eligible(eligible=True)
    assert health.report().node_eligible


def test_a_jump_of_the_wall_clock_makes_no_sync_overdue(clock: Clock) -> None:
    jumps = iter([10**18, 2 * 10**18, 5 * 10**17])
    health = Health(SYNC_PERIOD, clock, lambda: next(jumps))
    health.updated()
    health.queued()
    assert health.is_healthy()
    assert health.is_healthy()


def test_a_thread_without_heartbeats_is_stuck(health: Health, clock: Clock) -> None:
    health.updated()
    clock.seconds += 1000  # no heartbeat is expected before the first one
    assert health.is_healthy()
    for _ in range(100):
        health.heartbeat()
        clock.seconds += 29.9
        assert health.is_healthy()
    clock.seconds += 0.1
    assert not health.report().healthy
    health.heartbeat()
    assert health.is_healthy()


def test_an_agent_that_shuts_down_is_not_healthy_for_load_balancers(health: Health) -> None:
    health.updated()
    health.set_shutting_down()
    assert health.report().healthy
    assert not health.is_healthy()


@pytest.mark.parametrize(
    ("failures", "healthy"),
    [
        ([0], True),
        ([0, 1], True),
        ([0, 1, 3], False),
        ([0, 59, 118], False),
        ([0, 60, 120, 180], True),
        ([0, 1, 61, 62], True),
        ([0, 1, 61, 62, 64], False),
    ],
)
def test_a_worker_that_keeps_failing(
    health: Health, clock: Clock, failures: list[float], healthy: bool
) -> None:
    health.updated()
    start = clock.seconds
    for second in failures:
        clock.seconds = start + second
        health.worker_failed("drift", restarting=True)
        health.worker_failed(f"another one at {second}", restarting=True)
    assert health.is_healthy() is healthy
    clock.seconds += 60
    assert health.is_healthy()


def test_a_worker_that_ended_for_good_is_unhealthy(health: Health, clock: Clock) -> None:
    health.updated()
    health.worker_failed("drift", restarting=False)
    clock.seconds += 10_000
    assert not health.is_healthy()
