"""Events as an amplifier: what a tenant makes each node of a large cluster post."""

from __future__ import annotations

import heapq
from functools import partial

import msgspec
import pytest

from pyproxy.errors import Problem, ProblemReason
from pyproxy.metrics import Metrics
from pyproxy.rate_limits import Rate
from pyproxy.source.client import UnreachableError
from pyproxy.source.event_recorder import DEFAULT_LIMITS, EventRecorder, Limits
from tests.source.scripted import Exchange, serving
from tests.source.test_event_recorder import StandingClock, announced, outcomes, recording
from tests.waiting import until

HOUR = 3600.0
NOWHERE = "http://127.0.0.1:9"
"""Never connected to: these recorders are not started, or their Events are not due."""


def problem(name: str, message: str = "not a list") -> Problem:
    return Problem("Service", name, "spec.ports", message)


def accepted(recorder: EventRecorder) -> int:
    """Return the number of Events that wait."""
    return len(recorder._queue)


def names(recorder: EventRecorder) -> set[str]:
    return {queued.event.metadata.name for queued in recorder._queue}


def test_one_object_with_ever_new_problems() -> None:
    clock, limits = StandingClock(), msgspec.structs.replace(DEFAULT_LIMITS, spread=1e9)
    with recording(NOWHERE, limits, clock=clock) as (recorder, metrics):
        for number in range(3600):
            clock.seconds += 1.0
            recorder.record_problem(problem("shop/web", str(number)))
        assert accepted(recorder) <= 5 + HOUR / 300
        assert outcomes(metrics) == {"dropped": 3600 - accepted(recorder)}


def test_a_namespace_does_not_use_up_the_events_of_others() -> None:
    limits = msgspec.structs.replace(DEFAULT_LIMITS, spread=1e9)
    with recording(NOWHERE, limits, clock=StandingClock()) as (recorder, _):
        for number in range(10_000):
            recorder.record_problem(problem(f"evil/s{number}"))
        assert accepted(recorder) == DEFAULT_LIMITS.per_namespace.burst
        recorder.record_problem(problem("shop/web"))
        assert accepted(recorder) == DEFAULT_LIMITS.per_namespace.burst + 1


def test_many_namespaces_fill_the_queue_and_no_more() -> None:
    limits = msgspec.structs.replace(DEFAULT_LIMITS, spread=1e9)
    with recording(NOWHERE, limits, clock=StandingClock()) as (recorder, metrics):
        for number in range(5000):
            recorder.record_problem(problem(f"n{number}/web"))
        assert accepted(recorder) == DEFAULT_LIMITS.queue
        assert outcomes(metrics) == {"dropped": 5000 - DEFAULT_LIMITS.queue}


def test_posts_of_one_node_in_an_hour_are_few() -> None:
    clock = StandingClock()
    limits = msgspec.structs.replace(DEFAULT_LIMITS, spread=0.0, longest_spread=0.0)
    burst, period = limits.rate.burst, limits.rate.period
    with (
        serving(lambda exchange: exchange.respond({}, 201)) as server,
        recording(server.url, limits, clock=clock) as (recorder, _),
    ):
        for number in range(100):
            recorder.record_problem(problem(f"n{number}/web"))
        until(lambda: len(server.seen) == burst)
        assert not announced(server.seen, more_than=burst)
        clock.seconds += period
        until(lambda: len(server.seen) == burst + 1)
        assert not announced(server.seen, more_than=burst + 1)


@pytest.mark.parametrize("reason", list(ProblemReason))
def test_many_nodes_make_few_events(reason: ProblemReason) -> None:
    made = set()
    for number in range(100):
        with recording(NOWHERE, Limits(spread=1e9), node=f"node-{number}") as (recorder, _):
            message = f"on {number}" if reason.node_specific else "the same"
            recorder.record_problem(Problem("Service", "shop/web", "spec", message, reason))
            made |= names(recorder)
    # Not fewer than needed for the first few nodes, and not one for each of the others.
    assert 8 <= len(made) <= 16 if reason.node_specific else len(made) == 1


def answered(metrics: Metrics, posts: int) -> bool:
    return sum(outcomes(metrics).values()) == posts


