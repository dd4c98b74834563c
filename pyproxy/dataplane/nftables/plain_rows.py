"""Pack Services with one cluster IP, as most are, straight from their routings.

A first sync packs tens of thousands of these. Each element is joined from pieces, without the rows
that `compile` makes of other Services. The elements are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Final

from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.rows import PORT_PADDING, SharedRow, frontend_key, packed_comment
from pyproxy.dataplane.nftables import chains, schema
from pyproxy.dataplane.nftables.compile import OFFLOADED, picking_cluster_ip, slot_numbers
from pyproxy.dataplane.nftables.schema import INDEX_SIZE, TABLE
from pyproxy.model.address import Family
from pyproxy.netlink.elements import ElementMessage, add_packed, frame, tag_frame
from pyproxy.policy.routing import Scope, ServiceRouting, Use

_CLUSTER: Final = Use.CLUSTER
_CLUSTER_IP: Final = Scope.CLUSTER_IP
_SLOTS: Final = chains.CLUSTER
_CLUSTER_IPS = {family: nft.CLUSTER_IPS.of(family) for family in Family}


class _Elements:
    """The packed elements of one family, by their sets, and the pieces between keys and values."""

    def __init__(self, family: Family) -> None:
        self.services: list[bytes] = []
        self.endpoints: list[bytes] = []
        self.offload: list[bytes] = []
        self.cluster_ips: list[bytes] = []
        address = family.bits // 8
        self.key_size = schema.SERVICES.key_size(family)
        before, *others = frame(self.key_size, 0)
        self.offload_pieces = before, b"".join(others)
        before, between, behind = frame(self.key_size + INDEX_SIZE, address + 4)
        self.endpoint_pieces = before, between, PORT_PADDING + behind
        self.cluster_ip_before, *others = frame(address, 0)
        self.cluster_ip_behind = b"".join(others)


class PlainRows:
    """The packed elements of Services.

    Their verdicts lead to the chains in `targets`, and `shared` are the rows among them that other
    Services may need.
    """

    def __init__(self) -> None:
        self.targets: set[str] = set()
        self.shared: list[SharedRow] = []
        self._of = {family: _Elements(family) for family in Family}

    def add(self, routing: ServiceRouting) -> bool:
        """Pack the rows of a Service and its cluster IP; return False for another kind of Service.

        Rows of endpoints that may reach themselves are left to the caller.
        """
        if len(routing.ports) != 1 or routing.affinity_timeout:
            return False
        (port,) = routing.ports
        if len(port.frontends) != 1 or (routing.offload and (port.draining or port.fallback)):
            return False
        (only,) = port.frontends
        if only.scope is not _CLUSTER_IP or only.use is not _CLUSTER:
            return False
        family, backends, address = port.family, port.cluster, only.address
        found = self._of[family]
        key = frontend_key(address, port.protocol, only.port)
        comment = packed_comment(routing.name, port.name)
        target = picking_cluster_ip(family, len(backends))
        self.targets.add(target)
        before, between, behind = tag_frame(found.key_size, target, len(comment))
        found.services.append(before + key + between + comment + behind)
        before, between, behind = found.endpoint_pieces
        numbers = slot_numbers(_SLOTS, len(backends))
        if len(backends) == 1:
            found.endpoints.append(before + key + numbers[0] + between + backends[0] + behind)
        else:
            before += key
            # There may be more numbers than endpoints.
            for index, backend in zip(numbers, backends, strict=False):
                found.endpoints.append(before + index + between + backend + behind)
        if routing.offload and port.protocol in OFFLOADED:
            before, behind = found.offload_pieces
            found.offload.append(before + key + behind)
        self.shared.append((_CLUSTER_IPS[family], address))
        found.cluster_ips.append(found.cluster_ip_before + address + found.cluster_ip_behind)
        return True

    def messages(self) -> Iterator[ElementMessage]:
        """Yield the messages that add these elements."""
        for family, found in self._of.items():
            yield from chain(
                add_packed(TABLE, schema.SERVICES.of(family), found.services),
                add_packed(TABLE, schema.ENDPOINTS.of(family), found.endpoints),
                add_packed(TABLE, schema.OFFLOAD_SERVICES.of(family), found.offload),
                add_packed(TABLE, _CLUSTER_IPS[family], found.cluster_ips),
            )
