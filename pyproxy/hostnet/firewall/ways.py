"""The hooks that a path's packets pass, each with the packet as it is there.

Facts: include/uapi/linux/netfilter_ipv4.h. Conntrack is at priority -200, translation of the
destination at -100 in prerouting and output, that of the source at 100 in postrouting and input,
whatever the priorities of nat chains. Hooks before conntrack find no entry.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from pyproxy.hostnet.firewall.bits import Bits, number
from pyproxy.hostnet.firewall.hook_packet import (
    CLIENT_PORT,
    STATE_ESTABLISHED,
    STATE_NEW,
    STATUS_CONFIRMED,
    STATUS_DNAT,
    STATUS_DNAT_DONE,
    STATUS_SEEN_REPLY,
    STATUS_SNAT,
    STATUS_SNAT_DONE,
    Connection,
    Hook,
    HookPacket,
    Host,
    Tuple,
)
from pyproxy.hostnet.packet import Origin, PacketPath
from pyproxy.model.address import Address

CONNTRACK, TRANSLATION, MASQUERADE = -200, -100, 100


class Stage(msgspec.Struct, frozen=True):
    """A part of a hook: the chains with priorities from `low` to below `high` meet the packet.

    `translates` is true for nat chains before pyproxy's own; other stages meet none of type nat
    unless the packet is the first of its connection.
    """

    packet: HookPacket
    low: int = -(1 << 31)
    high: int = 1 << 31
    translates: bool = False
    bridge: bool = False


def way(path: PacketPath, host: Host, own: Address | None) -> Iterator[Stage]:
    """Yield the stages of a connection's first packet.

    `own` is the address of this node that masquerading uses.
    """
    yield from _Way(path, host, own).there()


def way_back(path: PacketPath, host: Host, own: Address | None, mark: Bits) -> Iterator[Stage]:
    """Yield the stages of the first reply; `mark` is the connection's conntrack mark."""
    yield from _Way(path, host, own).back(mark)


