"""A DNS server on sockets that are already bound: UDP and TCP in an asyncio event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from pyproxy_lab.dns import records

_PLAIN_UDP = 512
_LARGEST_UDP = 1232
"""Bytes of a response over UDP, without and with EDNS: none is fragmented."""

_LARGEST_TCP = 65535
_IDLE = 10.0
"""Seconds after which a silent TCP connection is closed."""

_CONNECTIONS = 128
_PORT = 53

View = Callable[[], records.View]


def open_sockets(families: Sequence[int]) -> list[socket.socket]:
    """Bind port 53 of the calling thread's namespace, for UDP and TCP. Raises OSError."""
    with contextlib.ExitStack() as stack:
        made = []
        for family in families:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                bound = stack.enter_context(socket.socket(family, kind))
                made.append(bound)
                bound.setblocking(False)
                if family == socket.AF_INET6:
                    bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                if kind == socket.SOCK_STREAM:
                    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                bound.bind(("", _PORT))
        stack.pop_all()
        return made


async def serve(sockets: Sequence[socket.socket], view: View) -> None:
    """Respond until cancelled, and close the sockets."""
    loop = asyncio.get_running_loop()
    connections = _Connections(view)
    async with contextlib.AsyncExitStack() as stack:
        for bound in sockets:
            if bound.type == socket.SOCK_STREAM:
                server = await asyncio.start_server(connections.talk, sock=bound)
                stack.callback(server.close)
            else:
                transport, _ = await loop.create_datagram_endpoint(
                    lambda: _Datagrams(view), sock=bound
                )
                stack.callback(transport.close)
        await asyncio.Event().wait()


def respond(view: records.View, wire: bytes, udp: bool) -> bytes:
    """Return the response to a message, empty for one that deserves none."""
    try:
        query = dns.message.from_wire(wire, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return _format_error(wire)
    if query.flags & dns.flags.QR:
        return b""
    response = dns.message.make_response(query, our_payload=_LARGEST_UDP)
    _fill(view, query, response)
    size = _LARGEST_TCP
    if udp:
        asked = query.payload if query.edns >= 0 else _PLAIN_UDP
        size = min(max(asked, _PLAIN_UDP), _LARGEST_UDP)
    encoded: bytes = response.to_wire(max_size=size, prefer_truncation=True)
    return encoded


def _fill(view: records.View, query: dns.message.Message, response: dns.message.Message) -> None:
    if query.opcode() != dns.opcode.QUERY:
        response.set_rcode(dns.rcode.NOTIMP)
        return
    if len(query.question) != 1 or query.question[0].rdclass != dns.rdataclass.IN:
        response.set_rcode(dns.rcode.REFUSED)
        return
    (question,) = query.question
    found = records.answer(view, question.name, question.rdtype)
    response.set_rcode(found.rcode)
    response.flags |= dns.flags.AA
    # Each client gets another order, so that those who take the first address are spread.
    response.answer = [_rotated(each, query.id) for each in found.records]
    response.additional = list(found.additional)
    if not found.records and records.is_inside(question.name):
        response.authority = [records.authority(view)]


def _rotated(found: dns.rrset.RRset, number: int) -> dns.rrset.RRset:
    items = list(found)
    first = number % len(items)
    return dns.rrset.from_rdata_list(found.name, found.ttl, items[first:] + items[:first])


def _format_error(wire: bytes) -> bytes:
    """Return FORMERR for a query whose id can be read."""
    if len(wire) < 12 or wire[2] & 0x80:
        return b""
    return wire[:2] + bytes([0x80, dns.rcode.FORMERR]) + bytes(8)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, view: View) -> None:
        self._view = view
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own transport is no subclass of this class in Python 3.11.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        response = respond(self._view(), data, udp=True)
        if response and self._transport is not None:
            self._transport.sendto(response, addr)


class _Connections:
    """Responds on TCP connections, at most `_CONNECTIONS` at the same time."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._open = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that goes away, or that is too slow, loses its connection.
        with (
            contextlib.closing(writer),
            contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError),
            self._counted() as accepted,
        ):
            while accepted:
                async with asyncio.timeout(_IDLE):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    wire = await reader.readexactly(size)
                    response = respond(self._view(), wire, udp=False)
                    if not response:
                        return
                    writer.write(len(response).to_bytes(2, "big") + response)
                    await writer.drain()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[bool]:
        self._open += 1
        try:
            yield self._open <= _CONNECTIONS
        finally:
            self._open -= 1
