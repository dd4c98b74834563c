from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.model.address import Family
from pyproxy.model.objects import Endpoint
from pyproxy.policy.topology import Choice, Ignored, Mode, choose, near
from tests.policy.objects import HOST, endpoints, pod

NEAR_A: dict[str, Any] = {"nodes": ["node-a"], "zones": ["zone-1"]}
NEAR_B: dict[str, Any] = {"nodes": ["node-b"], "zones": ["zone-2"]}

CASES = {
    "nothing is ready": ([], "zone-1", Choice(Mode.ANYWHERE, (Ignored.NO_READY_ENDPOINT,))),
    "no hints at all": (
        [pod("a1"), pod("b1")],
        "zone-1",
        Choice(Mode.ANYWHERE, (Ignored.NO_HINTS,)),
    ),
    "node hints come before zone hints": (
        [pod("a1", **NEAR_A), pod("b1", **NEAR_B)],
        "zone-1",
        Choice(Mode.SAME_NODE),
    ),
    "node hints need no zone": ([pod("a1", **NEAR_A)], "", Choice(Mode.SAME_NODE)),
    "no endpoint for this node: its zone": (
        [pod("b1", nodes=["node-b"], zones=["zone-1"])],
        "zone-1",
        Choice(Mode.SAME_ZONE, (Ignored.NODE_NOT_HINTED,)),
    ),
    "one endpoint without a node hint: its zone": (
        [pod("a1", **NEAR_A), pod("b1", zones=["zone-2"])],
        "zone-1",
        Choice(Mode.SAME_ZONE, (Ignored.NODE_HINT_MISSING,)),
    ),
    "one endpoint without a zone hint": (
        [pod("a1", zones=["zone-1"]), pod("b1")],
        "zone-1",
        Choice(Mode.ANYWHERE, (Ignored.NODE_HINT_MISSING, Ignored.ZONE_HINT_MISSING)),
    ),
    "a node without a zone": (
        [pod("a1", zones=["zone-1"])],
        "",
        Choice(Mode.ANYWHERE, (Ignored.NODE_HINT_MISSING, Ignored.ZONE_UNKNOWN)),
    ),
    "no endpoint for this zone": (
        [pod("a1", zones=["zone-3"]), pod("b1", zones=["zone-2"])],
        "zone-1",
        Choice(Mode.ANYWHERE, (Ignored.NODE_HINT_MISSING, Ignored.ZONE_NOT_HINTED)),
    ),
    "node hints alone, none for this node": (
        [pod("b1", nodes=["node-b"])],
        "zone-1",
        Choice(Mode.ANYWHERE, (Ignored.NODE_NOT_HINTED, Ignored.ZONE_HINT_MISSING)),
    ),
    "an endpoint may be hinted for several zones": (
        [pod("a1", zones=["zone-2", "zone-1"])],
        "zone-1",
        Choice(Mode.SAME_ZONE, (Ignored.NODE_HINT_MISSING,)),
    ),
}


@pytest.mark.parametrize(("ready", "zone", "expected"), CASES.values(), ids=CASES)
def test_choice(ready: list[Endpoint], zone: str, expected: Choice) -> None:
    assert choose(ready, HOST, zone) == expected


ENDPOINTS = st.lists(endpoints(Family.IPV4), max_size=6)


@given(ENDPOINTS, st.sampled_from(["", "zone-1", "zone-2", "zone-3"]))
def test_hints_are_never_followed_to_nowhere(ready: list[Endpoint], zone: str) -> None:
    mode = choose(ready, HOST, zone).mode
    assert not ready or any(near(endpoint, mode, HOST, zone) for endpoint in ready)


@given(ENDPOINTS, st.randoms(use_true_random=False))
def test_order_does_not_matter(ready: list[Endpoint], random: Random) -> None:
    shuffled = list(ready)
    random.shuffle(shuffled)
    assert choose(shuffled, HOST, "zone-1") == choose(ready, HOST, "zone-1")


@given(ENDPOINTS, st.sampled_from(["", "zone-1"]))
def test_whatever_is_not_followed_has_a_reason(ready: list[Endpoint], zone: str) -> None:
    choice = choose(ready, HOST, zone)
    assert bool(choice.ignored) == (choice.mode is not Mode.SAME_NODE)
