"""The hooks that a path's packets pass, each with the packet as it is there.

Facts: include/uapi/linux/netfilter_ipv4.h. Conntrack is at priority -200, translation of the
destination at -100 in prerouting and output, that of the source at 100 in postrouting and input,
whatever the priorities of nat chains. Hooks before conntrack find no entry.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from pyproxy.hostnet.firewall.bits import Bits, number, unknown
from pyproxy.hostnet.firewall.bits import known as known_bits
from pyproxy.hostnet.firewall.hook_packet import (
    ANY_DISTANCE,
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

_SENT, _ANY_TTL = known_bits(b"\x40"), unknown(1, ANY_DISTANCE)
CONNTRACK, TRANSLATION, MASQUERADE = -200, -100, 100


class Stage(msgspec.Struct, frozen=True):
    """A part of a hook: the chains with priorities from `low` to below `high` meet the packet.

    `translates` is true for the translation of the destination, which nat chains make. A packet is
    `is_translated` behind it. `masquerades` is true for the translation of the source in
    postrouting. `bridge` is true for the hooks of a bridge. `is_rerouted` is true where the kernel
    routes a packet of this node again, because its translation has changed the destination.
    """

    packet: HookPacket
    low: int = -(1 << 31)
    high: int = 1 << 31
    translates: bool = False
    is_translated: bool = False
    bridge: bool = False
    masquerades: bool = False
    is_rerouted: bool = False


def way(path: PacketPath, host: Host, own: Address | None) -> Iterator[Stage]:
    """Yield the stages of a connection's first packet.

    `own` is the address of this node that masquerading uses.
    """
    yield from _Way(path, host, own).there()


def way_back(path: PacketPath, host: Host, own: Address | None, mark: Bits) -> Iterator[Stage]:
    """Yield the stages of the first reply; `mark` is the connection's conntrack mark."""
    yield from _Way(path, host, own).back(mark)


def way_on(path: PacketPath, host: Host, own: Address | None, mark: Bits) -> Iterator[Stage]:
    """Yield the stages of a later packet of the client; `mark` is the connection's mark."""
    yield from _Way(path, host, own).on(mark)


