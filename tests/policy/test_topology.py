from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.model.address import Family
from pyproxy.model.objects import Endpoint
from pyproxy.policy.topology import IgnoredHint, TopologyChoice, TopologyMode, choose_mode, within
from tests.builders import HOST, endpoints, pod

NEAR_A: dict[str, Any] = {"nodes": ["node-a"], "zones": ["zone-1"]}
NEAR_B: dict[str, Any] = {"nodes": ["node-b"], "zones": ["zone-2"]}

CASES = {
    "nothing is ready": (
        [],
        "zone-1",
        TopologyChoice(TopologyMode.ANYWHERE, (IgnoredHint.NO_READY_ENDPOINT,)),
    ),
    "no hints at all": (
        [pod("a1"), pod("b1")],
        "zone-1",
        TopologyChoice(TopologyMode.ANYWHERE, (IgnoredHint.NO_HINTS,)),
    ),
    "node hints come before zone hints": (
        [pod("a1", **NEAR_A), pod("b1", **NEAR_B)],
        "zone-1",
        TopologyChoice(TopologyMode.SAME_NODE),
    ),
    "node hints need no zone": ([pod("a1", **NEAR_A)], "", TopologyChoice(TopologyMode.SAME_NODE)),
    "no endpoint for this node: its zone": (
        [pod("b1", nodes=["node-b"], zones=["zone-1"])],
        "zone-1",
        TopologyChoice(TopologyMode.SAME_ZONE, (IgnoredHint.NODE_NOT_HINTED,)),
    ),
    "one endpoint without a node hint: its zone": (
        [pod("a1", **NEAR_A), pod("b1", zones=["zone-2"])],
        "zone-1",
        TopologyChoice(TopologyMode.SAME_ZONE, (IgnoredHint.NODE_HINT_MISSING,)),
    ),
    "one endpoint without a zone hint": (
        [pod("a1", zones=["zone-1"]), pod("b1")],
        "zone-1",
        TopologyChoice(
            TopologyMode.ANYWHERE, (IgnoredHint.NODE_HINT_MISSING, IgnoredHint.ZONE_HINT_MISSING)
        ),
    ),
    "a node without a zone": (
        [pod("a1", zones=["zone-1"])],
        "",
        TopologyChoice(
            TopologyMode.ANYWHERE, (IgnoredHint.NODE_HINT_MISSING, IgnoredHint.ZONE_UNKNOWN)
        ),
    ),
    "no endpoint for this zone": (
        [pod("a1", zones=["zone-3"]), pod("b1", zones=["zone-2"])],
        "zone-1",
        TopologyChoice(
            TopologyMode.ANYWHERE, (IgnoredHint.NODE_HINT_MISSING, IgnoredHint.ZONE_NOT_HINTED)
        ),
    ),
    "node hints alone, none for this node": (
        [pod("b1", nodes=["node-b"])],
        "zone-1",
        TopologyChoice(
            TopologyMode.ANYWHERE, (IgnoredHint.NODE_NOT_HINTED, IgnoredHint.ZONE_HINT_MISSING)
        ),
    ),
    "an endpoint may be hinted for several zones": (
        [pod("a1", zones=["zone-2", "zone-1"])],
        "zone-1",
        TopologyChoice(TopologyMode.SAME_ZONE, (IgnoredHint.NODE_HINT_MISSING,)),
    ),
}


@pytest.mark.parametrize(("ready", "zone", "expected"), CASES.values(), ids=CASES)
def test_choice(ready: list[Endpoint], zone: str, expected: TopologyChoice) -> None:
    assert choose_mode(ready, HOST, zone) == expected


ENDPOINTS = st.lists(endpoints(Family.IPV4), max_size=6)


@given(ENDPOINTS, st.sampled_from(["", "zone-1", "zone-2", "zone-3"]))
def test_hints_that_would_leave_no_endpoint_are_ignored(ready: list[Endpoint], zone: str) -> None:
    mode = choose_mode(ready, HOST, zone).mode
    assert not ready or any(within(endpoint, mode, HOST, zone) for endpoint in ready)


@given(ENDPOINTS, st.randoms(use_true_random=False))
def test_order_does_not_matter(ready: list[Endpoint], random: Random) -> None:
    shuffled = list(ready)
    random.shuffle(shuffled)
    assert choose_mode(shuffled, HOST, "zone-1") == choose_mode(ready, HOST, "zone-1")


@given(ENDPOINTS, st.sampled_from(["", "zone-1"]))
def test_every_ignored_hint_has_a_reason(ready: list[Endpoint], zone: str) -> None:
    choice = choose_mode(ready, HOST, zone)
    assert bool(choice.ignored) == (choice.mode is not TopologyMode.SAME_NODE)
