"""Traces of packets whose flow conntrack knows: they go where the first packet went."""

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

_PORT_SIZE = 2
_TCP_REMARK = (
    "a new connection from the same port, after the old one was closed, is traced as new: leave "
    "out --source-port for it"
)


def find_known_flow(conntrack: Conntrack, packet: Packet, port: Port) -> Flow | None:
    """Return the flow that a packet from this source port belongs to. Raises KernelError."""
    source = backend(packet.source, port)
    target = backend(packet.destination, packet.port)
    pieces = conntrack.flows(packet.family, packet.protocol, target)
    return next((flow for piece in pieces for flow in piece if flow.source == source), None)


def flow_text(flow: Flow) -> str:
    """Return the addresses of both directions of a flow."""
    return (
        f"{flow.protocol.name.lower()} {backend_text(Backend(flow.source))} ->"
        f" {backend_text(Backend(flow.destination))}, answered by"
        f" {backend_text(Backend(flow.reply_source))}"
        f" to {backend_text(Backend(flow.reply_destination))}"
    )


def trace_known_flow(packet: Packet, flow: Flow) -> TraceResult:
    """Return the one path of a packet whose flow has an entry."""
    # After a masquerade the replies go to the node's address and not to the client's. The port
    # alone also changes if another flow to the same endpoint has it already.
    kept = flow.reply_destination[:-_PORT_SIZE] == flow.source[:-_PORT_SIZE]
    masquerade = Masquerade.NONE if kept else Masquerade.CONNTRACK
    verdict: Verdict = Untouched(masquerade)
    if flow.translated:
        verdict = Delivered(Backend(flow.reply_source), masquerade)
    step = TraceStep("conntrack", "goes the way of the first packet of its flow", flow_text(flow))
    if flow.offloaded:
        step = TraceStep("flowtable", "offloaded: passes routing and all hooks by", flow_text(flow))
    remarks = (_TCP_REMARK,) if packet.protocol is Protocol.TCP else ()
    return TraceResult(packet, (TracePath(verdict, Fraction(1), (step,)),), remarks)
