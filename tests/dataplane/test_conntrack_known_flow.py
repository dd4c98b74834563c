"""A packet of a known flow has the flow's endpoint, and the source that the flow has."""

from __future__ import annotations

import pytest

from pyproxy.dataplane.conntrack.known_flow import trace_known_flow
from pyproxy.dataplane.packets import Delivered, Masquerade, Packet, Untouched, Verdict
from pyproxy.model.address import Backend, Port, Protocol, parse_address
from pyproxy.netlink.flows import CTA_TUPLE_REPLY, Flow, tuple_attribute
from pyproxy.netlink.nfnetlink import HEADER_SIZE
from tests.netlink.conntrack_entries import Entry, offloaded, place

CLIENT, FRONTEND, POD = place("10.244.1.9", 41411), place("10.96.0.1", 53), place("10.244.1.11", 53)
PACKET = Packet(
    parse_address("10.244.1.9"),
    parse_address("10.96.0.1"),
    Protocol.UDP,
    Port(53),
    "cbr0",
    new=False,
)


@pytest.mark.parametrize(
    ("replies_from", "replies_to", "verdict"),
    [
        pytest.param(POD, CLIENT, Delivered(POD), id="kept"),
        pytest.param(POD, place("10.244.1.9", 30992), Delivered(POD), id="another port"),
        pytest.param(
            POD,
            place("172.30.0.11", 41411),
            Delivered(POD, Masquerade.CONNTRACK),
            id="masqueraded",
        ),
        pytest.param(FRONTEND, CLIENT, Untouched(), id="not translated"),
    ],
)
def test_the_path_is_that_of_the_flows_first_packet(
    replies_from: Backend, replies_to: Backend, verdict: Verdict
) -> None:
    reply = tuple_attribute(CTA_TUPLE_REPLY, Protocol.UDP, replies_from, replies_to)
    flow = Flow(Protocol.UDP, CLIENT, FRONTEND, replies_from, bytes(HEADER_SIZE) + reply)
    (path,) = trace_known_flow(PACKET, flow).paths
    assert path.verdict == verdict


def test_a_packet_of_an_offloaded_flow_passes_no_rule() -> None:
    flow = offloaded(Entry(CLIENT, FRONTEND, POD))
    (path,) = trace_known_flow(PACKET, flow).paths
    assert path.verdict == Delivered(POD)
    assert [str(step) for step in path.steps] == [
        "flowtable: offloaded: passes routing and all hooks by: udp 10.244.1.9:41411 -> "
        "10.96.0.1:53, answered by 10.244.1.11:53 to 10.244.1.9:41411"
    ]
