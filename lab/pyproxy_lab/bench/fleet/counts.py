"""Counts of the bytes, requests and encodings that a fleet costs the API server."""

from __future__ import annotations

import msgspec

Table = dict[str, int]


class Counts(msgspec.Struct, frozen=True):
    """Counts up to now, or of a while.

    `received` and `sent` are bytes of clients, the payload of TCP without TLS. `requests` are by
    kind and resource, such as "watch services". `encodings` are by format and cause. `revision` is
    the server's newest version, and `watches` counts those that are open.
    """

    received: int = 0
    sent: int = 0
    connections: int = 0
    requests: Table = {}
    encodings: Table = {}
    revision: int = 0
    watches: int = 0

    def since(self, before: Counts) -> Counts:
        """Return the counts of the time since `before`."""
        return Counts(
            self.received - before.received,
            self.sent - before.sent,
            self.connections - before.connections,
            _minus(self.requests, before.requests),
            _minus(self.encodings, before.encodings),
            self.revision,
            self.watches,
        )

    @property
    def bytes(self) -> int:
        """Bytes in both directions."""
        return self.received + self.sent

    @property
    def all_requests(self) -> int:
        """The number of requests."""
        return sum(self.requests.values())

    @property
    def lists(self) -> int:
        """The number of lists, streaming lists included."""
        return sum(n for key, n in self.requests.items() if key.split()[0] in {"list", "stream"})

    @property
    def encoded(self) -> int:
        """The number of encodings, bookmarks included."""
        return sum(self.encodings.values())


def _minus(table: Table, before: Table) -> Table:
    found = {key: number - before.get(key, 0) for key, number in table.items()}
    return {key: number for key, number in sorted(found.items()) if number}
