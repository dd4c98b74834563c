"""Every unused endpoint has a reason, and without that reason it would be used."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.model.address import Backend
from pyproxy.model.objects import Endpoint
from pyproxy.policy.endpoints import select_endpoints
from pyproxy.policy.unused import UnusedReason, unused_reasons
from tests.builders import HOST, NODE, pod

PLACES = st.sampled_from(("zone-1", "zone-2"))
ENDPOINTS = st.dictionaries(
    st.integers(1, 6).map(lambda n: Backend(bytes((10, 0, 0, n, 0, 80)))),
    st.builds(
        Endpoint,
        st.just(pod("a1").address),
        ready=st.booleans(),
        serving=st.booleans(),
        terminating=st.booleans(),
        node=st.sampled_from(("", HOST, "node-b")),
        hint_zones=st.sampled_from(((), ("zone-1",), ("zone-2",))),
        hint_nodes=st.sampled_from(((), (HOST,), ("node-b",))),
    ),
    max_size=6,
)
REMEDIES: dict[UnusedReason, dict[str, object]] = {
    UnusedReason.NOT_READY: {"ready": True},
    UnusedReason.TERMINATING: {"ready": True},
    UnusedReason.OTHER_NODE: {"node": HOST, "ready": True},
    UnusedReason.NO_NODE: {"node": HOST, "ready": True},
    UnusedReason.HINTED_FOR_OTHER_NODES: {"hint_nodes": (HOST,)},
    UnusedReason.HINTED_FOR_OTHER_ZONES: {"hint_zones": (NODE.zone,)},
}


@given(ENDPOINTS)
def test_exactly_the_unused_endpoints_have_a_reason(
    endpoints: dict[Backend, Endpoint],
) -> None:
    usable = select_endpoints(endpoints, HOST, NODE.zone)
    reasons = unused_reasons(endpoints, usable, HOST, NODE.zone)
    assert reasons.cluster.keys() == endpoints.keys() - set(usable.cluster)
    assert reasons.local.keys() == endpoints.keys() - set(usable.local)


@given(ENDPOINTS)
def test_without_its_reason_the_endpoint_is_used(endpoints: dict[Backend, Endpoint]) -> None:
    reasons = unused_reasons(
        endpoints, select_endpoints(endpoints, HOST, NODE.zone), HOST, NODE.zone
    )
    for backend, reason in reasons.local.items():
        better = msgspec.structs.replace(endpoints[backend], **REMEDIES[reason])
        assert backend in select_endpoints(endpoints | {backend: better}, HOST, NODE.zone).local
    for backend, reason in reasons.cluster.items():
        # Then missing hints, or hints for another zone, are the reason.
        near = {"hint_nodes": (HOST,), "hint_zones": (NODE.zone,)}
        better = msgspec.structs.replace(endpoints[backend], **{**near, **REMEDIES[reason]})
        assert backend in select_endpoints(endpoints | {backend: better}, HOST, NODE.zone).cluster
        if reason in (UnusedReason.HINTED_FOR_OTHER_NODES, UnusedReason.HINTED_FOR_OTHER_ZONES):
            only = msgspec.structs.replace(endpoints[backend], **REMEDIES[reason])
            assert backend in select_endpoints(endpoints | {backend: only}, HOST, NODE.zone).cluster
