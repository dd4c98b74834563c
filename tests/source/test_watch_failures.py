"""Watches from one version that keep failing: when a new list follows, and what is logged."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest

from pyproxy.model.objects import Kind
from pyproxy.source.kubernetes import resources
from pyproxy.source.outages import OutageLog
from pyproxy.source.reflector import Reflector, ReflectorContext
from pyproxy.source.retry import FIRST_DELAY, LONGEST_DELAY, SHORTEST_SPREAD
from pyproxy.source.watch_failures import MOST_ERROR_EVENTS, MOST_FAILURES
from tests.waiting import until

from .scripted import (
    SERVICES,
    Exchange,
    Pace,
    Recorder,
    Request,
    Script,
    Server,
    a_service,
    client_of,
    end_of_list,
    following,
    listed,
    services,
    serving,
    stream,
)

OVER = "watching Service objects again"


def error(code: int) -> tuple[str, object]:
    status = {"kind": "Status", "code": code, "reason": "InternalError", "message": "etcd failed"}
    return "ERROR", status


class Lists:
    """Responds to lists, each with one more Service and a version that is five higher.

    The first version is 100. Streaming lists end with the list. Without `streams`, lists have
    pages.
    """

    def __init__(self, watch: Script, *, streams: bool) -> None:
        self.count = 0
        self._watch = watch
        self._streams = streams

    def __call__(self, exchange: Exchange) -> None:
        streaming = bool(exchange.query.get("sendInitialEvents"))
        if streaming and not self._streams:
            exchange.fail(422)
        elif exchange.query.get("watch") and not streaming:
            self._watch(exchange)
        else:
            self.count += 1
            version = str(95 + 5 * self.count)
            found = [a_service(f"list-{number}") for number in range(1, self.count + 1)]
            if streaming:
                events = [("ADDED", each) for each in found]
                stream(exchange, *events, end_of_list(version), hold=False)
            else:
                exchange.respond(listed(SERVICES, found, version))


def watches(server: Server, version: str) -> int:
    """Return the number of watches from a version."""
    return len(server.requests_for(SERVICES, resourceVersion=version, watch="true"))


@contextmanager
def running(script: Script, caplog: pytest.LogCaptureFixture) -> Iterator[tuple[Server, Recorder]]:
    caplog.set_level(logging.INFO, "pyproxy.source.outages")
    with serving(services(script)) as server, following(server.url) as (recorder, _):
        yield server, recorder


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.message for each in caplog.records if each.name == "pyproxy.source.outages"]


def fails_until_listed_again(fail: Script) -> Script:
    """Return a script for watches: those from the first list fail, others have an event."""

    def watch(exchange: Exchange) -> None:
        if exchange.query["resourceVersion"] == "100":
            fail(exchange)
        else:
            stream(exchange, ("ADDED", a_service("watched", "106")))

    return watch


def error_event(code: int) -> Script:
    return lambda exchange: stream(exchange, error(code), hold=False)


def cut(exchange: Exchange) -> None:
    exchange.begin()
    exchange.chunk(b'{"type": "ADDED", "obj')
    exchange.close_connection = True


FAILURES: dict[str, tuple[Script, int]] = {
    "ERROR events with 500": (error_event(500), MOST_ERROR_EVENTS),
    "ERROR events with 503": (error_event(503), MOST_ERROR_EVENTS),
    "ERROR events with 403": (error_event(403), MOST_ERROR_EVENTS),
    "ERROR events without a code": (error_event(0), MOST_ERROR_EVENTS),
    "500": (lambda exchange: exchange.fail(500), MOST_FAILURES),
    "503": (lambda exchange: exchange.fail(503), MOST_FAILURES),
    "lost connections": (cut, MOST_FAILURES),
}


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(("fail", "most"), FAILURES.values(), ids=FAILURES)
def test_watches_that_keep_failing_cause_a_new_list(
    fail: Script, most: int, streams: bool, caplog: pytest.LogCaptureFixture
) -> None:
    script = Lists(fails_until_listed_again(fail), streams=streams)
    with running(script, caplog) as (server, recorder):
        seen = recorder.until(lambda seen: "+watched" in seen)
        until(lambda: OVER in lines(caplog))
        assert watches(server, "100") == most
        assert script.count == 2
        assert watches(server, "105") == 1
    assert [each for each in seen if each.startswith("=")] == ["=list-1", "=list-1,list-2"]
    warning, over = lines(caplog)
    assert warning.startswith("cannot watch Service objects: ")
    assert over == OVER


@pytest.mark.parametrize("code", [400, 404, 422, 504])
def test_an_error_event_about_the_version_causes_a_new_list_at_once(
    code: int, caplog: pytest.LogCaptureFixture
) -> None:
    script = Lists(fails_until_listed_again(error_event(code)), streams=True)
    with running(script, caplog) as (server, recorder):
        recorder.until(lambda seen: "+watched" in seen)
        until(lambda: OVER in lines(caplog))
        assert (watches(server, "100"), script.count) == (1, 2)
    assert len(lines(caplog)) == 2


@pytest.mark.parametrize(
    "fail",
    [error_event(429), lambda exchange: exchange.fail(429)],
    ids=["ERROR events with 429", "429"],
)
def test_too_many_requests_cause_no_list(fail: Script, caplog: pytest.LogCaptureFixture) -> None:
    def watch(exchange: Exchange) -> None:
        if watches(exchange.server, "100") < 5 * MOST_FAILURES:
            fail(exchange)
        else:
            stream(exchange, ("ADDED", a_service("watched", "106")))

    script = Lists(watch, streams=True)
    with running(script, caplog) as (_, recorder):
        recorder.until(lambda seen: "+watched" in seen)
        until(lambda: OVER in lines(caplog))
        assert script.count == 1
    assert len(lines(caplog)) == 2


def test_progress_between_error_events_needs_no_list(caplog: pytest.LogCaptureFixture) -> None:
    def watch(exchange: Exchange) -> None:
        version = int(exchange.query["resourceVersion"]) + 1
        change = ("MODIFIED", a_service(f"to-{version}", str(version)))
        stream(exchange, change, error(500), hold=False)

    script = Lists(watch, streams=True)
    with running(script, caplog) as (_, recorder):
        recorder.until(lambda seen: "+to-130" in seen)
        assert script.count == 1


def test_an_event_of_the_same_version_is_no_progress(caplog: pytest.LogCaptureFixture) -> None:
    again = ("MODIFIED", a_service("list-1", "100"))
    fail = fails_until_listed_again(
        lambda exchange: stream(exchange, again, error(500), hold=False)
    )
    script = Lists(fail, streams=True)
    with running(script, caplog) as (server, recorder):
        recorder.until(lambda seen: "+watched" in seen)
        until(lambda: OVER in lines(caplog))
        assert (watches(server, "100"), script.count) == (MOST_ERROR_EVENTS, 2)
    assert len(lines(caplog)) == 2


EVER: dict[str, tuple[Script, int]] = FAILURES | {
    "invalid events": (lambda exchange: stream(exchange, ("NEWS", {}), hold=False), 1)
}


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(("fail", "most"), EVER.values(), ids=EVER)
def test_a_failure_that_lists_do_not_end_is_logged_once(
    fail: Script, most: int, streams: bool, caplog: pytest.LogCaptureFixture
) -> None:
    script = Lists(fail, streams=streams)
    with running(script, caplog) as (server, _):
        until(lambda: script.count >= 4)
        for number in range(1, 4):
            assert watches(server, str(95 + 5 * number)) == most
    assert len(lines(caplog)) == 1


def test_an_outage_causes_no_list_of_all_nodes(caplog: pytest.LogCaptureFixture) -> None:
    """Lists are tried in an outage, but at its end watches go on from the last version."""
    cycles, cycle = 3, MOST_FAILURES + 1

    def script(exchange: Exchange) -> None:
        number = len(exchange.server.requests_for(SERVICES))
        if number == 1:
            stream(exchange, end_of_list("100"), hold=False)
        elif number <= 1 + cycles * cycle + 4:
            exchange.fail(503)
        else:
            stream(exchange, ("ADDED", a_service("watched", "106")))

    with running(script, caplog) as (server, recorder):
        assert recorder.until(lambda seen: "+watched" in seen) == ["=", "+watched"]
        until(lambda: OVER in lines(caplog))
        asked = ["sendInitialEvents" in each.query for each in server.requests_for(SERVICES)]
    assert asked == [True] + ([False] * MOST_FAILURES + [True]) * cycles + [False] * 5
    warning, _ = lines(caplog)
    assert "503" in warning


class Latest(Random):
    """Draws the end of each range."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


