import threading

from pyproxy.health.slow import Recent, SlowThread
from tests.health.conftest import Clock
from tests.waiting import PATIENCE


def test_a_value_is_used_again_in_proportion_to_its_cost(clock: Clock) -> None:
    made = 0
    cpu = 0.0

    def make() -> bytes:
        nonlocal made, cpu
        made += 1
        cpu += 0.5
        return b"%d" % made

    recent = Recent(make, 10.0, clock, lambda: cpu)
    assert recent.get() == b"1"
    clock.seconds += 4.9
    assert recent.get() == b"1"
    clock.seconds += 0.2
    assert recent.get() == b"2"


def test_jobs_run_one_after_the_other() -> None:
    slow = SlowThread()
    slow.start()
    done: list[int] = []
    last = threading.Event()
    for number in range(3):
        slow.put(lambda number=number: done.append(number))  # type: ignore[misc]
    slow.put(last.set)
    assert last.wait(PATIENCE)
    assert done == [0, 1, 2]
    slow.stop()
    slow.stop()
