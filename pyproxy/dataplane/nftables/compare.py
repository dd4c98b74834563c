"""What the kernel holds of one Service, asked for element by element: a few dozen small questions.

What must be there is known by its key. What must not be is looked for where it could do harm: at
the Service's frontends in every set that is keyed by frontend, and in the slots after its last.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pyproxy.dataplane.diff import diff
from pyproxy.dataplane.interface import StateDiff, TableUsage
from pyproxy.dataplane.nftables import chains, listing, schema
from pyproxy.dataplane.nftables.layout import read_layout
from pyproxy.dataplane.nftables.plan import targets
from pyproxy.dataplane.nftables.readback import read_tables, recall
from pyproxy.dataplane.nftables.reference_ruleset import differences, pristine
from pyproxy.dataplane.nftables.rows import add_service, frontend_key, shared_rows
from pyproxy.dataplane.nftables.ruleset import Options
from pyproxy.dataplane.nftables.schema import TABLE, Rows, Table
from pyproxy.errors import PermissionKernelError, StaleStateError
from pyproxy.model.address import Family
from pyproxy.netlink import elements, nftables
from pyproxy.netlink.elements import Shape
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.policy.routing import ServiceRouting

_INDEX = struct.Struct("=I")
_BY_FRONTEND = (
    schema.SERVICES,
    schema.INTERNAL_SERVICES,
    schema.EXTERNAL_SERVICES,
    schema.NO_ENDPOINT_SERVICES,
    schema.SOURCE_RANGE_FRONTENDS,
    schema.AFFINITY_FRONTENDS,
)


def compare(netlink: Nfnetlink, wanted: ServiceRouting, options: Options) -> StateDiff:
    """Compare what the kernel holds of a Service with what it should. Raises KernelError."""
    if TABLE not in read_tables(netlink):
        return StateDiff(rules=(f"table inet {TABLE} is not there",))
    held = _read(netlink, wanted)
    placed = recall(held).place(wanted)
    after: Table = {}
    add_service(placed, after)
    for set_name, key in shared_rows(placed):
        after.setdefault(set_name, {})[key] = b""
    delta = diff(held, after)
    return StateDiff(
        tuple(listing.lines(delta.add)),
        tuple(listing.lines(delta.remove)),
        tuple(_rules(netlink, options, after)),
    )


def table_usage(netlink: Nfnetlink) -> tuple[TableUsage, ...]:
    """Count each set's elements, of those that have any. Raises KernelError.

    Kernels before 6.16 do not say.
    """
    if TABLE not in read_tables(netlink):
        return ()
    sizes = nftables.read_set_sizes(netlink.dump(nftables.get_sets(TABLE)))
    return tuple(
        TableUsage(name, sizes[name], schema.BY_NAME[name][0].learned)
        for name in sorted(sizes.keys() & schema.BY_NAME.keys())
        if sizes[name]
    )


def check_base_rules(netlink: Nfnetlink, options: Options) -> tuple[str, ...]:
    """Name what is to be done to the fixed rules, chains and sets. Raises KernelError."""
    layout = read_layout(netlink)
    if layout.is_loaded(options):
        return ()
    try:
        found = tuple(differences(layout, pristine(options)))
    except PermissionKernelError:
        return ("the fixed rules are not as they were loaded; with CAP_SYS_ADMIN they are named",)
    return found or ("the fixed rules belong to other flags, or to another version",)


def _rules(netlink: Nfnetlink, options: Options, after: Table) -> Iterator[str]:
    if found := check_base_rules(netlink, options):
        yield from found
        return
    layout = read_layout(netlink)
    whole = layout.whole_chains()
    for name in chains.needed(targets(after)):
        if name not in whole:
            yield f"chain {name} is not there, or lacks rules"


def _read(netlink: Nfnetlink, wanted: ServiceRouting) -> Table:
    held: Table = {}

    def take(set_name: str, key: bytes) -> bool:
        found = _element(netlink, set_name, key)
        if found:
            held.setdefault(set_name, {}).update(found)
        return bool(found)

    for port in wanted.ports:
        for frontend in port.frontends:
            key = frontend_key(frontend.address, port.protocol, frontend.port)
            for kind in _BY_FRONTEND:
                take(kind.of(port.family), key)
            endpoints = schema.ENDPOINTS.of(port.family)
            most = max(len(port.cluster), len(port.local))
            for first in (0, chains.LOCAL_OFFSET):
                for index in range(first, first + chains.LOCAL_OFFSET):
                    if not take(endpoints, key + _INDEX.pack(index)) and index - first >= most:
                        break
            known = {each + b"\0\0" for each in port.cluster + port.local}
            known.update(v for v in held.get(endpoints, {}).values() if isinstance(v, bytes))
            for endpoint in known:
                take(schema.AFFINITY_ENDPOINTS.of(port.family), key + endpoint)
            _take_sources(netlink, port.family, key, held)
    for set_name, key in set(shared_rows(wanted)):
        take(set_name, key)
    return held


def _take_sources(netlink: Nfnetlink, family: Family, key: bytes, held: Table) -> None:
    name = schema.SOURCES.of(family)
    ranges = elements.read_elements(
        netlink.dump(elements.get_elements(TABLE, name)), Shape.CONCATENATED_RANGE
    )
    ours = {each: value for each, value in ranges.items() if each.startswith(key)}
    if ours:
        held.setdefault(name, {}).update(ours)


def _element(netlink: Nfnetlink, set_name: str, key: bytes) -> Rows:
    try:
        routing = netlink.get(elements.get_element(TABLE, set_name, key))
    except StaleStateError:  # no such element, or no such set
        return {}
    return elements.read_elements([routing], Shape.EXACT)
