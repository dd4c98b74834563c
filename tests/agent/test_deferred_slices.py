"""Slices of which the endpoints are decoded by the first sync, in place of those read whole."""

from __future__ import annotations

import errno
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.agent.cluster_state import ClusterState
from pyproxy.errors import Problem, TransientKernelError
from pyproxy.model.events import Delete, Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import (
    DeferredSlice,
    Endpoint,
    EndpointSlice,
    Kind,
    Node,
    ObjectName,
    Service,
)
from tests.agent.objects import NODE, Stage
from tests.builders import endpoint_slice, ip, name, service
from tests.examples import examples

WEB, API = service("web", 1), service("api", 2)
INVALID = Problem("EndpointSlice", "shop/web-1", "endpoints[0].addresses[0]", "no IP; ignored")
UNDECODABLE = Problem("EndpointSlice", "shop/web-1", "(whole object)", "not decodable: x")


def decoded(head: EndpointSlice, entries: list[bytes]) -> EndpointSlice | Problem:
    """Read endpoints of which each is an address; `-` is an invalid one, `!` undecodable."""
    if b"!" in entries:
        return UNDECODABLE
    return msgspec.structs.replace(
        head,
        endpoints=tuple(Endpoint(ip(each.decode())) for each in entries if each != b"-"),
        problems=(INVALID,) if b"-" in entries else (),
    )


def deferred(of: str, addresses: list[str], number: int = 0) -> DeferredSlice:
    head = endpoint_slice(of, (), number=number)
    return DeferredSlice(head, [each.encode() for each in addresses], decoded)


def begun(*slices: DeferredSlice | EndpointSlice) -> Stage:
    """Return an agent after its first sync, of two Services and these slices."""
    stage = Stage()
    for obj in (WEB, API, NODE, *slices):
        stage.agent.handle_event(Upsert(obj))
    stage.agent.handle_event(Synced(Kind.SERVICE, frozenset({WEB.name, API.name})))
    stage.agent.handle_event(Synced(Kind.ENDPOINT_SLICE, frozenset(each.name for each in slices)))
    stage.agent.handle_event(Synced(Kind.NODE, frozenset({ObjectName("", NODE.name)})))
    stage.settle()
    return stage


def test_they_are_programmed_as_any_others() -> None:
    addresses = ["10.244.1.5", "10.244.2.5"]
    stage = begun(deferred("web", addresses), deferred("api", ["10.244.1.6"]))
    whole = begun(endpoint_slice("web", addresses), endpoint_slice("api", ["10.244.1.6"]))
    assert stage.dataplane.kernel == whole.dataplane.kernel
    assert stage.agent.cluster_state.slices == whole.agent.cluster_state.slices


@pytest.mark.parametrize("of", ["web", "without-a-service"])
def test_their_problems_are_reported_by_the_first_sync(of: str) -> None:
    stage = begun(deferred(of, ["-", "10.244.1.5"]))
    assert stage.agent.problems() == (INVALID,)


def test_one_that_cannot_be_decoded_does_not_exist() -> None:
    stage = begun(deferred("web", ["10.244.1.5"]), deferred("web", ["!", "10.244.1.6"], 1))
    whole = begun(endpoint_slice("web", ["10.244.1.5"]))
    assert stage.agent.problems() == (UNDECODABLE,)
    assert stage.dataplane.kernel == whole.dataplane.kernel
    assert stage.agent.cluster_state.slices.keys() == {name("web-0")}


def test_a_new_version_of_it_replaces_it() -> None:
    stage = begun(deferred("web", ["!"]))
    stage.handle_event(endpoint_slice("web", ["10.244.1.5"]))
    stage.settle()
    assert len(stage.dataplane.kernel["endpoints4"]) == 1


def fail_a_sync(stage: Stage) -> None:
    stage.dataplane.trouble.append(TransientKernelError("the kernel is busy", errno.EBUSY))
    stage.agent.sync()


def look_at_all_slices(stage: Stage) -> None:
    assert stage.agent.cluster_state.slices is not None


@pytest.mark.parametrize("decode", [fail_a_sync, look_at_all_slices])
@pytest.mark.parametrize(("entry", "problem"), [("-", INVALID), ("!", UNDECODABLE)])
@pytest.mark.parametrize("is_repaired", [True, False])
def test_its_problem_is_found_at_once_and_ends_with_it(
    decode: Callable[[Stage], None], entry: str, problem: Problem, is_repaired: bool
) -> None:
    """It may be decoded long before the first sync ends."""
    stage, part = Stage(), deferred("web", [entry], 1)
    lists: list[tuple[Kind, list[Service | DeferredSlice | Node]]] = [
        (Kind.SERVICE, [WEB, API]),
        (Kind.ENDPOINT_SLICE, [part]),
        (Kind.NODE, [NODE]),
    ]
    for kind, objects in lists:
        for obj in objects:
            stage.agent.handle_event(Upsert(obj))
        names = frozenset(
            ObjectName("", each.name) if isinstance(each, Node) else each.name for each in objects
        )
        stage.agent.handle_event(Synced(kind, names))
    decode(stage)
    assert stage.agent.problems() == (problem,)
    assert stage.metrics_by_kind()["EndpointSlice"] == 1
    repaired = endpoint_slice("web", ["10.244.1.5"], number=1)
    stage.agent.handle_event(
        Upsert(repaired) if is_repaired else Delete(Kind.ENDPOINT_SLICE, part.name)
    )
    stage.settle()
    assert stage.agent.problems() == ()
    assert stage.metrics_by_kind()["EndpointSlice"] == 0
    assert len(stage.dataplane.kernel.get("endpoints4", ())) == is_repaired


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["web", "api", "gone"]),
        st.integers(0, 1),
        st.none() | st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "-", "!"]), max_size=3),
        st.booleans(),
    ),
    max_size=8,
)


def at_once(part: DeferredSlice) -> list[Event]:
    """Return the events of a slice that is decoded when it is read."""
    new = part.complete()
    if isinstance(new, Problem):
        return [Delete(Kind.ENDPOINT_SLICE, part.name), InvalidObject(new)]
    return [Upsert(new)]


@given(STEPS)
@settings(max_examples=examples(200))
def test_any_events_leave_the_state_of_slices_read_whole(
    steps: list[tuple[str, int, list[str] | None, bool]],
) -> None:
    state, whole = ClusterState(), ClusterState()
    for of, number, addresses, is_read in steps:
        if addresses is None:
            events: list[Event] = [Delete(Kind.ENDPOINT_SLICE, name(f"{of}-{number}"))]
            expected = events
        else:
            part = deferred(of, addresses, number)
            expected = at_once(part)
            events = expected if is_read and addresses else [Upsert(part)]
        for event in events:
            state.handle_event(event, 0.0)
        for event in expected:
            whole.handle_event(event, 0.0)
        if is_read:
            assert set(state.slices_of(name(of))) == set(whole.slices_of(name(of)))
    state.settle()
    assert state.slices == whole.slices
    for of in ("web", "api", "gone"):
        assert [*state.slices_of(name(of))] == [*whole.slices_of(name(of))]
    for each in (WEB, API):
        state.handle_event(Upsert(each), 0.0)
        whole.handle_event(Upsert(each), 0.0)
        assert state.estimate(each.name) == whole.estimate(each.name)
