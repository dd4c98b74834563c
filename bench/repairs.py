"""The times of repairs and restarts, by the agent's own process."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from contextlib import closing

from pyproxy_lab.bench.figures import Spread, heading, row
from pyproxy_lab.bench.place import Place
from pyproxy_lab.bench.shape import PORT, cluster_ip
from pyproxy_lab.namespace import LabError

from bench.hostile import SIZE, Hostile, serving
from bench.inside import held
from bench.targets import held_against
from pyproxy.dataplane.nft.base_rules import Layout
from pyproxy.dataplane.nft.loader import delete_table, read_layout
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.errors import StaleStateError
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import get_sets, read_set_sizes

LIMIT = 1.0
"""Seconds in which a repair must end."""

END_LIMIT = 2.0
"""Seconds from SIGTERM to the end."""

_TIMES = 3
_POLL = 0.01
_PATIENCE = 30.0
_PAUSE = 7.0
"""Seconds between two writes. The agent delays repairs after the sixth in half a minute."""

_KEY = f"{cluster_ip(7)} . tcp . {PORT}"
_WRITES: Mapping[str, str] = {
    "the ruleset flushed": "flush ruleset",
    "the table deleted": f"delete table inet {TABLE}",
    "a map of 100,000 elements flushed": f"flush map inet {TABLE} endpoints4",
    "one element deleted": f"delete element inet {TABLE} services4 {{ {_KEY} }}",
    "one element added": f"add element inet {TABLE} cluster-ips4 {{ 192.0.2.1 }}",
    "a base chain flushed": f"flush chain inet {TABLE} nat-postrouting",
}

State = tuple[Mapping[str, int], Layout]


def print_repairs(place: Place) -> bool:
    """Measure and print; return whether all are within the limit. Raises LabError."""
    met = True
    with serving(place, SIZE) as hostile, closing(Nfnetlink()) as netlink:
        met &= _print_restarts(hostile, netlink)
        hostile.settle()
        wanted, complete = held(), _state(netlink)
        heading(f"{SIZE}, another program's write to the complete table, {_TIMES} times each")
        for name, command in _WRITES.items():
            taken = []
            for _ in range(_TIMES):
                time.sleep(_PAUSE)
                taken.append(_repair(netlink, command, complete))
                if held() != wanted:
                    raise LabError(f"{name}: the repaired table differs")
            spread = Spread(taken)
            row(name, spread.ends, held_against(spread.worst, LIMIT))
            met &= spread.worst < LIMIT
    return met


def _print_restarts(hostile: Hostile, netlink: Nfnetlink) -> bool:
    heading(f"{SIZE}, stop and start, {_TIMES} times each")
    ended: list[float] = []
    restarted: list[float] = []
    first: list[float] = []
    for _ in range(_TIMES):
        hostile.settle()
        ended.append(hostile.stop())
        restarted.append(hostile.start())
        hostile.settle()
        ended.append(hostile.stop())
        delete_table(netlink, TABLE)
        first.append(hostile.start())
    spread = Spread(ended)
    row("SIGTERM to the end of the process", spread.ends, held_against(spread.worst, END_LIMIT))
    row("restart of the process to /healthz", Spread(restarted).ends)
    row("the same without a table", Spread(first).ends)
    return spread.worst < END_LIMIT


def _repair(netlink: Nfnetlink, command: str, complete: State | None) -> float:
    done = subprocess.run(["nft", command], capture_output=True, text=True, check=False)
    began = time.monotonic()
    if done.returncode:
        raise LabError(f"nft {command}: {done.stderr}")
    while _state(netlink) != complete:
        if time.monotonic() - began > _PATIENCE:
            raise LabError(f"nft {command}: not repaired within {_PATIENCE:.0f} s")
        time.sleep(_POLL)
    return time.monotonic() - began


def _state(netlink: Nfnetlink) -> State | None:
    """Read the size of each set, which Linux reports since 6.16, and the rules."""
    try:
        sizes = read_set_sizes(netlink.dump(get_sets(TABLE)))
    except StaleStateError:  # there is no table
        return None
    return sizes, read_layout(netlink, TABLE)
