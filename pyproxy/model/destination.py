"""The destination of a connection: address, port and protocol, with a text format."""

from __future__ import annotations

import msgspec

from pyproxy.model.address import (
    Address,
    Port,
    Protocol,
    address_text,
    backend,
    backend_text,
    parse_address,
)


class Destination(msgspec.Struct, frozen=True):
    """An address, port and protocol that a client connects to."""

    address: Address
    port: Port
    protocol: Protocol = Protocol.TCP

    @property
    def socket_address(self) -> tuple[str, int]:
        """The address as text and the port, as `socket.connect` expects them."""
        return address_text(self.address), self.port

    def __str__(self) -> str:
        return f"{backend_text(backend(self.address, self.port))}/{self.protocol.name.lower()}"


def parse_destination(text: str) -> Destination:
    """Parse `10.96.0.1:80`, `10.96.0.1:53/udp` or `[fd00::1]:80`. Raises ValueError."""
    place, _, protocol = text.partition("/")
    host, _, port = place.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    # Colons in `host` without brackets: an IPv6 address without a port.
    if bracketed is not (":" in host):
        raise ValueError(_error(text))
    number = int(port) if port.isascii() and port.isdigit() else 0
    kinds = {kind.name.lower(): kind for kind in Protocol}
    kind = kinds.get((protocol or "tcp").lower())
    try:
        address = parse_address(host.removeprefix("[").removesuffix("]"))
    except ValueError as error:
        raise ValueError(_error(text)) from error
    if kind is None or not 0 < number < 1 << 16:
        raise ValueError(_error(text))
    return Destination(address, Port(number), kind)


def _error(text: str) -> str:
    return (
        f"{text!r} is not a destination: write ADDRESS:PORT, with a port from 1 to 65535, and "
        "/udp or /sctp after it unless it is TCP; for IPv6 [ADDRESS]:PORT"
    )
