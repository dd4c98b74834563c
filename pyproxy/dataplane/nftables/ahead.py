"""The table read back before it is asked for, while the agent still waits for the API server.

The kernel walks a set once more for each part of it that it hands out, so it takes its time over
large ones, and meanwhile it keeps nobody from decoding lists.
"""

from __future__ import annotations

import logging
import threading
from contextlib import closing

from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables.readback import read_table
from pyproxy.errors import KernelError
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import get_generation, read_generation

log = logging.getLogger(__name__)


class ReadAhead:
    """Reads in a thread of its own, once, from when it is made. Raises KernelError."""

    def __init__(self) -> None:
        # A socket is of the network namespace of whoever makes it.
        self._netlink = Nfnetlink()
        self._found: tuple[int, Table] | None = None
        self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)
        self._thread.start()

    def take(self, now: int) -> Table | None:
        """Wait for what was read and give it away, where it is as of the generation `now`.

        None where nf_tables has committed anything since, whatever it was, or nothing could be
        read: then it is to be read again.
        """
        self._thread.join()
        found, self._found = self._found, None
        return found[1] if found is not None and found[0] == now else None

    def _read(self) -> None:
        with closing(self._netlink) as netlink:
            try:
                now = read_generation(netlink.get(get_generation()))
                self._found = now, read_table(netlink)
            except KernelError as error:
                log.debug("the table could not be read ahead: %s", error)
