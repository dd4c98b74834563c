"""What pyproxy asks of each of the kernel's schedulers, and the share that each gives a server.

Facts: net/netfilter/ipvs/ip_vs_*.c. sh and mh hash a client to a server. For a server with weight 0
they find none, and the client is rejected, unless a flag makes them fall back to the next server.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from pyproxy.netlink.ipvs import PERSISTENT, SCHED_1, SCHED_2, Scheduling, Server

_FALLBACK, _WITH_PORT = SCHED_1, SCHED_2
_FLAGS = {"sh": _FALLBACK, "mh": _FALLBACK | _WITH_PORT}

_IN_TURN = ("rr", "wrr")
_BLIND_TO_WEIGHTS = ("rr", "lc", "dh")


def scheduling(scheduler: str, affinity_timeout: int) -> Scheduling:
    """Return a virtual service's scheduling; the timeout is in seconds, 0 for no affinity.

    As in kube-proxy, mh hashes the client's address and port, and sh the address alone.
    """
    flags = _FLAGS.get(scheduler, 0) | (PERSISTENT if affinity_timeout else 0)
    return Scheduling(scheduler, flags, affinity_timeout)


def scheduling_by_mark(scheduler: str, affinity_timeout: int) -> Scheduling:
    """Return the scheduling of a virtual service by mark, which is never persistent.

    ip_vs_sched_persist() translates the port only of virtual services by address: a persistent one
    by mark would send to the frontend's port of the pod. Affinity is sh's, by the client's address.
    """
    return scheduling("sh" if affinity_timeout else scheduler, 0)


def shares(scheduler: str, servers: Sequence[Server]) -> list[tuple[Server, Fraction]]:
    """Return the servers that a new connection may get, each with its share of many clients'.

    Weight 0 means no new connections, to every scheduler.
    """
    usable = [server for server in servers if server.weight > 0]
    if scheduler == "fo":
        usable = [max(usable, key=lambda server: server.weight)] if usable else []
    weights = [1 if scheduler in _BLIND_TO_WEIGHTS else server.weight for server in usable]
    total = sum(weights)
    return [
        (server, Fraction(weight, total)) for server, weight in zip(usable, weights, strict=True)
    ]


def depends_on_client_or_load(scheduler: str) -> bool:
    """Return whether one client's share differs from that of many: all schedulers but rr, wrr."""
    return scheduler not in _IN_TURN
