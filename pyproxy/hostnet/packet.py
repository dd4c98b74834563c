"""The packets of a Service that pass through this node: the questions that the path is asked.

The first packet of a connection is known twice: as it arrives, to the frontend, and as it leaves,
to the endpoint, after the translation in prerouting or output.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from pyproxy.model.address import (
    Address,
    Backend,
    Family,
    Mark,
    Network,
    Port,
    Protocol,
    backend,
    backend_text,
    family_of,
)
from pyproxy.model.destination import Destination


class Origin(enum.Enum):
    """The sender of a packet, in words that follow "from"."""

    POD = "a pod on this node"
    NODE = "this node"
    EXTERNAL = "another host"


class FirstPacket(msgspec.Struct, frozen=True):
    """A new connection's first packet at one place of its way.

    `source` is None if any client of the origin may have sent it; `sample` is then one address of
    such a client, for route lookups, None if none is known. `in_device` is None for a packet that
    this node sends, `out_device` None for one that this node receives; both are empty if they are
    unknown. Of several devices of pods, it is the sample's. `mark` has pyproxy's own bits only.
    """

    protocol: Protocol
    source: Address | None
    destination: Address
    port: Port
    mark: Mark = Mark(0)
    sample: Address | None = None
    in_device: str | None = ""
    out_device: str | None = ""

    @property
    def family(self) -> Family:
        """The packet's IP family."""
        return family_of(self.destination)

    @property
    def target(self) -> Backend:
        """The packet's destination with its port."""
        return backend(self.destination, self.port)

    @property
    def addressed_to(self) -> Destination:
        """The packet's destination with its port and protocol."""
        return Destination(self.destination, self.port, self.protocol)

    def __str__(self) -> str:
        return str(self.addressed_to)


class PacketPath(msgspec.Struct, frozen=True):
    """One way through this node: from an origin over a frontend to an endpoint.

    `arriving` is the packet before translation: in prerouting, or in output if this node sends it.
    `leaving` is the packet after translation: in forward and postrouting, or in input if the
    endpoint is at this node's own address. `node` is the endpoint's node, empty if unknown, and
    `local` is true if it is this one. `masqueraded` is true if the packet gets an address of this
    node as its source, in postrouting. `back_device` is the device of the route to the client,
    empty without a route, None if it is not known.
    """

    origin: Origin
    arriving: FirstPacket
    leaving: FirstPacket
    node: str = ""
    local: bool = False
    masqueraded: bool = False
    back_device: str | None = None

    def __str__(self) -> str:
        return f"from {self.origin.value} to {backend_text(self.leaving.target)}"


class MarkedPacket(msgspec.Struct, frozen=True):
    """A path whose packet, or its reply, has another mark where the kernel routes it.

    The bits of `unknown` are 0 in `mark`, and may be anything.
    """

    path: PacketPath
    mark: Mark
    is_reply: bool = False
    unknown: Mark = Mark(0)


class ServicePaths(msgspec.Struct, frozen=True):
    """The paths of a Service that are examined, and the number of its endpoints in use.

    `examined` of `endpoints` endpoints have a path here; `further` are others, one of each node and
    network, whose routes are examined alone. `node_addresses` and `pod_networks` are those of the
    Node object, `cluster_networks` those of all pods. `required` are the values of sysctls, by
    their names after `net.`, that the proxy mode needs; `owns_iptables` and
    `owns_ipvs` are true if those objects are that mode's own. `by_source` is false if packets
    are routed by the endpoint's address alone. `reason` says why there is no path.
    """

    paths: tuple[PacketPath, ...] = ()
    examined: int = 0
    endpoints: int = 0
    further: tuple[Backend, ...] = ()
    node_addresses: tuple[Address, ...] = ()
    pod_networks: tuple[Network, ...] = ()
    cluster_networks: tuple[Network, ...] = ()
    required: Mapping[str, int] = {}
    owns_iptables: bool = False
    owns_ipvs: bool = False
    by_source: bool = True
    reason: str = ""

    def __str__(self) -> str:
        if self.examined == self.endpoints:
            return f"{self.endpoints:,} endpoint{'s' if self.endpoints != 1 else ''}"
        return f"{self.examined:,} of {self.endpoints:,} endpoints"

    @property
    def families(self) -> tuple[Family, ...]:
        """The families of the paths."""
        return tuple(sorted({path.leaving.family for path in self.paths}))