def test_nodes_that_are_never_first_wait_longer() -> None:
    limits = Limits(spread=1.0, longest_spread=6.0, rate=Rate(99, 1.0))
    answers = iter([*[409] * 4, *[201] * 4])
    waits = []

    def answer(exchange: Exchange) -> None:
        status = next(answers)
        exchange.respond({}, 201) if status == 201 else exchange.fail(status, "exists")

    clock = StandingClock()
    with (
        serving(answer) as server,
        recording(server.url, limits, clock=clock) as (recorder, metrics),
    ):
        for number in range(8):
            waits.append(recorder._spread)
            recorder._clock.seconds += 10.0  # type: ignore[attr-defined]
            recorder.record_problem(problem(f"n{number}/web"))
            recorder._clock.seconds += 10.0  # type: ignore[attr-defined]
            until(partial(answered, metrics, number + 1))
    assert waits == [1.0, 2.0, 4.0, 6.0, 6.0, 3.0, 1.5, 1.0]


@pytest.mark.parametrize(
    "name", ["(no name)", "shop/", "shop/UPPER", "shop/a\nb", "../../x/y", "shop/" + "a" * 300]
)
def test_an_event_about_an_invalid_name_is_not_posted(name: str) -> None:
    with recording(NOWHERE, Limits(spread=1e9)) as (recorder, metrics):
        recorder.record_problem(problem(name))
        assert accepted(recorder) == 0
        assert outcomes(metrics) == {"dropped": 1}


def test_the_longest_note_is_within_the_servers_limit() -> None:
    with recording(NOWHERE, Limits(spread=1e9)) as (recorder, _):
        recorder.record_problem(problem("shop/web", "é\ud800\n" * 10_000))
        (queued,) = recorder._queue
    assert len(queued.event.note.encode()) <= 1024
    msgspec.json.encode(queued.event)


def test_a_server_that_denies_everything_is_asked_at_the_same_rate() -> None:
    with (
        serving(lambda exchange: exchange.fail(403, "no right")) as server,
        recording(server.url, Limits(spread=0.0), clock=StandingClock()) as (recorder, metrics),
    ):
        for number in range(200):
            recorder.record_problem(problem(f"n{number}/web"))
        burst = DEFAULT_LIMITS.rate.burst
        until(lambda: outcomes(metrics).get("refused", 0) == burst)
        assert not announced(server.seen, more_than=burst)


class Outage:
    """A server that is away until `back_at`; notes the times of all posts after that."""

    def __init__(self, back_at: float) -> None:
        self.back_at = back_at
        self.seconds = 0.0
        self.posts: list[float] = []

    def now(self) -> float:
        return self.seconds

    def wait(self, stopping: object, seconds: float) -> None:
        raise AssertionError("no thread runs")

    def post(self, path: str, body: bytes, timeout: float) -> bytes:
        if self.seconds < self.back_at:
            raise UnreachableError("Connection refused")
        self.posts.append(self.seconds)
        return b""


@pytest.mark.parametrize("length", [5.0, 60.0, 400.0])
def test_many_nodes_spread_their_events_over_the_time_after_an_outage(length: float) -> None:
    outage, nodes = Outage(length), 300
    agents = []
    for number in range(nodes):
        agents.append(EventRecorder(outage, f"n{number}", Metrics().api, clock=outage))  # type: ignore[arg-type]
        agents[-1].record_start()
        agents[-1].record_problem(problem("shop/web"))
    turns = [(0.0, number) for number in range(nodes)]
    while turns:
        outage.seconds, number = heapq.heappop(turns)
        queued, delay = agents[number]._next()
        if queued is not None:
            agents[number]._post(queued)
        if agents[number]._queue:
            heapq.heappush(turns, (outage.seconds + delay, number))
    # No Event is lost, and all are posted soon.
    assert len(outage.posts) == 2 * nodes
    assert max(outage.posts) <= length + DEFAULT_LIMITS.longest_pause
    # At the start of a fleet, all are posted within 10 s.
    busiest = max(sum(at <= each < at + 1 for each in outage.posts) for at in outage.posts)
    assert busiest <= 2 * nodes / 4