class _Way:
    def __init__(self, path: PacketPath, host: Host, own: Address | None) -> None:
        arriving, leaving = path.arriving, path.leaving
        self._path = path
        self._from_here = path.origin is Origin.NODE
        self._to_here = leaving.out_device is None
        # A sample of other hosts is no more than that.
        known = path.origin is not Origin.EXTERNAL
        self._client = arriving.source or (arriving.sample if known else None)
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
            ttl=_SENT if known else _ANY_TTL,
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
        first = replace(first, way_back=self._path.back_device)
        if self._from_here:
            # The route to the frontend, before translation, may be by another device.
            out = _device(self._path.arriving.out_device)
            first = replace(first, in_interface="", out_interface=out, from_process=True)
        after = replace(
            first,
            destination=leaving.destination,
            port=leaving.port,
            mark=number(leaving.mark),
            own_mark=leaving.mark,
            connection=self._translated,
            way_on="lo" if self._to_here else self._out,
        )
        tracked = replace(first, connection=self._original)
        if self._from_here:
            after = replace(after, out_interface="lo" if self._to_here else self._out)
        else:
            yield from self._devices_in(tracked, after)
        yield Stage(first, high=CONNTRACK)
        yield Stage(tracked, CONNTRACK, TRANSLATION)
        yield Stage(tracked, translates=True)
        moved = self._from_here and first.destination != after.destination
        yield Stage(after, TRANSLATION, is_translated=True, is_rerouted=moved)
        if self._from_here:
            yield from self._out_of_node(after)
            if not self._to_here:
                return
            after = replace(after, in_interface="lo", out_interface="", hook=Hook.PREROUTING)
            after = replace(after, mark=number(0))
            yield Stage(after, is_translated=True)
        if self._to_here:
            yield Stage(replace(after, hook=Hook.INPUT), is_translated=True)
            return
        after = replace(after, ttl=_forwarded(after.ttl))
        forward = replace(after, hook=Hook.FORWARD, out_interface=self._out)
        yield Stage(forward, is_translated=True)
        yield from self._out_of_node(replace(after, out_interface=self._out))

    def on(self, mark: Bits) -> Iterator[Stage]:
        entry = replace(self._reply_entry(mark), is_reply=False)
        for stage in self.there():
            # The kernel translates by the entry, without nat chains, which set pyproxy's mark too.
            if not stage.translates and not stage.masquerades:
                connection = entry if stage.packet.connection else None
                packet = replace(stage.packet, is_first=False, connection=connection)
                packet = replace(packet, mark=number(0), own_mark=0)
                yield replace(stage, packet=packet)

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
            ttl=_SENT if self._path.local else _ANY_TTL,
            way_on=self._in,
        )
        if self._to_here:
            out = "lo" if self._from_here else self._in
            first = replace(first, in_interface="", out_interface=out, hook=Hook.OUTPUT)
            first = replace(first, from_process=True)
        tracked = replace(first, connection=entry)
        if not self._to_here:
            yield from self._devices_in(tracked, replace(tracked, destination=self._client))
        yield Stage(first, high=CONNTRACK, is_translated=True)
        yield Stage(tracked, CONNTRACK, TRANSLATION, is_translated=True)
        after = replace(tracked, destination=self._client)
        moved = self._to_here and self._masked
        yield Stage(after, TRANSLATION, is_translated=True, is_rerouted=moved)
        if self._to_here:
            yield from self._out_of_node(after)
            return
        if self._from_here:
            yield Stage(replace(after, hook=Hook.INPUT), is_translated=True)
            return
        after = replace(after, ttl=_forwarded(after.ttl))
        forward = replace(after, hook=Hook.FORWARD, out_interface=self._in)
        yield Stage(forward, is_translated=True)
        yield from self._out_of_node(replace(after, out_interface=self._in))

    def _reply_entry(self, mark: Bits) -> Connection:
        leaving = self._path.leaving
        status = STATUS_CONFIRMED | STATUS_SEEN_REPLY
        status |= STATUS_DNAT | STATUS_DNAT_DONE | STATUS_SNAT_DONE
        status |= STATUS_SNAT if self._masked else 0
        receiver = self._own if self._masked else self._client
        reply = Tuple(leaving.destination, receiver, leaving.port, CLIENT_PORT)
        return Connection(self._frontend, reply, STATE_ESTABLISHED, status, True, mark)

    def _devices_in(self, packet: HookPacket, translated: HookPacket) -> Iterator[Stage]:
        after = packet.is_reply
        ingress = replace(packet, hook=Hook.INGRESS, connection=None)
        yield Stage(ingress, is_translated=after)
        # br_netfilter calls prerouting, which translates, from within the bridge's own prerouting.
        called = packet.family in packet.host.bridged
        behind = translated if called else packet
        yield _bridge(packet, Hook.PREROUTING, after, high=0)
        yield _bridge(behind, Hook.PREROUTING, after or called, low=0)
        if not self._is_bridged(packet):
            yield _bridge(behind, Hook.INPUT, after or called)

    def _is_bridged(self, packet: HookPacket) -> bool:
        """Return whether a bridge forwards a packet itself after its translation."""
        called = packet.family in packet.host.bridged
        return called and bool(self._in) and self._in == self._out

    def _out_of_node(self, packet: HookPacket) -> Iterator[Stage]:
        # Since Linux 5.7 postrouting has the input device too, but not from a bridge.
        into = "" if self._is_bridged(packet) else packet.in_interface
        out = replace(packet, hook=Hook.POSTROUTING, in_interface=into)
        yield Stage(out, high=MASQUERADE, is_translated=True)
        if packet.is_new:
            yield Stage(out, is_translated=True, masquerades=True)
        out = replace(out, own_mark=0)
        if not packet.is_reply and self._masked:
            out = replace(out, source=self._own)
        elif packet.is_reply:
            out = replace(
                out,
                source=self._path.arriving.destination,
                source_port=self._path.arriving.port,
            )
        yield Stage(out, MASQUERADE, is_translated=True)
        if out.out_interface in ("", "lo"):
            return
        hook = Hook.FORWARD if self._is_bridged(out) and not out.from_process else Hook.OUTPUT
        yield _bridge(out, hook, True)
        yield _bridge(out, Hook.POSTROUTING, True)
        yield Stage(replace(out, hook=Hook.EGRESS, in_interface=""), is_translated=True)


def _bridge(
    packet: HookPacket, hook: Hook, is_translated: bool, low: int = -(1 << 31), high: int = 1 << 31
) -> Stage:
    """Return a stage of a bridge: its own name is known, but not that of its port."""
    comes_in = hook in (Hook.PREROUTING, Hook.INPUT)
    device = (packet.in_interface if comes_in else packet.out_interface) or ""
    changed = replace(
        packet,
        hook=hook,
        in_interface=None if hook is not Hook.OUTPUT else "",
        out_interface="" if comes_in else None,
        bridge_in=device if hook is not Hook.OUTPUT else "",
        bridge_out="" if comes_in else device,
    )
    return Stage(changed, low, high, is_translated=is_translated, bridge=True)


def _forwarded(ttl: Bits) -> Bits:
    return known_bits(bytes((ttl.value - 1,))) if ttl.complete else ttl


def _device(device: str | None) -> str | None:
    """Return a device of a path as hooks have it: a path's "" is unknown, its None is none."""
    if device is None:
        return ""
    return device or None


def _reversed(tuple_: Tuple) -> Tuple:
    return Tuple(tuple_.destination, tuple_.source, tuple_.port, tuple_.source_port)
