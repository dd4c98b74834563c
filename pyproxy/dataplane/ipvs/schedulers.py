"""What each of the kernel's schedulers is told beside its name.

Facts: net/netfilter/ipvs/ip_vs_sh.c and ip_vs_mh.c. These two hash a client to a server. One that
has weight 0 would be answered with nothing at all, unless they are told to fall back to the next.
"""

from __future__ import annotations

from pyproxy.netlink.ipvs import PERSISTENT, SCHED_1, SCHED_2, Scheduling

_FALLBACK, _WITH_PORT = SCHED_1, SCHED_2
_FLAGS = {"sh": _FALLBACK, "mh": _FALLBACK | _WITH_PORT}


def scheduling(scheduler: str, affinity_timeout: int) -> Scheduling:
    """Say how a virtual service picks; the timeout is in seconds, 0 without session affinity.

    As in kube-proxy, mh hashes the client's port too, and sh its address alone.
    """
    flags = _FLAGS.get(scheduler, 0) | (PERSISTENT if affinity_timeout else 0)
    return Scheduling(scheduler, flags, affinity_timeout)
