"""Large objects that change too often: budgets, the newest version, order."""

from __future__ import annotations

import json
import threading
import tracemalloc
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from pyproxy.model.events import Delete, Event, Synced, Upsert
from pyproxy.model.objects import Kind, ObjectName, Service
from pyproxy.source.decode import DecodedObject
from pyproxy.source.large_objects import LARGE, LargeObjects
from pyproxy.source.object_events import ObjectEvents, Resource
from pyproxy.source.stream import GoneError
from tests.waiting import until

ODD = ObjectName("shop", "odd")


def threads() -> int:
    return sum(each.name == "source-large-Service" for each in threading.enumerate())


def body(version: int, size: int = 600_000, name: str = "odd") -> Raw:
    return Raw(
        json.dumps(
            {
                "metadata": {
                    "name": name,
                    "namespace": "shop",
                    "resourceVersion": str(version),
                    "annotations": {"padding": "x" * size},
                },
                "spec": {"clusterIP": "10.96.9.9", "ports": [{"port": 80}]},
            }
        ).encode()
    )


class Held:
    """LargeObjects whose thread waits until the test lets time pass."""

    def __init__(self) -> None:
        self.time = 0.0
        self.emitted: list[tuple[str, float]] = []
        self.stopping = threading.Event()
        self.large = LargeObjects(Kind.SERVICE, self, self.stopping, self._emit)

    def now(self) -> float:
        return self.time

    def wait(self, stopping: threading.Event, seconds: float) -> None:
        stopping.wait(0.001)

    def hold(self, version: int, size: int = 600_000, name: str = "odd") -> bool:
        raw = body(version, size, name)
        return self.large.hold(ObjectName("shop", name), raw, self.time)

    def _emit(self, decoded: DecodedObject, read_at: float) -> None:
        assert isinstance(decoded.value, Service)
        self.emitted.append((decoded.version, read_at))

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        until(lambda: threads() == 0, "the thread ends")


def test_an_object_waits_once_its_budget_is_used_up_and_the_newest_version_wins() -> None:
    with Held() as held:
        # 1 MiB at once, and 256 KiB a second.
        assert [held.hold(version) for version in (1, 2)] == [False, False]
        held.time = 0.1
        assert [held.hold(version) for version in (3, 4, 5)] == [True, True, True]
        assert held.emitted == []
        held.time = 10.0
        until(lambda: held.emitted != [])
        # The time is that of the first version that was not decoded.
        assert held.emitted == [("5", 0.1)]
        # The budget counts what was decoded late, too.
        assert [held.hold(version) for version in (6, 7)] == [False, True]


def test_every_object_has_a_budget_of_its_own() -> None:
    with Held() as held:
        assert [held.hold(version) for version in (1, 2, 3)] == [False, False, True]
        assert not held.hold(4, name="other")


def test_two_hundred_changes_a_second_are_decoded_within_the_budget() -> None:
    with Held() as held:
        at_once = 0
        for version in range(200):
            held.time = version / 200
            at_once += not held.hold(version)
        assert at_once == 2
        held.time = 60.0
        until(lambda: [version for version, _ in held.emitted][-1:] == ["199"])
        assert len(held.emitted) <= 2


def test_a_version_that_waits_never_follows_a_newer_event() -> None:
    with Held() as held:
        for version in (1, 2, 3):
            held.hold(version)
        held.hold(1, name="other")
        held.hold(2, name="other")
        assert held.hold(3, name="other")
        held.large.discard(ODD)
        held.time = 60.0
        until(lambda: held.emitted != [])
        assert held.emitted == [("3", 0.0)]
        for version in (7, 8, 9):
            held.hold(version)
        held.large.clear()
        held.time = 120.0
        assert not held.hold(10)
        assert held.emitted == [("3", 0.0)]


