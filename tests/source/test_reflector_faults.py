"""List and watch against a faulty HTTP server: broken, silent, with errors, unreachable."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pyproxy.source import client, kubernetes
from pyproxy.source.kubernetes import KubernetesSource
from tests.ports import reserved_port
from tests.waiting import PATIENCE, until

from .scripted import (
    SERVICES,
    Exchange,
    Pace,
    Recorder,
    Script,
    a_service,
    client_of,
    end_of_list,
    following,
    listed,
    quiet,
    services,
    serving,
    stream,
)


def test_a_watch_cut_within_a_line_continues_after_the_last_whole_one() -> None:
    line = json.dumps({"type": "ADDED", "object": a_service("b", "7")}).encode() + b"\n"

    def script(exchange: Exchange) -> None:
        if exchange.query.get("sendInitialEvents"):
            exchange.begin()
            exchange.events([end_of_list("5"), ("ADDED", a_service("a", "6"))])
            exchange.chunk(line[:40])
            exchange.close_connection = True
        elif not server.requests_for(SERVICES, resourceVersion="6")[1:]:
            exchange.begin()
            exchange.chunk(line[:40])
            exchange.end()
        else:
            exchange.begin()
            for i in range(0, len(line), 7):
                exchange.chunk(line[i : i + 7])
            exchange.hold()

    with serving(services(script)) as server, following(server.url) as (recorder, _):
        seen = recorder.until(lambda seen: "+b" in seen)
    assert seen == ["=", "+a", "+b"]


def test_a_malformed_event_starts_a_new_list(caplog: pytest.LogCaptureFixture) -> None:
    def script(exchange: Exchange) -> None:
        exchange.begin()
        if exchange.query.get("resourceVersion"):
            exchange.chunk(b'{"type": "ADDED"}\n')
            exchange.hold()
        else:
            exchange.events([("ADDED", a_service("a")), end_of_list("5")])
            exchange.end()

    with serving(services(script)) as server, following(server.url) as (recorder, _):
        recorder.until(lambda seen: seen.count("=a") > 2)
    assert "unexpected response" in caplog.text


def test_a_silent_watch_continues_from_its_last_version() -> None:
    def script(exchange: Exchange) -> None:
        if exchange.query.get("sendInitialEvents"):
            stream(exchange, end_of_list("5"), hold=False)
        elif len(server.requests_for(SERVICES, resourceVersion="5")) < 3:
            exchange.begin()
            exchange.hold()
        else:
            stream(exchange, ("ADDED", a_service("a", "6")))

    with (
        serving(services(script)) as server,
        following(server.url, silence=0.1) as (recorder, _),
    ):
        # A second +a may follow the first after another silence.
        assert recorder.until(lambda seen: "+a" in seen)[:2] == ["=", "+a"]


def test_a_server_that_never_responds() -> None:
    with (
        serving(services(lambda exchange: exchange.hold())) as server,
        following(server.url, silence=0.1) as (recorder, _),
    ):
        until(lambda: len(server.requests_for(SERVICES)) > 2)
        server.script = quiet
        recorder.until(lambda seen: seen[:1] == ["="])


@pytest.mark.parametrize(("status", "retry_after"), [(500, ""), (429, "7"), (503, "soon")])
def test_errors_are_retried_after_a_delay(
    status: int, retry_after: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Pace()

    def script(exchange: Exchange) -> None:
        if len(server.requests_for(SERVICES)) <= 4:
            exchange.fail(status, "overloaded", Retry_After=retry_after)
        else:
            stream(exchange, end_of_list("5"))

    with serving(services(script)) as server, following(server.url, clock=clock) as (recorder, _):
        recorder.until(lambda seen: seen == ["="])
    asked = 7.0 if retry_after == "7" else 0.0
    for wait, ceiling in zip(clock.waits[:4], [0.2, 0.4, 0.8, 1.6], strict=True):
        assert asked <= wait <= asked + ceiling
    logged = [r.message for r in caplog.records if r.levelno >= logging.INFO]
    assert len(logged) == 2, logged
    assert f"{status} overloaded" in logged[0]
    assert logged[1] == "watching Service objects again"


@pytest.mark.parametrize(
    "answer",
    [
        lambda exchange: exchange.respond(b"<html>Sign in</html>", content_type="text/html"),
        lambda exchange: exchange.respond(b"<html>Sign in</html>"),
        lambda exchange: exchange.respond({"kind": "Status", "metadata": {}}),
        lambda exchange: exchange.respond({}),
        lambda exchange: exchange.respond(b"[" * 100_000),
    ],
)
@pytest.mark.parametrize("streams", [True, False])
def test_malformed_responses_with_status_200(answer: Script, streams: bool) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.query.get("sendInitialEvents") and not streams:
            exchange.fail(422)
        elif len(server.requests_for(SERVICES)) < 5:
            answer(exchange)
        else:
            quiet(exchange)

    with serving(services(script)) as server, following(server.url) as (recorder, _):
        assert recorder.until(lambda seen: "=" in seen) == ["="]


def test_an_unreachable_server_is_logged_once_and_watched_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    clock = Pace()

    def logged() -> list[str]:
        return [re.sub(":.*", "", record.message) for record in caplog.records]

    def alive(exchange: Exchange) -> None:
        if exchange.query.get("resourceVersion"):
            stream(exchange, ("ADDED", a_service("b", "6")))
        else:
            stream(exchange, ("ADDED", a_service("a")), end_of_list("5"))

    away = "the API server is unreachable; the last known state stays programmed"
    back = "the API server is reachable again"
    with (
        reserved_port() as port,
        following(f"http://127.0.0.1:{port}", clock=clock) as (recorder, _),
    ):
        until(lambda: len(clock.waits) > 20)
        with serving(services(alive), port):
            recorder.until(lambda seen: seen == ["+a", "=a"])
            until(lambda: logged() == [away, back])
        until(lambda: len(logged()) == 3)
        with serving(services(alive), port):
            # The watch continues from its last version, without a new list.
            recorder.until(lambda seen: seen == ["+a", "=a", "+b"])
            until(lambda: logged() == [away, back, away, back])
    assert max(clock.waits) <= 30


def test_failover_to_the_next_address() -> None:
    clock = Pace()
    with reserved_port() as port, serving(quiet) as server:
        dead = f"http://127.0.0.1:{port}"
        with following(dead, server.url, clock=clock) as (recorder, _):
            recorder.until(lambda seen: seen == ["="])
    assert clock.waits == []


@pytest.mark.parametrize("streams", [True, False])
def test_an_invalid_object_among_valid_ones(streams: bool) -> None:
    bad = a_service("bad", "6", port="eighty")
    nameless: dict[str, Any] = {"metadata": None}
    items = [a_service("a"), bad, nameless, a_service("b")]

    def script(exchange: Exchange) -> None:
        if exchange.query.get("resourceVersion", "0") != "0":
            stream(exchange, ("MODIFIED", bad), ("DELETED", bad), ("MODIFIED", a_service("a", "7")))
        elif streams:
            events = [("ADDED", item) for item in items]
            stream(exchange, *events, end_of_list("5"), hold=False)
        elif exchange.query.get("watch"):
            exchange.fail(422)
        else:
            exchange.respond(listed(SERVICES, items, "5"))

    with serving(services(script)) as server, following(server.url) as (recorder, _):
        seen = recorder.until(lambda seen: seen[-1:] == ["+a"] and len(seen) > 4)
    listed_events = ["+a", "-bad", "!shop/bad", "!(no name)", "+b", "=a,b"]
    assert seen == [*listed_events, "-bad", "!shop/bad", "-bad", "+a"]


@pytest.mark.parametrize(
    "script",
    [quiet, lambda exchange: exchange.hold(), lambda exchange: exchange.fail(500)],
    ids=["quiet", "no answer", "rejections"],
)
def test_stop_interrupts_every_wait(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    # By default it gives up after a second, which may be too early on a loaded machine.
    monkeypatch.setattr(kubernetes, "STOP_TIMEOUT", PATIENCE)
    until(lambda: not source_threads(), "sources of other tests end")
    with serving(script) as server:
        source = KubernetesSource(client_of(server.url), "node-a", Recorder())
        source.start()
        until(lambda: len(server.seen) >= 3)
        source.stop()
        assert not source_threads()
        source.stop()


def test_stop_does_not_wait_for_a_connection_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_TIMEOUT", PATIENCE)
    # Linux ignores attempts while the queue of accepted connections is full.
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as full:
        place = full.getsockname()
        with closing(socket.create_connection(place)):
            source = KubernetesSource(client_of(f"http://127.0.0.1:{place[1]}"), "a", Recorder())
            source.start()
            until(lambda: connecting_to(place[1]) >= 3)
            source.stop()
            assert source_threads()
    # Without a listener the kernel resets them.
    until(lambda: not source_threads())


def connecting_to(port: int) -> int:
    """Count the sockets that wait for the second packet of a TCP handshake with a port."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    states = [line.split()[2:4] for line in lines]
    return sum(peer.endswith(f":{port:04X}") and state == "02" for peer, state in states)


def source_threads() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith("source-")]


def test_stop_before_start_is_harmless() -> None:
    KubernetesSource(client_of("http://127.0.0.1:1"), "node-a", Recorder()).stop()
