"""A large object that changes all the time: a few versions are decoded, the last one among them."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pyproxy.model.events import Upsert
from pyproxy.model.objects import Service
from tests.source.scripted import (
    Exchange,
    Pace,
    Recorder,
    a_service,
    end_of_list,
    following,
    gone,
    services,
    serving,
    stream,
)
from tests.waiting import until

VERSIONS = 30


class Slow(Pace):
    """A clock that stands still until a test moves it."""

    time = 1_000.0

    def now(self) -> float:
        return self.time


def edit(version: int) -> tuple[str, Any]:
    obj = a_service("odd", str(version + 10), 1 + version)
    obj["spec"]["externalIPs"] = [f"2001:db8::{number:x}" for number in range(30_000)]
    return "MODIFIED", obj


def ports_of(recorder: Recorder) -> list[int]:
    """Return the port of each version of the large Service that was decoded."""
    found = [event.obj for event in recorder.events if isinstance(event, Upsert)]
    large = [each for each in found if isinstance(each, Service) and each.name.name == "odd"]
    return [each.ports[0].port for each in large]


def test_thirty_versions_of_half_a_megabyte_in_a_moment_are_decoded_three_times() -> None:
    def script(exchange: Exchange) -> None:
        edits = [edit(version) for version in range(VERSIONS)]
        neighbour = ("ADDED", a_service("web", str(VERSIONS + 10)))
        stream(exchange, end_of_list("5"), *edits, neighbour)

    clock = Slow()
    with (
        serving(services(script)) as server,
        following(server.url, clock=clock) as (recorder, _),
    ):
        recorder.until(lambda seen: "+web" in seen)
        assert ports_of(recorder) == [1, 2]
        clock.time += 60.0
        until(lambda: len(ports_of(recorder)) > 2)
        assert ports_of(recorder) == [1, 2, VERSIONS]
        # No new list, and the next watch starts behind all of them.
        assert len(server.requests_for("/api/v1/services")) == 1


@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_version_that_waits_does_not_outlive_a_new_list(is_deleted: bool) -> None:
    newest = a_service("odd", "190", 90)
    lists: list[list[tuple[str, Any]]] = [
        [end_of_list("5"), *map(edit, range(3)), ("ADDED", a_service("first", "20"))],
        [*([] if is_deleted else [("ADDED", newest)]), end_of_list("200")],
    ]
    is_expired = threading.Event()

    def script(exchange: Exchange) -> None:
        if exchange.query.get("resourceVersion"):
            is_expired.wait(60)
            gone(exchange)
        else:
            stream(exchange, *lists.pop(0), hold=not lists)

    clock = Slow()
    with (
        serving(services(script)) as server,
        following(server.url, clock=clock) as (recorder, _),
    ):
        recorder.until(lambda seen: "+first" in seen)
        assert ports_of(recorder) == [1, 2]
        is_expired.set()
        recorder.until(lambda seen: sum(each.startswith("=") for each in seen) == 2)
        clock.time += 60.0
        until(lambda: "source-large-Service" not in {each.name for each in threading.enumerate()})
        assert ports_of(recorder) == [1, 2, *([] if is_deleted else [90])]
