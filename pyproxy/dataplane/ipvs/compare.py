"""The difference between kernel state and desired state for one Service.

The rows are planned as in a full sync, so that a draining server is no difference.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Protocol

from pyproxy.dataplane.interface import StateDiff
from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.draining import Change, Draining, plan_delta
from pyproxy.dataplane.ipvs.kernel import Addresses
from pyproxy.dataplane.ipvs.marks import Marks, assign_marks
from pyproxy.dataplane.ipvs.plan import row_lines
from pyproxy.dataplane.ipvs.rows import add_service, shared_rows, virtuals_by_address
from pyproxy.dataplane.ipvs.ruleset import Options
from pyproxy.dataplane.ipvs.schema import ADDRESSES_ON_DEVICE, DEVICE, SERVERS, VIRTUALS
from pyproxy.dataplane.nft.rows import SharedRow, frontend_key
from pyproxy.netlink.ipvs import Scheduling, Server, Virtual
from pyproxy.policy.routing import ServiceRouting

_BY_FRONTEND = (
    schema.FRONTENDS,
    schema.MASQUERADED,
    schema.INTERNAL_SERVICES,
    schema.DROPPED,
    schema.NO_ENDPOINT_SERVICES,
    schema.SOURCE_RANGE_FRONTENDS,
)


class Ipvs(Protocol):
    """Reads IPVS and the device. The methods block, are idempotent, and raise KernelError."""

    def virtuals(self) -> dict[Virtual, Scheduling]:
        """Read all virtual services."""
        ...

    def servers(self, virtual: Virtual) -> list[Server]:
        """Read the real servers of a virtual service."""
        ...

    def addresses(self) -> Addresses:
        """Read all devices' addresses."""
        ...


class Rules(Protocol):
    """Reads the table of rules. The methods block, are idempotent, and raise KernelError."""

    def read(self) -> schema.Table:
        """Read all elements."""
        ...

    def check(self, options: Options) -> tuple[str, ...]:
        """Return a line for each difference in the base rules of these options."""
        ...


def compare(kernel: Ipvs, rules: Rules, wanted: ServiceRouting, options: Options) -> StateDiff:
    """Compare one Service, and the base rules and the device. Raises KernelError."""
    here = kernel.addresses()
    held: schema.Table = {
        **rules.read(),
        VIRTUALS: dict(kernel.virtuals()),
        ADDRESSES_ON_DEVICE: dict.fromkeys(here.ours, b""),
    }
    # A command has no last commit: a mark's number is the one in the kernel's elements.
    marks = assign_marks([wanted], held, Marks({}))
    after: schema.Table = {}
    add_service(wanted, marks.numbers, options.scheduler, after)
    for set_name, key in shared_rows(wanted):
        after.setdefault(set_name, {})[key] = b""
    virtuals = after.get(VIRTUALS, {}).keys() | {
        virtual for virtual in virtuals_by_address(wanted) if virtual in held[VIRTUALS]
    }
    held[SERVERS] = {
        (virtual, server.backend): schema.weight_of(server)
        for virtual in virtuals & held[VIRTUALS].keys()
        for server in kernel.servers(virtual)
    }

    def is_needed(row: SharedRow) -> bool:
        # A shared row that this Service does not need may be needed by another.
        name, key = row
        return key in after.get(name, {}) or key in held.get(name, {})

    change = Change(_touched(wanted, held, after, virtuals), after, is_needed, here.others)
    delta = plan_delta(held, Draining(), change).delta
    return StateDiff(
        tuple(row_lines(_sorted(delta.add))),
        tuple(row_lines(_sorted(delta.remove))),
        tuple(check_base_rules(rules, options, here)),
    )


def check_base_rules(rules: Rules, options: Options, here: Addresses) -> Iterator[str]:
    """Yield a line for each difference in the base rules, and one for a missing device."""
    yield from rules.check(options)
    if not here.device:
        yield f"add device {DEVICE}"


def _sorted(table: schema.Table) -> schema.Table:
    # The keys come from sets, whose order differs from process to process.
    return {name: dict(sorted(rows.items(), key=_text_of_key)) for name, rows in table.items()}


def _text_of_key(row: tuple[Hashable, object]) -> str:
    return repr(row[0])


def _touched(
    wanted: ServiceRouting, held: schema.Table, after: schema.Table, virtuals: AbstractSet[Virtual]
) -> Mapping[str, AbstractSet[Hashable]]:
    """Return the keys of the Service's rows, and of all rows that may contradict them."""
    touched: dict[str, set[Hashable]] = {name: set(rows) for name, rows in after.items()}
    touched.setdefault(VIRTUALS, set()).update(virtuals)
    touched.setdefault(SERVERS, set()).update(held[SERVERS])
    for port in wanted.ports:
        for frontend in port.frontends:
            key = frontend_key(frontend.address, port.protocol, frontend.port)
            for kind in _BY_FRONTEND:
                touched.setdefault(kind.of(port.family), set()).add(key)
            sources = schema.SOURCES.of(port.family)
            touched.setdefault(sources, set()).update(
                each for each in held.get(sources, {}) if each.startswith(key)
            )
    return touched
