"""From "a node port" to the addresses on which this node answers it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

from pyproxy.model.address import Address, family_of
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting

_NODE_PORT: Final = Scope.NODE_PORT


def on_addresses(routing: ServiceRouting, addresses: Collection[Address]) -> ServiceRouting:
    """Put a node port's frontend on each of the node's addresses, of the port's family.

    From there on a node port is a frontend like any other, and one that meets an external IP on
    the node's own address is seen to do so.
    """
    for port in routing.ports:  # mostly all of them, and so no generator
        # A node port comes after all addresses.
        if port.frontends and port.frontends[-1].scope is _NODE_PORT:
            break
    else:
        return routing
    ports = tuple(_spread(port, addresses) for port in routing.ports)
    return msgspec.structs.replace(routing, ports=ports)


def _is_node_port(frontend: Frontend) -> bool:
    return frontend.scope is _NODE_PORT and not frontend.address


def _spread(port: PortRouting, addresses: Collection[Address]) -> PortRouting:
    own = [address for address in addresses if family_of(address) is port.family]
    taken = {(f.address, f.port) for f in port.frontends}
    spread: list[Frontend] = []
    for frontend in port.frontends:
        if not _is_node_port(frontend):
            spread.append(frontend)
            continue
        spread.extend(
            msgspec.structs.replace(frontend, address=address)
            for address in own
            if (address, frontend.port) not in taken
        )
    return msgspec.structs.replace(port, frontends=tuple(spread))
