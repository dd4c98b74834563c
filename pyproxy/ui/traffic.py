"""New connections to this node's Services, where the kernel counts them."""

from __future__ import annotations

from pyproxy.dataplane.nftables.counters import CounterReader, Totals


class Traffic:
    """Reads one total for each frontend, whatever the number of endpoints."""

    def __init__(self) -> None:
        self._reader = CounterReader()
        self._before: Totals | None = None

    def gained(self) -> int | None:
        """Count the connections since the last call; None at the first. Raises KernelError."""
        before, self._before = self._before, None
        self._before = now = self._reader.services()
        return None if before is None else sum(now.since(before).values())

    def close(self) -> None:
        """Give back the socket."""
        self._reader.close()
