"""Large objects that change too often: budgets, the newest version, order."""

from __future__ import annotations

import json
import threading

from msgspec import Raw

from pyproxy.model.objects import Kind, ObjectName, Service
from pyproxy.source.decode import DecodedObject
from pyproxy.source.large_objects import LARGE, LargeObjects
from tests.waiting import until

ODD = ObjectName("shop", "odd")


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
    def threads() -> int:
        return sum(each.name == "source-large-Service" for each in threading.enumerate())

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
