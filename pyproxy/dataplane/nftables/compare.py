"""The kernel state of one Service, read element by element, and compared with its routing.

Expected elements are read by their keys. Unexpected elements are searched where they would take
effect: at the Service's frontends in all sets keyed by frontend, and in the slots after the last.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pyproxy.dataplane.diff import diff
from pyproxy.dataplane.interface import StateDiff, TableUsage
from pyproxy.dataplane.nft import listing
from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.loader import check_base_rules, read_layout
from pyproxy.dataplane.nft.readback import read_element, read_tables
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables import chains, schema
from pyproxy.dataplane.nftables.base_rules import NftablesOptions, base_rules
from pyproxy.dataplane.nftables.compile import add_service, shared_rows
from pyproxy.dataplane.nftables.plan import targets
from pyproxy.dataplane.nftables.readback import kernel_slots
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.model.address import Family
from pyproxy.netlink import elements, nftables
from pyproxy.netlink.elements import Shape
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.policy.routing import ServiceRouting

_INDEX = struct.Struct("=I")
# Without AFFINITY, which packets fill.
_BY_FRONTEND = (
    schema.SERVICES,
    schema.NODE_PORTS,
    schema.INTERNAL_SERVICES,
    schema.EXTERNAL_SERVICES,
    schema.INTERNAL_NODE_PORTS,
    schema.EXTERNAL_NODE_PORTS,
    nft.NO_ENDPOINT_SERVICES,
    schema.NO_ENDPOINT_NODE_PORTS,
    nft.SOURCE_RANGE_FRONTENDS,
    schema.AFFINITY_FRONTENDS,
    schema.NODE_PORT_AFFINITY,
    schema.OFFLOAD_SERVICES,
    schema.OFFLOAD_NODE_PORTS,
)
_OF_ADDRESS = schema.ENDPOINTS, schema.AFFINITY_ENDPOINTS, schema.DRAINING_ENDPOINTS
_OF_NODE_PORT = (
    schema.NODE_PORT_ENDPOINTS,
    schema.NODE_PORT_AFFINITY_ENDPOINTS,
    schema.NODE_PORT_DRAINING_ENDPOINTS,
)


def compare(netlink: Nfnetlink, wanted: ServiceRouting, options: NftablesOptions) -> StateDiff:
    """Compare the kernel state of a Service with its routing. Raises KernelError."""
    if TABLE not in read_tables(netlink):
        return StateDiff(rules=(f"table inet {TABLE} does not exist",))
    held = _read(netlink, wanted)
    placed = kernel_slots(held).place(wanted)
    after: Table = {}
    add_service(placed, after)
    for set_name, key in shared_rows(placed):
        after.setdefault(set_name, {})[key] = b""
    delta = diff(held, after)
    return StateDiff(
        tuple(listing.lines(delta.add, schema.BY_NAME)),
        tuple(listing.lines(delta.remove, schema.BY_NAME)),
        tuple(_rules(netlink, options, after)),
    )


def table_usage(netlink: Nfnetlink) -> tuple[TableUsage, ...]:
    """Count the elements of each set that has any, or a limit. Raises KernelError.

    Empty on kernels before 6.16, which do not report the number of elements.
    """
    if TABLE not in read_tables(netlink):
        return ()
    sizes = nftables.read_set_sizes(netlink.dump(nftables.get_sets(TABLE)))
    return tuple(
        TableUsage(name, sizes[name], schema.BY_NAME[name][0].learned)
        for name in sorted(sizes.keys() & schema.BY_NAME.keys())
        if sizes[name] or schema.BY_NAME[name][0].learned
    )


def _rules(netlink: Nfnetlink, options: NftablesOptions, after: Table) -> Iterator[str]:
    if found := check_base_rules(netlink, base_rules(options)):
        yield from found
        return
    # On-demand chains are not base rules, and no digest covers them.
    complete = chains.complete_chains(read_layout(netlink, TABLE))
    for name in chains.needed(targets(after)):
        if name not in complete:
            yield f"chain {name} does not exist, or lacks rules"


def _read(netlink: Nfnetlink, wanted: ServiceRouting) -> Table:
    held: Table = {}

    def read(set_name: str, key: bytes) -> bool:
        found = read_element(netlink, TABLE, set_name, key)
        if found:
            held.setdefault(set_name, {}).update(found)
        return bool(found)

    for port in wanted.ports:
        for frontend in port.frontends:
            key = frontend_key(frontend.address, port.protocol, frontend.port)
            for kind in _BY_FRONTEND:
                # The sets of node ports have shorter keys.
                if kind.key_size(port.family) == len(key):
                    read(kind.of(port.family), key)
            node = not frontend.address
            kinds = _OF_NODE_PORT if node else _OF_ADDRESS
            endpoints, affinity, draining = (kind.of(port.family) for kind in kinds)
            # Slots have no gaps: an empty slot after the last expected one ends the search.
            most = max(len(port.cluster), len(port.local))
            for first in (0, chains.LOCAL_OFFSET):
                for index in range(first, first + chains.LOCAL_OFFSET):
                    if not read(endpoints, key + _INDEX.pack(index)) and index - first >= most:
                        break
            known = {each + b"\0\0" for each in port.cluster + port.local}
            known.update(v for v in held.get(endpoints, {}).values() if isinstance(v, bytes))
            for endpoint in known:
                # Expected endpoints, and those in slots: a key that is neither cannot be guessed.
                read(affinity, key + endpoint)
                read(draining, key + endpoint)
            for leaving in port.draining:
                read(draining, key + leaving + b"\0\0")
            if not node:
                _read_sources(netlink, port.family, key, held)
    for set_name, key in set(shared_rows(wanted)):
        read(set_name, key)
    return held


def _read_sources(netlink: Nfnetlink, family: Family, key: bytes, held: Table) -> None:
    name = nft.SOURCES.of(family)
    # A range can be requested only by its exact bounds, so extra ones show only in a dump.
    ranges = elements.read_elements(
        netlink.dump(elements.get_elements(TABLE, name)), Shape.CONCATENATED_RANGE
    )
    ours = {each: value for each, value in ranges.items() if each.startswith(key)}
    if ours:
        held.setdefault(name, {}).update(ours)
