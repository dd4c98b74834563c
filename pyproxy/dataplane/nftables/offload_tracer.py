"""The tracer of the fast path: whether a connection is offloaded, by elements alone.

As in `tracer`, the meaning of the rules is written down here a second time, by hand.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.lookup import Element
from pyproxy.dataplane.nft.rows import PORT_PADDING, frontend_key
from pyproxy.dataplane.nft.schema import SetKind
from pyproxy.dataplane.nftables import offload_chain, schema
from pyproxy.dataplane.packets import Offload, Packet
from pyproxy.model.address import Address, Backend, Protocol

_UDP_STREAM = 2
"""Seconds before conntrack takes a UDP flow for assured (nf_conntrack_proto_udp.c)."""


class SlowPath(enum.Enum):
    """Why a connection is not offloaded."""

    SENT_HERE = "this node sends its packets, which do not pass the hook forward"
    RECEIVED_HERE = "the endpoint is this node, whose packets do not pass the hook forward"
    HAIRPIN = "the endpoint is the client itself"
    DRAINING = "the endpoint terminates"
    PROTOCOL = "a flowtable has TCP and UDP connections only"
    AFFINITY = "the Service has session affinity"
    FRONTEND = "the frontend is in no set of offloaded frontends"


class OffloadTracer:
    """The fast path for the connection of one packet.

    `find` looks a key up in a set of the packet's family. `at_node` is whether the packet is to an
    address that serves node ports.
    """

    def __init__(
        self, packet: Packet, find: Callable[[SetKind, bytes], Element | None], *, at_node: bool
    ) -> None:
        self._packet = packet
        self._find = find
        self._at_node = at_node
        self._frontend = frontend_key(packet.destination, packet.protocol, packet.port)
        self._node_port = frontend_key(Address(b""), packet.protocol, packet.port)

    def offload(self, endpoint: Backend, *, received_here: bool) -> Offload:
        """Return what becomes of the connection after its first packet went to an endpoint.

        `received_here` is whether the endpoint has an address of this node.
        """
        element: Element | None = None
        slow: SlowPath | None = None
        if not self._packet.interface:
            slow = SlowPath.SENT_HERE
        elif received_here:
            slow = SlowPath.RECEIVED_HERE
        elif element := self._find(nft.HAIRPIN, self._packet.source + endpoint[:-2]):
            slow = SlowPath.HAIRPIN
        elif element := self._find_at(
            schema.DRAINING_ENDPOINTS,
            schema.NODE_PORT_DRAINING_ENDPOINTS,
            endpoint + PORT_PADDING,
        ):
            slow = SlowPath.DRAINING
        else:
            element = self._find_at(schema.OFFLOAD_SERVICES, schema.OFFLOAD_NODE_PORTS)
            slow = self._why_in_no_set() if element is None else None
        by = str(element or "")
        if slow is not None:
            return Offload(reason=slow.value, by=by)
        stream = _UDP_STREAM if self._packet.protocol is Protocol.UDP else 0
        return Offload(offload_chain.SLOW_PACKETS, stream, by=by)

    def _why_in_no_set(self) -> SlowPath:
        if self._packet.protocol is Protocol.SCTP:
            return SlowPath.PROTOCOL
        affinity = self._find_at(schema.AFFINITY_FRONTENDS, schema.NODE_PORT_AFFINITY)
        return SlowPath.FRONTEND if affinity is None else SlowPath.AFFINITY

    def _find_at(self, kind: SetKind, node_port: SetKind, end: bytes = b"") -> Element | None:
        """Return the frontend's element in a set, or else the node port's in the other."""
        found = self._find(kind, self._frontend + end)
        if found is None and self._at_node:
            found = self._find(node_port, self._node_port + end)
        return found
