"""Any order of events leaves the kernel as if the agent had seen the last state only."""

from __future__ import annotations

import errno

from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.errors import KernelError, StaleStateError, TransientKernelError
from pyproxy.model.events import Delete, Event, Upsert
from pyproxy.model.objects import Kind
from tests.agent.objects import Stage
from tests.builders import endpoint_slice, name, service
from tests.examples import examples

NAMES = ("web", "api", "db")
ADDRESSES = [f"10.244.1.{number}" for number in range(1, 7)]

upserts_of_services = st.builds(
    lambda of, number, port, created: Upsert(
        service(of, number, node_port=port, created=created), 1000.0
    ),
    st.sampled_from(NAMES),
    st.integers(1, 3),
    st.sampled_from([0, 30001, 30002]),
    st.sampled_from(["2026-01-01", "2026-02-01"]),
)
upserts_of_slices = st.builds(
    lambda of, addresses, number: Upsert(endpoint_slice(of, addresses, number=number), 1000.0),
    st.sampled_from(NAMES),
    st.lists(st.sampled_from(ADDRESSES), unique=True),
    st.integers(0, 1),
)
deletions = st.builds(
    Delete,
    st.sampled_from([Kind.SERVICE, Kind.ENDPOINT_SLICE]),
    st.sampled_from([name(text) for of in NAMES for text in (of, f"{of}-0", f"{of}-1")]),
)
events = st.one_of(upserts_of_services, upserts_of_slices, deletions)
failures = st.sampled_from(
    [TransientKernelError("EBUSY", errno.EBUSY), StaleStateError("EEXIST", errno.EEXIST)]
)
SYNC = "sync"
steps = st.lists(st.one_of(events, failures, st.just(SYNC)), max_size=40)


@given(steps)
@settings(max_examples=examples(300), deadline=None)
def test_the_end_depends_on_what_is_and_not_on_what_was(
    steps: list[Event | KernelError | str],
) -> None:
    stage = Stage()
    stage.begin()
    for step in steps:
        if isinstance(step, KernelError):
            stage.dataplane.trouble.append(step)
        elif step == SYNC:
            if stage.agent.due() is not None:
                stage.clock.now = max(stage.clock(), stage.agent.due() or 0.0)
                stage.agent.sync()
        else:
            assert not isinstance(step, str)
            stage.agent.handle_event(step)
    stage.settle()

    fresh = Stage()
    world = stage.agent.cluster_state
    slices = [each for of in NAMES for each in world.slices_of(name(of))]
    fresh.begin(*world.services.values(), *slices)
    assert stage.dataplane.kernel == fresh.dataplane.kernel
    assert stage.metrics_by_kind() == fresh.metrics_by_kind()
