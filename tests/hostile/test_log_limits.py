"""Objects that change forever, and texts that forge log lines: the log stays short and readable."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyproxy_lab.network import Network

from pyproxy import logs
from tests.agent.live import Stage, service
from tests.agent.objects import Clock

FORMAT = "invalid object: %s"


def record(subject: str | None, *, level: int = logging.WARNING) -> logging.LogRecord:
    made = logging.LogRecord("pyproxy.agent.problems", level, "", 0, FORMAT, (subject,), None)
    if subject is not None:
        vars(made).update(logs.about("Service", subject))
    return made


def written(limiter: logs.LineLimiter, made: logging.LogRecord) -> str:
    """Return the line that is written for a record, empty if it is suppressed."""
    return logs.OneLineFormatter().format(made) if limiter.filter(made) else ""


def test_one_object_that_changes_ten_times_a_second_for_ten_minutes() -> None:
    clock = Clock()
    limiter = logs.LineLimiter(clock)
    lines = []
    for _ in range(6000):
        clock.now += 0.1
        lines.append(written(limiter, record("shop/web")))
    shown = [line for line in lines if line]
    assert len(shown) <= 5 + 10
    assert limiter.suppressed == 6000 - len(shown)
    assert shown[-1].endswith("similar lines suppressed)")
    # Another object is not affected.
    assert written(limiter, record("shop/other"))


def test_ten_thousand_invalid_objects_at_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    limiter = logs.LineLimiter(clock)
    lines = [written(limiter, record(f"shop/s{number}")) for number in range(10_000)]
    assert sum(map(bool, lines)) == 100
    for _ in range(3):
        limiter.report()
    assert [each.getMessage() for each in caplog.records] == [
        "suppressed 9900 similar lines; pyproxy status names all invalid objects"
    ]
    clock.now += 1.0
    assert written(limiter, record("shop/next")).endswith("(9,900 similar lines suppressed)")
    assert not written(limiter, record("shop/next"))


def test_lines_that_name_no_object_are_limited_by_their_kind() -> None:
    limiter = logs.LineLimiter(Clock())
    assert sum(bool(written(limiter, record(None))) for _ in range(1000)) == 100
    assert all(written(limiter, record(None, level=logging.DEBUG)) for _ in range(1000))


def test_ever_new_names_take_bounded_memory() -> None:
    limiter = logs.LineLimiter(Clock())
    for number in range(6000):
        limiter.filter(record(f"shop/{number}{'x' * 1000}"))
    assert len(limiter._objects) == 4096


def test_a_traceback_cannot_forge_a_line() -> None:
    forged = "2026-01-01T00:00:00.000Z INFO    all is well"
    try:
        raise ValueError(f"x\n{forged}\x1b[2J")
    except ValueError as error:
        made = logging.LogRecord("pyproxy", 40, "", 0, "failed", (), (ValueError, error, None))
    first, *others = logs.OneLineFormatter().format(made).split("\n")
    assert first.endswith("ERROR   failed")
    assert others
    assert all(line.startswith("    ") and line.isprintable() for line in others)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Network() as network:
        yield Stage(network, tmp_path)


@pytest.mark.kernel
def test_an_agent_whose_service_flaps_between_invalid_states(stage: Stage) -> None:
    forged = "\n2026-01-01T00:00:00.000Z INFO    serving node x\x1b[2J"
    edits = 60
    with stage.server() as server, stage.agent(server.url) as agent:
        agent.does(lambda: stage.health() == 200, "the first commit")
        for number in range(edits):
            bad = [f"{number % 2}{forged}"] * 300
            server.load([service("web", "10.96.7.1", externalIPs=bad)])
        server.load([service("last", "10.96.7.2", externalIPs=["the last one"])])
        agent.does(lambda: "'the last one' is not an IP address" in agent.said(), "the last line")
        suppressed = stage.metrics()["pyproxy_log_lines_suppressed_total"]
    log = agent.said()
    named = [line for line in log.splitlines() if "Service shop/web" in line]
    assert 1 <= len(named) <= 6
    assert len(named) + suppressed == edits
    assert not [line for line in log.splitlines() if line.startswith("2026-01-01")]
    assert all(line.isprintable() for line in log.split("\n"))
