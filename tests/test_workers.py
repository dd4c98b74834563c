"""Workers that fail, begin again, and end."""

from __future__ import annotations

import threading

import pytest

from pyproxy import workers
from pyproxy.workers import Worker
from tests.waiting import PATIENCE

Failures = list[threading.ExceptHookArgs]


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> Failures:
    found: Failures = []
    monkeypatch.setattr(threading, "excepthook", found.append)
    monkeypatch.setattr(workers, "FIRST_PAUSE", 0.01)
    return found


def test_a_body_that_fails_begins_again_and_each_failure_is_told(failures: Failures) -> None:
    errors = [KeyError("one"), ZeroDivisionError("two")]

    def body() -> None:
        if errors:
            raise errors.pop(0)

    worker = Worker("some", body)
    worker.start()
    worker.join(PATIENCE)
    assert not worker.is_alive()
    assert [args.exc_type for args in failures] == [KeyError, ZeroDivisionError]
    assert {args.thread for args in failures} == {worker}
    assert all(args.exc_traceback for args in failures)


def test_end_cuts_a_pause_short(failures: Failures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "FIRST_PAUSE", 3600.0)
    failed = threading.Event()

    def body() -> None:
        failed.set()
        raise KeyError

    worker = Worker("some", body)
    worker.start()
    assert failed.wait(PATIENCE)
    worker.end(PATIENCE)
    assert not worker.is_alive()
    assert len(failures) == 1


def test_pauses_grow(failures: Failures, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def body() -> None:
        raise KeyError

    worker = Worker("some", body)

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        if len(pauses) == 8:
            worker.end()
        return False

    monkeypatch.setattr(workers, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(worker._ending, "wait", wait)
    worker.run()
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_end_before_start_is_harmless() -> None:
    Worker("some", lambda: None).end(1.0)
