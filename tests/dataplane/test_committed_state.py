"""Committed state: routings, the node's part, and the users of shared rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.dataplane.committed_state import CommittedState
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.model.address import parse_network
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting

NAMES = [ObjectName("shop", name) for name in "abc"]
NODE = NodeRouting((parse_network("10.244.0.0/16"),))


def rows(routing: ServiceRouting) -> list[str]:
    """The shared rows of a routing, written as its scheduler: "xxy" needs x twice and y once."""
    return list(routing.scheduler)


def routing(name: ObjectName, shared: str) -> ServiceRouting:
    return ServiceRouting(name, (), scheduler=shared)


def state(services: Mapping[ObjectName, str]) -> CommittedState[str]:
    made = CommittedState(rows)
    routings = {name: routing(name, shared) for name, shared in services.items()}
    made.remember(routings, made.growth(routings))
    return made


COMMITS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(NAMES), st.one_of(st.none(), st.text("xyz", max_size=3))),
        st.sets(st.sampled_from(NAMES)),
        st.booleans(),
    ),
    max_size=6,
)


@given(COMMITS)
def test_users_are_those_of_the_committed_services(
    commits: list[tuple[dict[ObjectName, str | None], set[ObjectName], bool]],
) -> None:
    found = state({})
    services: dict[ObjectName, str] = {}
    for wanted, rejected, whole in commits:
        changes = {n: shared for n, shared in wanted.items() if not whole or shared is not None}
        routings = {
            name: None if shared is None else routing(name, shared)
            for name, shared in changes.items()
        }
        counted = Counter(row for each in routings.values() if each for row in rows(each))
        left_out = rejected & changes.keys()
        found.remember(
            routings,
            counted if whole else found.growth(routings),
            whole=whole,
            left_out=left_out,
        )
        if whole:
            services = {}
        for name in changes.keys() - left_out:
            services.pop(name, None)
            if (shared := changes[name]) is not None:
                services[name] = shared
        assert {name: each.scheduler for name, each in found.services.items()} == services
        assert dict(found.users) == dict(Counter("".join(services.values())))


def test_growth_is_what_a_change_adds_to_the_users() -> None:
    found = state({NAMES[0]: "xxy", NAMES[1]: "y"})
    growth = found.growth({NAMES[0]: routing(NAMES[0], "yz"), NAMES[1]: None})
    assert growth == {"x": -2, "y": -1, "z": 1}
    assert [found.is_needed(row, growth) for row in "xyz"] == [False, True, True]
    assert [found.is_needed(row) for row in "xyz"] == [True, True, False]


@pytest.mark.parametrize("whole", [False, True])
def test_the_node_stays_unless_a_commit_changes_it(whole: bool) -> None:
    found = state({})
    found.remember({}, {}, NODE, whole=whole)
    found.remember({}, {}, whole=whole)
    assert found.node == NODE