class Stepping(Pace):
    """A clock on which only waits take time. The last one sets `stopping`."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def now(self) -> float:
        return sum(self.waits)

    def wait(self, stopping: threading.Event, seconds: float) -> None:
        self.waits.append(seconds)
        if len(self.waits) == self._most:
            stopping.set()


def reflect(script: Script, most: int, moves_at: int = 0) -> tuple[list[float], list[Request]]:
    """Follow Services up to a number of waits; return their seconds, and the requests.

    The client moves to another server at the request `moves_at`, which fails.
    """

    def respond(exchange: Exchange) -> None:
        if len(exchange.server.seen) == moves_at:
            client.moves += 1
            exchange.fail(500)
        else:
            script(exchange)

    clock, stopping = Stepping(most), threading.Event()
    resource = next(each for each in resources("node-a") if each.kind is Kind.SERVICE)
    with serving(respond) as server:
        client = client_of(server.url)
        outages = OutageLog()
        context = ReflectorContext(client, Recorder(), clock, Latest(), 80.0, stopping, outages)
        Reflector(resource, context).run()
        return clock.waits, server.seen


def test_lists_after_error_events_are_paced() -> None:
    """Each is spread over a second at least, and if they repeat, over up to 30 s."""
    waits, requests = reflect(Lists(error_event(500), streams=False), 20)
    before_pages, *others = waits
    assert before_pages == FIRST_DELAY
    # In turn before the next watch and before a list.
    assert others[:6] == [0.4, SHORTEST_SPREAD, 1.6, 3.2, 6.4, 12.8]
    assert set(others[7:]) == {LONGEST_DELAY}
    asked = ["watch" in each.query for each in requests[1:]]
    assert asked == ([False, True, True] * 10)[: len(asked)]


def test_a_version_of_another_server_is_not_watched_after_a_failed_list() -> None:
    last = 1 + MOST_FAILURES

    def script(exchange: Exchange) -> None:
        if 1 < len(exchange.server.seen) <= last + 1:
            exchange.fail(500)
        else:
            lists(exchange)

    lists = Lists(lambda each: stream(each, hold=False), streams=True)
    _, requests = reflect(script, last + 3, moves_at=last)
    asked = ["sendInitialEvents" in each.query for each in requests]
    # The list that fails, a watch from the old version, and the list of the other server.
    assert asked[:last] == [True] + [False] * MOST_FAILURES
    assert asked[last : last + 3] == [True, False, True]
