"""Has the kernel tell which rules packets meet, by a table of our own that is gone afterwards.

The table belongs to the socket that made it, and the kernel removes it with the process. Before
Linux 5.12 nobody owns tables: one that is left of a process that was killed goes at the next start.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping

from pyproxy.dataplane.nftables.packet_trace import Assembly, PacketTrace, journey, rule_texts
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.errors import PermissionKernelError, RejectedError
from pyproxy.netlink import nftables
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM, delete_table
from pyproxy.netlink.tracing import Match, TraceSocket, trace_table

_PREFIX = f"{TABLE}-trace-"
_QUIET = 0.3
_POLL = 0.1


class LiveTrace:
    """Traces matching packets from when it is made until `close`. Raises KernelError."""

    def __init__(self, match: Match) -> None:
        self._name = f"{_PREFIX}{os.getpid()}"
        self._texts: dict[tuple[str, str], Mapping[tuple[str, int], str]] = {}
        self._netlink = Nfnetlink()
        self._socket = TraceSocket()
        try:
            self._sweep()
            self._set(match)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Have nothing traced any more."""
        self._netlink.transact([delete_table(self._name)], SUBSYSTEM)
        self._netlink.close()
        self._socket.close()

    def packet_traces(self, seconds: float) -> Iterator[PacketTrace | None]:
        """Wait for packets, for `seconds`, and tell of each once it has gone its way.

        None says that something was lost, for more was told than could be read.
        """
        assembly = Assembly(_QUIET)
        until = time.monotonic() + seconds
        while time.monotonic() < until + _QUIET + _POLL:
            told = self._socket.wait(_POLL)
            if told is None:
                yield None
            now = time.monotonic()
            assembly.take(told or (), now)
            for events in assembly.finished(now):
                yield journey(events, self._name, self._rule, _interface)

    def _sweep(self) -> None:
        for name in nftables.read_table_names(self._netlink.dump(nftables.get_tables())):
            if name.startswith(_PREFIX):
                for refusal in self._netlink.transact([delete_table(name)], SUBSYSTEM):
                    # Another's, who is at it now.
                    if not isinstance(refusal.error, PermissionKernelError):
                        raise refusal.error

    def _set(self, match: Match) -> None:
        for owned in (True, False):
            refusals = self._netlink.transact(
                trace_table(self._name, match, owned=owned), SUBSYSTEM
            )
            if not refusals:
                return
            if not (owned and isinstance(refusals[0].error, RejectedError)):
                raise refusals[0].error

    def _rule(self, family: str, table: str, chain: str, handle: int) -> str:
        known = self._texts.get((family, table), {})
        if (chain, handle) not in known:
            known = self._texts[family, table] = _list(family, table)
        return known.get((chain, handle), f"rule {handle}")


def _list(family: str, table: str) -> Mapping[tuple[str, int], str]:
    done = subprocess.run(
        ["nft", "-a", "-t", "list", "table", family, table],
        capture_output=True,
        text=True,
        check=False,
    )
    # A rule that nft cannot spell is told by its number.
    return rule_texts(done.stdout)


def _interface(number: int) -> str:
    try:
        return socket.if_indextoname(number)
    except OSError:
        return f"interface {number}"
