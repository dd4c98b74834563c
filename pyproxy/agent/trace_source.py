"""The source address and interface of a packet to trace."""

from __future__ import annotations

from pyproxy.agent.node_addresses import route_to
from pyproxy.dataplane.packets import Packet
from pyproxy.errors import UsageError
from pyproxy.model.address import Address, Family, address_text, family_of, parse_address
from pyproxy.model.destination import Destination

NODE, OUTSIDE = "node", "outside"

_OUTSIDE_ADDRESSES = {
    Family.IPV4: parse_address("203.0.113.1"),
    Family.IPV6: parse_address("2001:db8::cb00:7101"),
}
"""Documentation addresses (RFC 5737 and 3849), which belong to no pod and to few source ranges."""


def packet_from(sender: str, target: Destination, interface: str = "") -> Packet:
    """Return the packet that `sender` would send: an address, NODE, or OUTSIDE.

    The caller resolves pod names to addresses. A packet of another machine arrives by `interface`
    if given, or else by the interface of the route back. Blocks for a route lookup. Raises
    UsageError, KernelError.
    """
    source, found = _place(sender, target)
    return Packet(source, target.address, target.protocol, target.port, interface or found)


def _place(sender: str, target: Destination) -> tuple[Address, str]:
    if sender == NODE:
        route = route_to(target.address)
        if route is None:
            raise UsageError(
                f"--to {address_text(target.address)}: this node has no route to it, so it "
                "sends nothing there: name a sender by its address"
            )
        return route.source, ""
    family = family_of(target.address)
    source = _OUTSIDE_ADDRESSES[family] if sender == OUTSIDE else _address(sender)
    if family_of(source) is not family:
        raise UsageError(
            f"--from {sender} and --to {address_text(target.address)}: one is IPv4 and the other "
            "IPv6: give both in one family"
        )
    route = route_to(source)
    if route is None:
        raise UsageError(
            f"--from {sender}: this node has no route there: say by which interface the packet "
            "comes in with --interface"
        )
    return source, "" if route.here else route.interface


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise UsageError(
            f"--from {text}: write an address, a pod's NAMESPACE/NAME, {NODE} or {OUTSIDE}"
        ) from error