def test_the_thread_ends_with_the_last_version_and_starts_again() -> None:
    with Held() as held:
        for round_ in (1, 2):
            for version in (1, 2, 3):
                held.hold(version)
            assert threads() == 1
            held.time += 60.0
            until(lambda round_=round_: len(held.emitted) == round_)  # type: ignore[misc]
            until(lambda: threads() == 0)
            held.time += 60.0


def test_the_memory_of_waiting_versions_is_bounded() -> None:
    with Held() as held:
        kept = 0
        for number in range(20):
            name = f"odd-{number}"
            held.hold(1, 2 << 20, name)
            kept += held.hold(2, 2 << 20, name)
        assert kept == 7


def test_typical_slices_never_have_a_budget() -> None:
    endpoint = {
        "addresses": ["2001:db8:1234:5678:9abc:def0:1234:5678"],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": "ip-10-100-200-100.eu-central-1.compute.internal",
        "zone": "eu-central-1a",
        "hints": {"forZones": [{"name": "eu-central-1a"}]},
        "targetRef": {
            "kind": "Pod",
            "name": "a-deployment-with-a-long-name-5d5f8c7b9d-x8k2z",
            "namespace": "a-namespace-with-a-long-name",
            "uid": "1b4e28ba-2fa1-11d2-883f-0016d3cca427",
        },
    }
    assert len(json.dumps([endpoint] * 100)) < LARGE


def test_an_object_without_room_does_not_wait_longer_later() -> None:
    with Held() as held:
        for number in range(8):
            for version in (1, 2):
                held.hold(version, 2 << 20, f"odd-{number}")
        for version in range(3, 40):
            assert not held.hold(version, 2 << 20)
        held.time = 10.0
        until(lambda: len(held.emitted) == 7)
        # The burst of 1 MiB, then 3 MiB at 256 KiB a second: what the first version used.
        assert not held.hold(40)


def test_a_version_that_waits_keeps_no_more_than_itself() -> None:
    with Held() as held:
        for version in (1, 2):
            held.hold(version)
        tracemalloc.start()
        try:
            line = b'{"padding":"%s","object":%s}' % (b"x" * (8 << 20), bytes(body(3)))
            event = msgspec.json.decode(line, type=dict[str, Raw])
            assert held.large.hold(ODD, event["object"], 0.0)
            del line, event
            assert tracemalloc.get_traced_memory()[0] < 1 << 20
        finally:
            tracemalloc.stop()


