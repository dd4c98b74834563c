"""Writes without notifications of our own, and other programs' writes meanwhile.

The kernel notifies a listener of each element that a transaction writes, also of its own. A large
transaction would overflow the socket, and those of nft come from a socket that is not ours. The
monitor is paused for both. nf_tables increments its generation with each transaction of any
program, so that counting our own shows whether there were others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyproxy.netlink.monitor import Monitor
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import get_generation, read_generation

_GENERATIONS = 1 << 32


@contextmanager
def without_notifications(netlink: Nfnetlink, monitor: Monitor) -> Iterator[None]:
    """Inside it `monitor` is paused; afterwards it reports other programs' transactions, if any.

    `netlink` must count all of our own transactions. Raises KernelError.
    """
    before = _others(netlink)
    monitor.pause()
    try:
        yield
    finally:
        # Listening comes first: a write in between is then counted or notified, or both.
        monitor.listen()
        # Fewer than before: a batch of ours changed nothing, and so was no transaction.
        if 0 < (_others(netlink) - before) % _GENERATIONS < _GENERATIONS // 2:
            monitor.missed()


def _others(netlink: Nfnetlink) -> int:
    """Count all transactions but those of `netlink`, modulo the range of generations."""
    return read_generation(netlink.get(get_generation())) - netlink.committed
