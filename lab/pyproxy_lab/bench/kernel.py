"""The time at which the kernel has an address, from nf_tables' notifications.

It is found in the same way for every agent. The address of a new pod is in the transaction, packed
in an element or a rule, or as text in a name.
"""

from __future__ import annotations

import gc
import os
import re
import select
import socket
import struct
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress

from pyproxy.model.address import Address, address_text
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import get_generation, read_generation
from pyproxy.netlink.sockets import grow_receive_buffer
from pyproxy_lab.bench.cluster import Churn, Cluster, Done, Order
from pyproxy_lab.bench.shape import FRESH_POD, pod_ip
from pyproxy_lab.namespace import LabError

_NETLINK_NETFILTER = 12
_GROUP_NFTABLES = 7
_NEW_GENERATION = 10 << 8 | 15
_BUFFER = 256 << 20
_READ = 1 << 20
_PRIORITY = 40

_FIRST = int(pod_ip(FRESH_POD).split(".")[1])
_PACKED = re.compile(rb"\x0a[%c-%c].." % (_FIRST, _FIRST + 7), re.DOTALL)
_TEXT = re.compile(rb"10\.20[0-7]\.\d{1,3}\.\d{1,3}")


def transactions() -> int:
    """Return the number of nf_tables' last transaction here, of 32 bits. It costs nothing."""
    with closing(Nfnetlink()) as netlink:
        return read_generation(netlink.get(get_generation()))


class Announcements:
    """A context manager: inside it the kernel notifies of every change of nf_tables.

    All agents bear its cost alike, and none while the first sync is measured.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        grow_receive_buffer(self._socket, _BUFFER)
        self._socket.bind((0, 1 << (_GROUP_NFTABLES - 1)))
        self._open: set[str] = set()
        self.commits = 0
        self.seen: dict[str, float] = {}

    def __enter__(self) -> Announcements:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def forget(self) -> None:
        """Have what was announced before now not count."""
        while self._read(0.0):
            pass
        self.seen.clear()
        self.commits = 0

    def await_pods(self, pods: Collection[str], patience: float) -> float:
        """Wait until each of these addresses has been committed; the time of the last.

        Raises LabError.
        """
        deadline = time.monotonic() + patience
        while not all(pod in self.seen for pod in pods):
            if not self._read(max(0.0, deadline - time.monotonic())):
                missing = sum(pod not in self.seen for pod in pods)
                raise LabError(f"{missing} of {len(pods)} new pods are not in the kernel")
        return max(self.seen[pod] for pod in pods)

    def await_commit(self, patience: float) -> float:
        """Wait for the next transaction, whatever is in it. Raises LabError."""
        before = self.commits
        deadline = time.monotonic() + patience
        while self.commits == before:
            if not self._read(max(0.0, deadline - time.monotonic())):
                raise LabError("the kernel has notified of no change")
        return time.monotonic()

    def latencies(self, api: Cluster, churn: Churn, patience: float) -> list[float]:
        """Have a churn made, and return the seconds of each pod that was seen.

        Raises LabError as `churned`.
        """
        written = self.churned(api, churn, patience).pods
        return [self.seen[pod] - at for pod, at in written.items() if pod in self.seen]

    def churned(self, api: Cluster, churn: Churn, patience: float) -> Done:
        """Have a churn made, and wait until the kernel has its last pod; `seen` has the times.

        A pod that was replaced before anybody programmed it is not seen. Raises LabError where the
        last one never comes.
        """
        deadline = time.monotonic() + churn.seconds
        with _undelayed():
            api.begin(Order(churn=churn))
            while (left := deadline - time.monotonic()) > 0:
                self._read(left)
            done = api.finish()
            self.await_pods(list(done.pods)[-1:], patience)
        return done

    def _read(self, patience: float) -> bool:
        ready, _, _ = select.select([self._socket], [], [], patience)
        if not ready:
            return False
        try:
            data = self._socket.recv(_READ)
        except OSError as error:
            raise LabError(f"the kernel's announcements were lost: {error.strerror}") from error
        now = time.monotonic()
        self._open.update(address_text(Address(found)) for found in _PACKED.findall(data))
        self._open.update(found.decode() for found in _TEXT.findall(data))
        if _ends_commit(data):
            self.commits += 1
            for pod in self._open:
                self.seen.setdefault(pod, now)
            self._open.clear()
        return True


@contextmanager
def _undelayed() -> Iterator[None]:
    """Inside it, read notifications as they come, whatever else runs on the machine.

    The time of a notification is that of reading it. A reader that waits for a processor, or that
    collects garbage, would add that to the time of the change.
    """
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    gc.disable()
    try:
        # Not permitted in some containers.
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)
        gc.enable()


def _ends_commit(data: bytes) -> bool:
    offset = 0
    while offset + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        if kind == _NEW_GENERATION:
            return True
        offset += max(16, (length + 3) & ~3)
    return False