class Cluster:
    """The objects of an API server, and those that ObjectEvents has passed on."""

    def __init__(self) -> None:
        self.time = 0.0
        self.waits = 0
        self.version = 0
        self.advanced = 0
        self.error: GoneError | None = None
        self.newest: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self.passed_on: dict[str, int] = {}
        # Versions that followed newer ones; an assertion would end a thread, and not the test.
        self.stale: list[str] = []
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        resource = Resource(Kind.SERVICE, "/services", "ServiceList", {})
        self.objects = ObjectEvents(resource, self._emit, self._advance, self, self.stopping)

    def now(self) -> float:
        return self.time

    def wait(self, stopping: threading.Event, seconds: float) -> None:
        self.waits += 1
        stopping.wait(0.0002)

    def let_work(self) -> None:
        """Wait until the thread has nothing to do now."""
        before = self.waits
        until(lambda: self.waits > before + 1 or not threads(), pause=0.0001)

    def _advance(self, version: str) -> None:
        if self.error is not None:
            raise self.error
        assert int(version) >= self.advanced
        self.advanced = int(version)

    def _emit(self, event: Event) -> None:
        # The agent's queue takes events from several threads too.
        with self.lock:
            if isinstance(event, Upsert):
                assert isinstance(event.obj, Service)
                if self.passed_on.get(event.obj.name.name, 0) > int(event.obj.uid):
                    self.stale.append(event.obj.uid)
                self.passed_on[event.obj.name.name] = int(event.obj.uid)
            elif isinstance(event, Delete):
                assert isinstance(event.name, ObjectName)
                self.passed_on.pop(event.name.name, None)
            elif isinstance(event, Synced):
                names = {name.name for name in event.names if isinstance(name, ObjectName)}
                self.passed_on = {k: v for k, v in self.passed_on.items() if k in names}

    def change(self, name: str, size: int, *, is_seen: bool = True) -> None:
        """Write an object. Its event is lost unless it `is_seen`, as before a list."""
        self.version += 1
        self.newest[name] = self.version
        self.sizes[name] = size
        if is_seen:
            self.objects.upsert(self.raw(name), self.time, None)
            if size < LARGE:
                assert self.passed_on[name] == self.version

    def delete(self, name: str, *, is_seen: bool = True) -> None:
        self.version += 1
        if self.newest.pop(name, None) is not None and is_seen:
            last = b'{"metadata":{"name":"%s","namespace":"shop","resourceVersion":"%d"}}'
            self.objects.delete(Raw(last % (name.encode(), self.version)), self.time, None)
            assert name not in self.passed_on

    def list(self, complete: int) -> None:
        """Begin a list that ends after `complete` objects, then list all of them."""
        for size in (complete, None):
            names: set[ObjectName] = set()
            self.objects.begin_list()
            for name in sorted(self.newest)[:size]:
                self.objects.upsert(self.raw(name), self.time, names)
        self.objects.complete(names)
        assert self.passed_on == self.newest

    def raw(self, name: str) -> Raw:
        version = self.newest[name]
        text = (
            b'{"metadata":{"name":"%s","namespace":"shop","uid":"%d","resourceVersion":"%d",'
            b'"annotations":{"a":"%s"}},"spec":{"clusterIP":"10.96.0.1","ports":[{"port":80}]}}'
        )
        padding = PADDING[: self.sizes[name]]
        return Raw(text % (name.encode(), version, version, padding))


PADDING = b"x" * (6 << 20)
# Less than the threshold, the threshold, most of a budget, more than fit into the memory.
SIZES = (0, LARGE - 300, LARGE, 600_000, 900_000, 900_000, 6 << 20)
STEPS = {"change": 12, "delete": 3, "lost change": 1, "list": 1, "time": 3, "work": 2}


# The steps are drawn from a seed, because Hypothesis prefers short lists of small objects.
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_newest_state_is_passed_on_in_the_end(seed: int) -> None:
    random, cluster = Random(seed), Cluster()
    try:
        for step in random.choices(list(STEPS), list(STEPS.values()), k=60):
            name = random.choice("ab")
            if step == "change":
                cluster.change(name, random.choice(SIZES))
            elif step == "delete":
                cluster.delete(name)
            elif step == "time":
                cluster.time += random.choice([0.1, 1.0, 4.0])
            elif step == "work":
                cluster.let_work()
            else:
                if step == "lost change":
                    # A watch loses an event only before the next list.
                    cluster.change(name, random.choice(SIZES), is_seen=False)
                    cluster.delete(random.choice("ab"), is_seen=False)
                cluster.list(random.randrange(3))
        cluster.time += 1000.0
        until(lambda: not threads(), pause=0.001)
        assert cluster.passed_on == cluster.newest
        assert cluster.stale == []
    finally:
        cluster.stopping.set()
        until(lambda: not threads(), pause=0.001)


def test_a_version_of_another_history_is_not_emitted_later() -> None:
    cluster = Cluster()
    for _ in range(3):
        cluster.change("a", 900_000)
    assert threads() == 1
    cluster.time += 10.0
    until(lambda: cluster.passed_on == {"a": 3})
    cluster.change("a", 900_000)
    cluster.change("a", 900_000)
    cluster.version, cluster.error = 1, GoneError("the server went back")
    with pytest.raises(GoneError):
        cluster.change("a", 900_000)
    cluster.time += 10.0
    until(lambda: not threads())
    assert cluster.passed_on == {"a": 5}
