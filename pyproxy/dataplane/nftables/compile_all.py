"""All that the table should hold, for all Services at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from pyproxy.dataplane.nft.rows import SharedRow, node_rows
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables.rows import add_service, shared_rows
from pyproxy.model.address import Network
from pyproxy.policy.routing import ServiceRouting


class Cut(msgspec.Struct, frozen=True):
    """A place between two Services: how many there are before it, and rows of each set."""

    services: int
    sizes: Mapping[str, int]


class Whole(msgspec.Struct, frozen=True):
    """The rows of some Services and of the node.

    `shared` is how many users each shared row has. Rows are in the order of their Services, a
    shared one with the first that wants it. `cuts` are where the table can be cut so that each
    Service has all its rows, and those that it shares, before or behind; the last is its end.
    """

    table: Table
    shared: Counter[SharedRow]
    cuts: Sequence[Cut]


def whole(
    routings: Collection[ServiceRouting], pod_networks: Iterable[Network], between_cuts: int
) -> Whole:
    """Compile everything there is, to be cut about each `between_cuts` rows."""
    table = node_rows(pod_networks)
    cuts: list[Cut] = []
    number = size = cut_at = 0
    for number, routing in enumerate(routings, 1):
        add_service(routing, table)
        for set_name, key in shared_rows(routing):
            table.setdefault(set_name, {})[key] = b""
        size = sum(map(len, table.values()))
        if size - cut_at >= between_cuts:
            cuts.append(_cut(number, table))
            cut_at = size
    if size > cut_at or not cuts:
        cuts.append(_cut(number, table))
    # Who shares is remembered. Noted among the rows, which are not, it would keep the interpreter
    # from giving their memory back.
    shared = Counter(row for routing in routings for row in shared_rows(routing))
    return Whole(table, shared, cuts)


def _cut(services: int, table: Table) -> Cut:
    return Cut(services, {name: len(rows) for name, rows in table.items()})
