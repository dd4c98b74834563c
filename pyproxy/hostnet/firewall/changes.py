"""Changes of a packet by a rule that make its further way unknown.

Each is the end of a sentence that begins "passes packets"; it is empty if packets are not affected.
"""

from __future__ import annotations

from pyproxy.hostnet.firewall.bits import Bits, number
from pyproxy.hostnet.firewall.hook_packet import HookPacket
from pyproxy.model.address import Address, address_text

_FEW_HOPS = 8
OTHER_ZONE = "to a conntrack zone, where their replies have to be too"


def is_loopback(address: Address) -> bool:
    """Return whether an address is of the device lo alone."""
    return address == bytes(15) + b"\1" or (len(address) == 4 and address[0] == 127)


def foreign_source(address: Address, packet: HookPacket) -> str:
    """Return the change by a translation of the source to an address that this node lacks."""
    if packet.out_interface != "lo" and is_loopback(address):
        return f"on with the source {address_text(address)}, which no other host replies to"
    if address in packet.host.local or not any(address):
        return ""
    return f"on with the source {address_text(address)}, which is no address of this node"


def without_mark(before: HookPacket, after: HookPacket) -> str:
    """Return the change by a rule that clears the mark by which pyproxy masquerades."""
    bits = number(before.own_mark).value
    if after is before or not bits or not after.mark.known & bits:
        return ""
    if after.mark.value & bits == before.mark.value & bits:
        return ""
    return f"on without the mark {before.own_mark:#x}, so that they keep the client's address"


def short_lived(ttl: Bits) -> str:
    """Return the change by a rule that sets the TTL or the hop limit."""
    if ttl.low > _FEW_HOPS:
        return ""
    return f"on with TTL {ttl.low}" if ttl.complete else "on with another TTL"
