"""What policy says of one Service: the shape that every dataplane starts from."""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Final

import msgspec

from pyproxy.model.address import Address, Backend, Family, Network, Port, Protocol, family_of
from pyproxy.model.objects import ObjectName


class Scope(enum.Enum):
    """Which kind of address a frontend has; all but CLUSTER_IP follow the external policy."""

    CLUSTER_IP = "clusterIP"
    EXTERNAL_IP = "externalIP"
    LOAD_BALANCER = "loadBalancer"
    NODE_PORT = "nodePort"


_NODE_PORT: Final = Scope.NODE_PORT


class Use(enum.Enum):
    """Whom a frontend sends its connections to.

    CLUSTER uses `PortRouting.cluster`, masqueraded where the scope is external. LOCAL uses
    `PortRouting.local`, with the client's address kept. SPLIT is the external policy
    Local: pods and the node use `cluster`, all other clients `local`, or are dropped without one.
    REJECT answers at once that nobody is there. DROP is silence: endpoints exist, but none that
    this policy allows.
    """

    CLUSTER = "cluster"
    LOCAL = "local"
    SPLIT = "split"
    REJECT = "reject"
    DROP = "drop"


class Frontend(msgspec.Struct, frozen=True, gc=False):
    """One address and port that clients connect to.

    `address` is empty for a node port, which is answered on all of the node's node port addresses.
    """

    scope: Scope
    address: Address
    port: Port
    use: Use


class PortRouting(msgspec.Struct, frozen=True):
    """What becomes of one port of a Service in one IP family.

    Of `frontends` a node port's comes last. `cluster` and `local` are without repetition, and empty
    where no frontend uses them. Policy gives them sorted; a dataplane that keeps endpoints in
    numbered slots may reorder them, for nothing depends on their order. `hairpin` are the backends
    that may connect to themselves through this node, and must be masqueraded then: those that are
    on it or do not say where they are, and where a frontend is SPLIT all, for it takes pods of
    other nodes for pods too.
    `draining` are backends that terminate and still serve while others get what is new.
    """

    name: str
    family: Family
    protocol: Protocol
    frontends: tuple[Frontend, ...]
    cluster: tuple[Backend, ...]
    local: tuple[Backend, ...]
    hairpin: tuple[Backend, ...] = ()
    draining: tuple[Backend, ...] = ()


class ServiceRouting(msgspec.Struct, frozen=True):
    """What becomes of a whole Service on this node.

    `source_ranges` guard the frontends of scope LOAD_BALANCER: empty means everybody; a family
    without a range of its own, while the other has one, lets nobody in. `affinity_timeout` is in
    seconds, 0 without session affinity. `scheduler` is how IPVS picks, empty for the default.
    """

    name: ObjectName
    ports: tuple[PortRouting, ...]
    source_ranges: tuple[Network, ...] = ()
    affinity_timeout: int = 0
    scheduler: str = ""


def expand_node_ports(routing: ServiceRouting, addresses: Collection[Address]) -> ServiceRouting:
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
