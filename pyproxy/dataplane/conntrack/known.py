"""What becomes of a packet whose flow conntrack knows: it goes where the first one went."""

from __future__ import annotations

from fractions import Fraction

from pyproxy.dataplane.packets import (
    Delivered,
    Masquerade,
    Packet,
    TracePath,
    TraceResult,
    TraceStep,
    Untouched,
    Verdict,
)
from pyproxy.model.address import Backend, Port, Protocol, backend, backend_text
from pyproxy.netlink.conntrack import Conntrack
from pyproxy.netlink.flows import Flow

_TCP_REMARK = (
    "a connection that begins anew, with the same port after the old one was closed, is looked at "
    "as new: ask without the port"
)


def known_flow(conntrack: Conntrack, packet: Packet, port: Port) -> Flow | None:
    """Find the flow that a packet from this source port belongs to. Raises KernelError."""
    source = backend(packet.source, port)
    target = backend(packet.destination, packet.port)
    pieces = conntrack.flows(packet.family, packet.protocol, target)
    return next((flow for piece in pieces for flow in piece if flow.source == source), None)


def trace_known_flow(packet: Packet, flow: Flow) -> TraceResult:
    """Tell what conntrack does with a packet of a flow that it knows."""
    kept = flow.reply_destination == flow.source
    entry = (
        f"{flow.protocol.name.lower()} {backend_text(Backend(flow.source))} ->"
        f" {backend_text(Backend(flow.destination))}, answered by"
        f" {backend_text(Backend(flow.reply_source))}"
        f" to {backend_text(Backend(flow.reply_destination))}"
    )
    masquerade = Masquerade.NONE if kept else Masquerade.CONNTRACK
    verdict: Verdict = Untouched(masquerade)
    if flow.translated:
        verdict = Delivered(Backend(flow.reply_source), masquerade)
    step = TraceStep("conntrack", "goes the way of the first packet of its flow", entry)
    remarks = (_TCP_REMARK,) if packet.protocol is Protocol.TCP else ()
    return TraceResult(packet, (TracePath(verdict, Fraction(1), (step,)),), remarks)
