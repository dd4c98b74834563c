"""Services as most are, which are routed in a shorter way."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.problems import ProblemTracker
from pyproxy.agent.service_router import Routings, ServiceRouter
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.errors import Problem
from pyproxy.model.address import Port
from pyproxy.model.events import Delete, Event, Upsert
from pyproxy.model.objects import Kind
from pyproxy.model.service_bounds import ServiceBounds
from pyproxy.policy.reserved_frontends import OwnPort, Reserved
from tests.builders import HOST, endpoint_slice, ip, name, service
from tests.examples import examples

RESERVED = [
    Reserved(),
    Reserved(local=frozenset({ip("10.96.0.1")})),
    Reserved(broadcasts=frozenset({ip("10.244.1.1")})),
    Reserved(own_ports=(OwnPort(ip("0.0.0.0"), Port(80), "a program"),)),
    Reserved(families=frozenset()),
]
BOUNDS = [ServiceBounds(), ServiceBounds(endpoints=1)]
NAMES = st.sampled_from(["web", "api", "db"])
# The slices come first: a Service without endpoints is not one of these.
FIRST: list[Event] = [
    Upsert(endpoint_slice("web", ["10.244.1.1", "10.244.1.2"])),
    Upsert(endpoint_slice("api", ["10.244.1.3"])),
    Upsert(service("web", 1)),
    Upsert(service("api", 2)),
]
EVENTS = st.lists(
    st.one_of(
        st.builds(
            lambda of, number, port, changes: Upsert(
                msgspec.structs.replace(service(of, number, node_port=port), **changes)
            ),
            NAMES,
            st.integers(1, 3),
            st.sampled_from([0, 0, 30001]),
            st.sampled_from(
                [
                    {},
                    {"affinity_timeout": 60},
                    {"external_ips": (ip("10.96.0.2"),)},
                    {"health_check_port": Port(30001)},
                ]
            ),
        ),
        st.builds(
            lambda of, addresses, number: Upsert(endpoint_slice(of, addresses, number=number)),
            NAMES,
            st.lists(st.sampled_from(["10.244.1.1", "10.244.1.2", "10.244.1.3"]), unique=True),
            st.sampled_from([0, 0, 1]),
        ),
        st.builds(lambda of: Delete(Kind.SERVICE, name(of)), NAMES),
    ),
    max_size=15,
)


def outcome(
    events: list[Event], reserved: Reserved, bounds: ServiceBounds, *, offload: bool
) -> tuple[Routings, set[Problem]]:
    """Route each Service after each of its changes; return the last routings, and the problems."""
    problems = ProblemTracker(lambda _: None)
    state = ClusterState()
    router = ServiceRouter(state, problems, HOST, bounds, offload=offload)
    node = NodeRouting(reserved=reserved)
    found: Routings = {}
    for event in events:
        state.handle_event(event, 0.0)
        if isinstance(event, Delete):
            found |= router.route([event.name], node)
        found |= router.route(list(state.services), node)
    return found, set(problems.problems())


@settings(max_examples=examples(300))
@given(EVENTS, st.sampled_from(RESERVED), st.sampled_from(BOUNDS), st.booleans())
def test_the_shorter_way_has_the_same_result(
    events: list[Event], reserved: Reserved, bounds: ServiceBounds, offload: bool
) -> None:
    found = outcome(FIRST + events, reserved, bounds, offload=offload)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ServiceRouter, "_route_plain", lambda *_: None)
        assert outcome(FIRST + events, reserved, bounds, offload=offload) == found
