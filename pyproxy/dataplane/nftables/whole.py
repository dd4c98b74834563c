"""All that the table should hold, for all Services at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from pyproxy.dataplane.nftables.rows import SharedRow, add_service, node_rows, shared_rows
from pyproxy.dataplane.nftables.schema import Table
from pyproxy.model.address import Network
from pyproxy.policy.answer import ServiceAnswer


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
    answers: Iterable[ServiceAnswer], pod_networks: Iterable[Network], between_cuts: int
) -> Whole:
    """Compile everything there is, to be cut about each `between_cuts` rows."""
    table = node_rows(pod_networks)
    wanted: list[SharedRow] = []
    cuts: list[Cut] = []
    number = size = cut_at = 0
    for number, answer in enumerate(answers, 1):
        add_service(answer, table)
        # At once, for what has just been touched is still near the processor.
        for row in shared_rows(answer):
            wanted.append(row)
            table.setdefault(row[0], {})[row[1]] = b""
        size = sum(map(len, table.values()))
        if size - cut_at >= between_cuts:
            cuts.append(_cut(number, table))
            cut_at = size
    if size > cut_at or not cuts:
        cuts.append(_cut(number, table))
    return Whole(table, Counter(wanted), cuts)


def _cut(services: int, table: Table) -> Cut:
    return Cut(services, {name: len(rows) for name, rows in table.items()})
