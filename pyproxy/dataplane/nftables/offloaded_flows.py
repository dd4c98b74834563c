"""Flows on the fast path, by Service and by endpoint.

conntrack has the flows, with a status while a flowtable has them, and their packets and bytes. The
maps of table `inet pyproxy` name the Service of a frontend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

import msgspec

from pyproxy.dataplane.connections import Counted, is_selected
from pyproxy.dataplane.nft.loaded_options import missing_table
from pyproxy.dataplane.nft.lookup import Lookups, find_element
from pyproxy.dataplane.nft.readback import kernel_rows, read_tables
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nftables import schema
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.model.address import Address, Backend, Family, backend_text
from pyproxy.netlink.conntrack import Conntrack
from pyproxy.netlink.elements import Tag
from pyproxy.netlink.flows import Flow
from pyproxy.netlink.nfnetlink import Nfnetlink

OTHER = "other"
"""The owner of flows to none of our frontends: of a Service that is gone, or another program's."""

_PORT_SIZE = 2
_REMEMBERED = 100_000
"""Flows whose counters are kept until the next reading; each takes about 300 bytes."""


class Load(msgspec.Struct, gc=False):
    """The flows of one owner; `packets` and `bytes` are those of their whole life.

    `recent_packets` and `recent_bytes` are those since the reading before.
    """

    flows: int = 0
    packets: int = 0
    bytes: int = 0
    recent_packets: int = 0
    recent_bytes: int = 0


class Loads(msgspec.Struct, frozen=True):
    """One reading; `unmeasured` flows were not in the one before, so nothing of them is recent."""

    by_owner: dict[Counted, Load]
    unmeasured: int


class FlowMeter:
    """Sums up flows by owner, one reading after another."""

    def __init__(self) -> None:
        self._counters: dict[bytes, tuple[int, int]] = {}

    def sum_up(self, flows: Iterable[Flow], owner_of: Callable[[Flow], Counted | None]) -> Loads:
        """Return the loads by owner, of all flows but those without one.

        A flow that comes twice, as a dump may have it, counts once.
        """
        before, self._counters = self._counters, {}
        by_owner: dict[Counted, Load] = {}
        unmeasured = 0
        for flow in flows:
            usage = flow.usage
            key = flow.source + usage.id.to_bytes(4, "big")
            owner = owner_of(flow)
            if owner is None or key in self._counters:
                continue
            load = by_owner.setdefault(owner, Load())
            load.flows += 1
            load.packets += usage.packets
            load.bytes += usage.bytes
            # Removed at once, so that a flow takes memory in one of the readings only.
            if known := before.pop(key, None):
                load.recent_packets += _gain(known[0], usage.packets)
                load.recent_bytes += _gain(known[1], usage.bytes)
            else:
                unmeasured += 1
            if len(self._counters) < _REMEMBERED:
                self._counters[key] = usage.packets, usage.bytes
        return Loads(by_owner, unmeasured)


def _gain(before: int, now: int) -> int:
    # conntrack -Z sets the counters of all entries to 0.
    return now - before if now >= before else now


def service_of(table: Lookups, flow: Flow) -> str:
    """Return `namespace/name:port` of the frontend that a flow was sent to, or OTHER."""
    # Our rules translate every flow that they accept for a frontend.
    if not flow.translated:
        return OTHER
    family, address = flow.family, Address(flow.destination[:-_PORT_SIZE])
    port = int.from_bytes(flow.destination[-_PORT_SIZE:], "big")
    found = None
    if find_element(table, schema.NODE_PORT_ADDRESSES, family, address):
        key = frontend_key(Address(b""), flow.protocol, port)
        found = find_element(table, schema.NODE_PORTS, family, key)
    if found is None:
        key = frontend_key(address, flow.protocol, port)
        found = find_element(table, schema.SERVICES, family, key)
    value = found.value if found is not None else None
    return (value.comment if isinstance(value, Tag) else "") or OTHER


class OffloadedFlowReader:
    """Reads the flows of the network namespace that it is made in.

    The methods block for a dump of conntrack. They raise KernelError.
    """

    def __init__(self) -> None:
        self._netlink = Nfnetlink()
        self._conntrack = Conntrack()
        self._meter = FlowMeter()

    def close(self) -> None:
        """Close the sockets; idempotent."""
        self._netlink.close()
        self._conntrack.close()

    def require(self) -> None:
        """Raise UsageError if the kernel has no table of ours."""
        if TABLE not in read_tables(self._netlink):
            raise missing_table(TABLE, "nftables", "top --offloaded")

    def read(self, wanted: str, *, by_endpoint: bool) -> Loads:
        """Read the flows of the Services that `wanted` names, as in `ConnectionCounters`.

        Flows of no Service are one owner, OTHER, which is included if `wanted` is empty.
        """
        # Each frontend is looked up once per reading, so that changed Services are seen.
        table = kernel_rows(self._netlink, TABLE, schema.BY_NAME)

        def owner_of(flow: Flow) -> Counted | None:
            service = service_of(table, flow)
            if not is_selected(service, wanted):
                return None
            # Its endpoints could be any addresses, and so of any number.
            if by_endpoint and service != OTHER:
                return Counted(service, backend_text(Backend(flow.reply_source)))
            return Counted(service)

        pieces = chain.from_iterable(self._conntrack.offloaded(family) for family in Family)
        return self._meter.sum_up(chain.from_iterable(pieces), owner_of)