class _Way:
    def __init__(self, path: PacketPath, host: Host, own: Address | None) -> None:
        arriving, leaving = path.arriving, path.leaving
        self._path = path
        self._from_here = path.origin is Origin.NODE
        self._to_here = leaving.out_device is None
        self._client = arriving.source or arriving.sample
        self._in, self._out = _device(leaving.in_device), _device(leaving.out_device)
        self._base = HookPacket(
            arriving.family,
            int(arriving.protocol),
            self._client,
            arriving.destination,
            CLIENT_PORT,
            arriving.port,
            Hook.PREROUTING,
            host,
        )
        if self._from_here and self._client is None:
            self._client = own
        self._frontend = Tuple(self._client, arriving.destination, CLIENT_PORT, arriving.port)
        endpoint = Tuple(leaving.destination, self._client, leaving.port, CLIENT_PORT)
        self._original = Connection(self._frontend, _reversed(self._frontend))
        status = STATUS_DNAT | STATUS_DNAT_DONE
        self._translated = Connection(self._frontend, endpoint, STATE_NEW, status)
        self._masked = path.masqueraded
        self._own = own

    def there(self) -> Iterator[Stage]:
        leaving = self._path.leaving
        hook = Hook.OUTPUT if self._from_here else Hook.PREROUTING
        first = replace(self._base, source=self._client, in_interface=self._in, hook=hook)
        if self._from_here:
            out = self._out_before()
            first = replace(first, in_interface="", out_interface=out, from_process=True)
        else:
            yield from self._devices_in(first)
        yield Stage(first, high=CONNTRACK)
        tracked = replace(first, connection=self._original)
        yield Stage(tracked, CONNTRACK, TRANSLATION)
        yield Stage(tracked, translates=True)
        after = replace(
            first,
            destination=leaving.destination,
            port=leaving.port,
            mark=number(leaving.mark),
            connection=self._translated,
        )
        if self._from_here:
            after = replace(after, out_interface="lo" if self._to_here else self._out)
        yield Stage(after, TRANSLATION)
        if self._from_here:
            yield from self._out_of_node(after)
            if not self._to_here:
                return
            after = replace(after, in_interface="lo", out_interface="", hook=Hook.PREROUTING)
            after = replace(after, mark=number(0))
            yield Stage(after, CONNTRACK)
        if self._to_here:
            yield Stage(replace(after, hook=Hook.INPUT))
            return
        yield Stage(replace(after, hook=Hook.FORWARD, out_interface=self._out))
        yield from self._out_of_node(replace(after, out_interface=self._out))

    def back(self, mark: Bits) -> Iterator[Stage]:
        entry = self._reply_entry(mark)
        leaving = self._path.leaving
        # A masqueraded connection's replies go to this node's own address at first.
        address = self._own if self._masked else self._client
        first = replace(
            self._base,
            source=leaving.destination,
            destination=address,
            source_port=leaving.port,
            port=CLIENT_PORT,
            is_reply=True,
            in_interface=self._out,
        )
        if self._to_here:
            out = "lo" if self._from_here else self._in
            first = replace(first, in_interface="", out_interface=out, hook=Hook.OUTPUT)
            first = replace(first, from_process=True)
        else:
            yield from self._devices_in(first)
        yield Stage(first, high=CONNTRACK)
        tracked = replace(first, connection=entry)
        yield Stage(tracked, CONNTRACK, TRANSLATION)
        after = replace(tracked, destination=self._client)
        yield Stage(after, TRANSLATION)
        if self._to_here:
            yield from self._out_of_node(after)
            return
        if self._from_here:
            yield Stage(replace(after, hook=Hook.INPUT))
            return
        yield Stage(replace(after, hook=Hook.FORWARD, out_interface=self._in))
        yield from self._out_of_node(replace(after, out_interface=self._in))

    def _reply_entry(self, mark: Bits) -> Connection:
        leaving = self._path.leaving
        status = STATUS_CONFIRMED | STATUS_SEEN_REPLY
        status |= STATUS_DNAT | STATUS_DNAT_DONE | STATUS_SNAT_DONE
        status |= STATUS_SNAT if self._masked else 0
        receiver = self._own if self._masked else self._client
        reply = Tuple(leaving.destination, receiver, leaving.port, CLIENT_PORT)
        return Connection(self._frontend, reply, STATE_ESTABLISHED, status, True, mark)

    def _out_before(self) -> str | None:
        # The route to the frontend, before translation, is usually by another device.
        return _device(self._path.arriving.out_device)

    def _devices_in(self, packet: HookPacket) -> Iterator[Stage]:
        yield Stage(replace(packet, hook=Hook.INGRESS))
        yield Stage(replace(packet, hook=Hook.PREROUTING), bridge=True)
        yield Stage(replace(packet, hook=Hook.INPUT), bridge=True)

    def _out_of_node(self, packet: HookPacket) -> Iterator[Stage]:
        out = replace(packet, hook=Hook.POSTROUTING, in_interface="")
        yield Stage(out, high=MASQUERADE)
        if not packet.is_reply and self._masked:
            out = replace(out, source=self._own)
        elif packet.is_reply:
            out = replace(
                out,
                source=self._path.arriving.destination,
                source_port=self._path.arriving.port,
            )
        yield Stage(out, MASQUERADE)
        if out.out_interface not in ("", "lo"):
            yield Stage(replace(out, hook=Hook.OUTPUT), bridge=True)
            yield Stage(replace(out, hook=Hook.POSTROUTING), bridge=True)
            yield Stage(replace(out, hook=Hook.EGRESS))


def _device(device: str | None) -> str | None:
    """Return a device of a path as hooks have it: a path's "" is unknown, its None is none."""
    if device is None:
        return ""
    return device or None


def _reversed(tuple_: Tuple) -> Tuple:
    return Tuple(tuple_.destination, tuple_.source, tuple_.port, tuple_.source_port)
