"""An API server that lies in every response: requests and log lines are bounded by time."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable

import pytest

from pyproxy.source.reflector import LONGEST_VERSION
from tests.source.scripted import (
    SERVICES,
    Exchange,
    Pace,
    Script,
    a_service,
    bookmark,
    end_of_list,
    following,
    gone,
    listed,
    services,
    serving,
    stream,
)
from tests.waiting import until

LISTING = 300.0
"""Seconds of a lie after which each request needs a new list."""

WATCHING = 20.0
"""Seconds of a lie after which a watch goes on."""


class Fast(Pace):
    """A clock on which waits take no real time, but time passes by them."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0.0

    def now(self) -> float:
        return time.monotonic() + self.passed

    def wait(self, stopping: threading.Event, seconds: float) -> None:
        # Only Services are served by the lying scripts, so the other kinds wait for real.
        if threading.current_thread().name != "source-Service":
            stopping.wait(seconds)
            return
        self.passed += seconds
        stopping.wait(0.0005)


def _listed_then(*events: tuple[str, object]) -> Script:
    """Return a script that completes each streaming list, sends events and ends the response."""

    def script(exchange: Exchange) -> None:
        if exchange.query.get("sendInitialEvents"):
            stream(exchange, ("ADDED", a_service("a")), end_of_list("100"), *events, hold=False)
        else:
            stream(exchange, *events, hold=False)

    return script


def _paged_then(watch: Script) -> Script:
    def script(exchange: Exchange) -> None:
        if exchange.query.get("sendInitialEvents"):
            exchange.fail(422)
        elif exchange.query.get("watch"):
            watch(exchange)
        else:
            exchange.respond(listed(SERVICES, [a_service("a")], "100"))

    return script


def _growing() -> Script:
    """Return a script whose watches have one event each, with ever new versions, and a 410."""
    versions = itertools.count(101)

    def watch(exchange: Exchange) -> None:
        error = {"kind": "Status", "code": 410}
        event = ("MODIFIED", a_service("a", str(next(versions))))
        stream(exchange, event, ("ERROR", error), hold=False)

    return _paged_then(watch)


def _broken(exchange: Exchange) -> None:
    stream(exchange, BROKEN, hold=False)


EXPIRED = ("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})
BROKEN = ("ERROR", {"kind": "Status", "code": 500, "message": "broken"})
BUSY = ("ERROR", {"kind": "Status", "code": 429, "message": "busy"})
BACK = ("MODIFIED", a_service("a", "7"))
LONG = ("MODIFIED", a_service("a", "9" * (LONGEST_VERSION + 1)))
ODD = ("NEWS", a_service("a", "101"))

LIES: dict[str, tuple[Script, bool]] = {
    "410 for each watch": (_paged_then(gone), True),
    "410 after each streaming list": (_listed_then(EXPIRED), True),
    "an event, then 410": (_growing(), True),
    "versions go back": (_listed_then(BACK), True),
    "versions without an end": (_listed_then(LONG), True),
    "unknown types": (_listed_then(ODD), True),
    "410 to each request": (lambda exchange: exchange.fail(410), True),
    "error events": (_listed_then(BROKEN), True),
    "error events after pages": (_paged_then(_broken), True),
    "an event, then an error": (_listed_then(bookmark("101"), BROKEN), True),
    "500 to each watch": (_paged_then(lambda exchange: exchange.fail(500)), True),
    "error events with 429": (_listed_then(BUSY), False),
    "watches end at once": (_listed_then(), False),
    "watches end after an event": (_listed_then(("MODIFIED", a_service("a", "101"))), False),
    "watches end after a bookmark": (_listed_then(bookmark("101")), False),
    "events without versions": (_listed_then(("MODIFIED", a_service("a", ""))), False),
    "401": (lambda exchange: exchange.fail(401), False),
    "redirects": (lambda exchange: exchange.fail(307, Location="http://127.0.0.1:1/"), False),
}


@pytest.mark.parametrize("lie", LIES)
def test_requests_are_bounded(lie: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    script, lists = LIES[lie]
    duration = LISTING if lists else WATCHING
    clock = Fast()
    with serving(services(script)) as server, following(server.url, clock=clock):
        until(lambda: clock.passed > duration, f"{duration} seconds of {lie}")
        # A line follows its request, and a request its time, so they are read in this order.
        lines = list(caplog.records)
        requests = server.requests_for(SERVICES)
        passed = clock.passed
    if lists:
        # With a ceiling of 30 s and full jitter, about four a minute after the first ten.
        made = [e for e in requests if e.query.get("resourceVersion", "0") == "0"]
        assert len(made) < 20 + 8 * passed / 60
    # One request a second at most, after the first retries.
    assert len(requests) < 30 + passed
    # A lie may be logged each time that it follows a success, so the pace bounds the lines too.
    assert len(lines) <= 2 * len(requests) + 10
    assert all(len(record.getMessage()) < 400 for record in lines)


def test_a_flood_in_one_watch_is_no_flood_of_requests_or_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    count = 5000

    def script(exchange: Exchange) -> None:
        flood = [bookmark("101")] * count + [("MODIFIED", a_service("a", "101"))] * count
        stream(exchange, ("ADDED", a_service("a")), end_of_list("100"), *flood)

    with serving(services(script)) as server, following(server.url) as (recorder, _):
        recorder.until(lambda seen: seen.count("+a") == count + 1)
        assert len(server.requests_for(SERVICES)) == 1
    assert caplog.records == []


def test_redirects_are_not_followed() -> None:
    """Credentials stay with the server that they are for."""
    seen: list[str] = []

    def other(exchange: Exchange) -> None:
        seen.append(exchange.path)
        exchange.respond({})

    with serving(other) as target:
        codes = itertools.cycle([301, 302, 303, 307, 308])
        redirect: Callable[[Exchange], None] = lambda exchange: exchange.fail(  # noqa: E731
            next(codes), Location=target.url + exchange.path
        )
        with serving(redirect) as server, following(server.url):
            until(lambda: len(server.seen) > 20)
    assert seen == []
