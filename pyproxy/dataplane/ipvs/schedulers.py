"""The flags of the kernel's schedulers, and the share of connections that each gives a server.

Facts: net/netfilter/ipvs/ip_vs_*.c. sh and mh hash a client to a server. For a server with weight 0
they find none, and the client is rejected, unless a flag makes them fall back to the next server.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import reduce
from operator import xor

from pyproxy.model.address import Address
from pyproxy.netlink.ipvs import PERSISTENT, SCHED_1, SCHED_2, Scheduling, Server

_FALLBACK, _WITH_PORT = SCHED_1, SCHED_2
_FLAGS = {"sh": _FALLBACK, "mh": _FALLBACK | _WITH_PORT}

_SH_BUCKETS_BITS = 8
"""CONFIG_IP_VS_SH_TAB_BITS, whose default distributions keep."""

_GOLDEN_RATIO_32 = 0x61C88647
_KNOWN = ("rr", "wrr", "fo", "sh")
# Apart from weight 0, these ignore weights.
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


def shares(
    scheduler: str, servers: Sequence[Server], client: Address
) -> list[tuple[Server, Fraction]]:
    """Return the servers that a new connection of a client may get, each with its share.

    `servers` are in the kernel's order. Weight 0 means no new connections, to every scheduler.
    """
    if scheduler == "sh":
        hashed = _by_source_hash(servers, client)
        return [(hashed, Fraction(1))] if hashed else []
    usable = [server for server in servers if server.weight > 0]
    if scheduler == "fo":
        usable = [max(usable, key=lambda server: server.weight)] if usable else []
    weights = [1 if scheduler in _BLIND_TO_WEIGHTS else server.weight for server in usable]
    total = sum(weights)
    return [
        (server, Fraction(weight, total)) for server, weight in zip(usable, weights, strict=True)
    ]


def is_estimate(scheduler: str) -> bool:
    """Return whether `shares` are those of many clients: load, or another hash, decides."""
    return scheduler not in _KNOWN


def _by_source_hash(servers: Sequence[Server], client: Address) -> Server | None:
    """Choose as ip_vs_sh_get_fallback() does: from the client's bucket on, the first usable."""
    # Buckets are filled in turn, with as many in a row as the weight says.
    turn = [server for server in servers for _ in range(max(server.weight, 1))]
    if not turn:
        return None
    words = (client[start : start + 4] for start in range(0, len(client), 4))
    folded = reduce(xor, (int.from_bytes(word, "big") for word in words))
    size = 1 << _SH_BUCKETS_BITS
    start = (folded * _GOLDEN_RATIO_32 & 0xFFFFFFFF) >> 32 - _SH_BUCKETS_BITS
    # The fallback adds the bucket's number twice: once as offset, and once as the hash.
    candidates = [start, *((2 * start + offset) % size for offset in range(size))]
    buckets = [turn[number % len(turn)] for number in range(size)]
    return next((buckets[number] for number in candidates if buckets[number].weight > 0), None)
