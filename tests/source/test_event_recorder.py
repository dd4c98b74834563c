"""Events in the lab's API server, and the limits of posting them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.client import ApiClient

from pyproxy.errors import Problem, ProblemReason
from pyproxy.metrics import Metrics
from pyproxy.rate_limits import Rate
from pyproxy.source.access import Access, ServerConfig
from pyproxy.source.client import Client
from pyproxy.source.credentials import StaticCredentials
from pyproxy.source.event_recorder import EventRecorder, Limits
from tests.waiting import until

from .scripted import Exchange, Script, serving

ADMIN, PROXY = "admin", "proxy"
AT_ONCE = Limits(spread=0.0, longest_spread=0.0)
WEB = Problem("Service", "shop/web", "spec.externalIPs[0]", "'x' is not an IP address; ignored")


class StandingClock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds

    def wait(self, stopping: threading.Event, seconds: float) -> None:
        stopping.wait(0.01)


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    settings = Settings(token=ADMIN, proxy_token=PROXY)
    with ApiServer.running(settings) as running:
        client = ApiClient(running.url, ADMIN)
        for namespace in ("shop", "many", "twice", "nodes"):
            client.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        yield running


def client_of(url: str) -> Client:
    def load() -> Access:
        return Access(ServerConfig(host=url), StaticCredentials(f"Bearer {PROXY}"))

    return Client(load)


@contextmanager
def recording(
    url: str, limits: Limits = AT_ONCE, node: str = "node-a", **more: Any
) -> Iterator[tuple[EventRecorder, Metrics]]:
    metrics = Metrics()
    recorder = EventRecorder(client_of(url), node, metrics.api, limits, **more)
    recorder.start()
    try:
        yield recorder, metrics
    finally:
        recorder.stop()


def outcomes(metrics: Metrics) -> dict[str, int]:
    return {
        sample.labels["outcome"]: int(sample.value)
        for family in metrics.collect()
        for sample in family.samples
        if sample.name == "pyproxy_events_total"
    }


def events(server: ApiServer, namespace: str) -> list[Any]:
    path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
    return list(ApiClient(server.url, ADMIN).get(path)["items"])


def test_a_problem_becomes_a_warning_about_its_service(server: ApiServer) -> None:
    with recording(server.url) as (recorder, metrics):
        recorder.record_problem(WEB, "1-2-3")
        until(lambda: outcomes(metrics) == {"posted": 1})
    (event,) = events(server, "shop")
    assert event["type"] == "Warning"
    assert event["reason"] == "InvalidObject"
    assert event["action"] == "ProgramService"
    assert event["note"] == "spec.externalIPs[0]: 'x' is not an IP address; ignored"
    assert event["reportingController"] == "pyproxy"
    assert event["reportingInstance"] == "node-a"
    assert event["regarding"] == {
        "kind": "Service",
        "apiVersion": "v1",
        "name": "web",
        "namespace": "shop",
        "uid": "1-2-3",
    }


@pytest.mark.parametrize(
    ("problem", "namespace", "regarding"),
    [
        (
            Problem("EndpointSlice", "nodes/web-1", "ports", "x"),
            "nodes",
            {"apiVersion": "discovery.k8s.io/v1", "namespace": "nodes", "name": "web-1"},
        ),
        (
            Problem("Node", "node-b", "spec.podCIDRs[0]", "x"),
            "default",
            {"apiVersion": "v1", "name": "node-b"},
        ),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_events_refer_to_other_kinds_by_their_api_version(
    server: ApiServer, problem: Problem, namespace: str, regarding: dict[str, str]
) -> None:
    with recording(server.url) as (recorder, metrics):
        recorder.record_problem(problem)
        until(lambda: outcomes(metrics) == {"posted": 1})
    (event,) = [e for e in events(server, namespace) if e["regarding"]["kind"] == problem.kind]
    assert event["regarding"] == {"kind": problem.kind, **regarding}


def test_the_start_is_an_event_of_the_node(server: ApiServer) -> None:
    with recording(server.url, node="node-s") as (recorder, metrics):
        recorder.record_start()
        recorder.record_start()
        until(lambda: outcomes(metrics) == {"posted": 2})
    found = [e for e in events(server, "default") if e["reason"] == "Starting"]
    assert [(e["type"], e["action"], e["regarding"]["name"]) for e in found] == [
        ("Normal", "StartPyproxy", "node-s")
    ] * 2


def test_nodes_with_the_same_problem_make_one_event(server: ApiServer) -> None:
    problem = Problem("Service", "twice/web", "spec.ports", "not a list")
    local = Problem("Service", "twice/web", "spec", "EINVAL", ProblemReason.REJECTED_BY_KERNEL)

    def outcomes_of(node: str) -> dict[str, int]:
        with recording(server.url, node=node) as (recorder, metrics):
            recorder.record_problem(problem)
            recorder.record_problem(local)
            until(lambda: sum(outcomes(metrics).values()) == 2)
            return outcomes(metrics)

    assert outcomes_of("node-0") == {"posted": 2}
    assert outcomes_of("node-1") == {"known": 1, "posted": 1}
    reasons = sorted(event["reason"] for event in events(server, "twice"))
    assert reasons == ["InvalidObject", "RejectedByKernel", "RejectedByKernel"]


def test_long_texts_and_names_are_cut_to_what_the_server_takes(server: ApiServer) -> None:
    problem = Problem("EndpointSlice", f"many/{'a' * 253}", "endpoints", "é" * 2000)
    with recording(server.url, node="n" * 253) as (recorder, metrics):
        recorder.record_problem(problem)
        until(lambda: outcomes(metrics) == {"posted": 1})
    (event,) = events(server, "many")
    assert len(event["note"].encode()) <= 1024
    assert len(event["metadata"]["name"]) <= 253


def test_a_problem_of_a_file_makes_no_event(server: ApiServer) -> None:
    with recording(server.url) as (recorder, metrics):
        recorder.record_problem(Problem("File", "/etc/x.yaml", "content", "not YAML"))
    assert outcomes(metrics) == {}


def about(number: int) -> Problem:
    return Problem("Service", f"shop/s{number}", "spec.ports", "not a list")


def test_events_are_limited_per_object_and_overall() -> None:
    clock = StandingClock()
    limits = Limits(spread=0.0, rate=Rate(3, 5.0), per_object=Rate(2, 100.0))
    with (
        serving(lambda exchange: exchange.respond({}, 201)) as server,
        recording(server.url, limits, clock=clock) as (recorder, metrics),
    ):
        for number in range(4):
            recorder.record_problem(Problem("Service", "shop/web", "spec", str(number)))
        # The thread may have posted one of the other two by now.
        assert outcomes(metrics)["dropped"] == 2
        for number in range(4):
            recorder.record_problem(about(number))
        until(lambda: len(server.seen) == 3)
        clock.seconds += 4.0
        assert not announced(server.seen, more_than=3)
        clock.seconds += 1.0
        until(lambda: len(server.seen) == 4)
        clock.seconds += 100.0
        until(lambda: len(server.seen) == 6)
        recorder.record_problem(Problem("Service", "shop/web", "spec", "again"))
        until(lambda: len(server.seen) == 7)


def announced(seen: list[Any], *, more_than: int) -> bool:
    deadline = time.monotonic() + 0.1
    while time.monotonic() < deadline:
        if len(seen) > more_than:
            return True
        time.sleep(0.01)
    return False


def test_each_event_has_a_random_delay() -> None:
    clock = StandingClock()
    with (
        serving(lambda exchange: exchange.respond({}, 201)) as server,
        recording(server.url, Limits(spread=1e6), clock=clock) as (recorder, _),
    ):
        recorder.record_problem(about(1))
        assert not announced(server.seen, more_than=0)
        clock.seconds += 1e6
        until(lambda: len(server.seen) == 1)


def test_a_hanging_server_blocks_no_caller_and_a_full_queue_drops_events() -> None:
    with (
        serving(Exchange.hold) as server,
        recording(server.url, Limits(spread=0.0, queue=3)) as (recorder, metrics),
    ):
        recorder.record_problem(about(0))
        until(lambda: len(server.seen) == 1)
        # The server responds to none before they have all been recorded.
        for number in range(1, 100):
            recorder.record_problem(about(number))
        assert outcomes(metrics) == {"dropped": 96}
        server.closing.set()
        # The one that was under way is posted later only if there is room.
        until(lambda: outcomes(metrics) == {"dropped": 97})


def test_a_rejected_event_is_dropped_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "pyproxy")
    with (
        serving(lambda exchange: exchange.fail(403, "no right")) as server,
        recording(server.url) as (recorder, metrics),
    ):
        for number in range(3):
            recorder.record_problem(about(number))
        until(lambda: outcomes(metrics) == {"refused": 3})
    logged = [record for record in caplog.records if "Event" in record.message]
    assert [record.levelno for record in logged] == [logging.DEBUG]
    assert "no right" in logged[0].message


def created(exchange: Exchange) -> None:
    exchange.respond({}, 201)


def hang_up(exchange: Exchange) -> None:
    exchange.close_connection = True


def failing(code: int, **headers: str) -> Script:
    return lambda exchange: exchange.fail(code, "later", **headers)


def failures(recorder: EventRecorder) -> list[int]:
    """Return how often each waiting Event has failed, in the order of the posts."""
    return [queued.failures for queued in sorted(recorder._queue)]


@pytest.mark.parametrize(
    "fault",
    [failing(429), failing(500), failing(503), failing(504), hang_up],
    ids=["429", "500", "503", "504", "hang-up"],
)
def test_an_event_is_posted_after_a_fault_of_the_server(fault: Script) -> None:
    clock = StandingClock()
    with serving(fault) as server, recording(server.url, clock=clock) as (recorder, metrics):
        recorder.record_problem(WEB)
        for count in range(1, 4):
            until(lambda count=count: failures(recorder) == [count])  # type: ignore[misc]
            # The pause is over.
            clock.seconds += AT_ONCE.longest_pause
        until(lambda: failures(recorder) == [4])
        server.script = created
        clock.seconds += AT_ONCE.longest_pause
        until(lambda: outcomes(metrics) == {"posted": 1})
        # The Event keeps its name and its time.
        assert len({request.body for request in server.seen}) == 1


def test_events_are_posted_when_a_server_is_back() -> None:
    with serving(created) as server:
        port = server.server_port
    clock = StandingClock()
    with recording(f"http://127.0.0.1:{port}", clock=clock) as (recorder, metrics):
        recorder.record_start()
        until(lambda: failures(recorder) == [1])
        recorder.record_problem(WEB)
        with serving(created, port) as server:
            assert not announced(server.seen, more_than=0)
            clock.seconds += AT_ONCE.first_pause
            until(lambda: outcomes(metrics) == {"posted": 2})


def test_one_event_fails_while_others_wait_behind_the_pause() -> None:
    """A server that is away gets one request for each pause, whatever the number of Events."""
    clock = StandingClock()
    with serving(failing(503)) as server, recording(server.url, clock=clock) as (recorder, _):
        for number in range(5):
            recorder.record_problem(about(number))
        for count in range(1, 8):
            until(lambda count=count: sum(failures(recorder)) == count)  # type: ignore[misc]
            assert not announced(server.seen, more_than=count)
            clock.seconds += AT_ONCE.longest_pause
        # In turn, so that no Event waits for one that always fails.
        until(lambda: sorted(failures(recorder)) == [1, 1, 2, 2, 2])


def test_an_event_is_given_up_after_twelve_attempts() -> None:
    clock = StandingClock()
    with (
        serving(failing(500)) as server,
        recording(server.url, clock=clock) as (recorder, metrics),
    ):
        recorder.record_problem(WEB)
        for count in range(1, 12):
            until(lambda count=count: failures(recorder) == [count])  # type: ignore[misc]
            clock.seconds += AT_ONCE.longest_pause
        until(lambda: outcomes(metrics) == {"refused": 1})
        assert (len(server.seen), failures(recorder)) == (12, [])


@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 422])
def test_an_event_that_the_server_rejects_is_posted_once(code: int) -> None:
    clock = StandingClock()
    with (
        serving(failing(code)) as server,
        recording(server.url, clock=clock) as (recorder, metrics),
    ):
        recorder.record_problem(WEB)
        until(lambda: outcomes(metrics) == {"refused": 1})
        assert failures(recorder) == []
        assert clock.seconds >= recorder._paused_until


def test_a_pause_includes_retry_after() -> None:
    clock = StandingClock()
    with (
        serving(failing(429, Retry_After="100")) as server,
        recording(server.url, clock=clock) as (recorder, _),
    ):
        recorder.record_problem(WEB)
        until(lambda: failures(recorder) == [1])
        assert 100.0 <= recorder._paused_until - clock.seconds <= 110.0


def test_pauses_grow_and_are_random_and_end_with_a_response() -> None:
    clock = StandingClock()
    scripts = iter([failing(503)] * 5 + [created] + [failing(503)] * 2)

    def answer(exchange: Exchange) -> None:
        next(scripts)(exchange)

    with (
        serving(answer) as server,
        recording(server.url, clock=clock) as (recorder, metrics),
    ):
        pauses = []
        recorder.record_problem(about(1))
        for count in range(1, 6):
            until(lambda count=count: failures(recorder) == [count])  # type: ignore[misc]
            pauses.append(recorder._paused_until - clock.seconds)
            clock.seconds += AT_ONCE.longest_pause
        until(lambda: outcomes(metrics) == {"posted": 1})
        recorder.record_problem(about(2))
        until(lambda: failures(recorder) == [1])
        pauses.append(recorder._paused_until - clock.seconds)
    ceilings = [10.0, 20.0, 40.0, 80.0, 120.0, 10.0]
    assert all(0 <= pause <= most for pause, most in zip(pauses, ceilings, strict=True))
    assert len(set(pauses)) == len(pauses)
