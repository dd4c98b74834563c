"""The measurements of each mode and their limits."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from pyproxy_lab import modes
from pyproxy_lab.bench.figures import duration
from pyproxy_lab.bench.shape import Size
from pyproxy_lab.modes import LabMode


class Targets(msgspec.Struct, frozen=True):
    """Sizes, and seconds that are too many; infinity where there is no such limit.

    `first_syncs` are from lists read to kernel programmed. `change` and `change_p99` are of one
    change, its median and its p99, at the sizes `changed`, whose medians may lie `even` times
    apart. `changes` is how many are made.
    """

    first_syncs: Mapping[Size, float]
    changed: tuple[Size, ...]
    change: float = float("inf")
    change_p99: float = float("inf")
    even: float = float("inf")
    changes: int = 1_000


def _sizes(*services: int) -> tuple[Size, ...]:
    return tuple(Size(each, 10) for each in services)


_NFTABLES = Targets(
    {Size(10_000, 10): 1.0, Size(5_000, 50): 2.5, Size(44_000, 1): 2.0},
    _sizes(100, 1_000, 10_000, 40_000),
    change=0.003,
    change_p99=0.015,
    even=1.5,
)
_LEGACY = Targets(
    {Size(1_000, 10): float("inf"), Size(10_000, 10): 7.0},
    _sizes(100, 1_000, 10_000),
    change=1.0,
    changes=20,
)
_NFT = Targets(
    {Size(1_000, 10): float("inf"), Size(10_000, 10): float("inf")},
    _sizes(100, 1_000, 10_000),
    changes=20,
)
_IPVS = Targets(
    {Size(500, 10): float("inf"), Size(5_000, 10): float("inf")},
    _sizes(100, 1_000, 5_000),
    changes=200,
)


_TARGETS = {
    modes.NFTABLES: _NFTABLES,
    modes.IPTABLES: _NFT,
    modes.IPTABLES_NFT: _NFT,
    modes.IPTABLES_LEGACY: _LEGACY,
    modes.IPVS: _IPVS,
}


def targets(mode: LabMode) -> Targets:
    """Return those of a mode, and of its flavour."""
    return _TARGETS[mode]


def held_against(value: float, limit: float) -> str:
    """Return a remark on whether a time is within its limit; empty without a limit."""
    if limit == float("inf"):
        return ""
    return f"{'within' if value < limit else 'BEYOND'} {duration(limit)}"
