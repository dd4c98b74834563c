"""A plan as a person looks at it before it is carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pyproxy.dataplane.interface import Dataplane
from pyproxy.inspect.desired import Desired


class Difference(msgspec.Struct, frozen=True, rename="camel"):
    """What a sync would write now; nothing where the kernel holds what it should.

    `lines` are the transaction as a person would type it, `counts` objects by kind. `pending`
    Services wait for the agent's own next sync. `rules` names what is amiss where the rules that
    all Services share must be loaded anew. `messages` are what would go over netlink.
    """

    same: bool
    mode: str
    pending: int
    counts: Mapping[str, int]
    lines: tuple[str, ...]
    rules: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()


def difference(dataplane: Dataplane[Any], wanted: Desired, *, netlink: bool) -> Difference:
    """Compare what is wanted with what the kernel holds; nothing is written. Raises KernelError.

    `dataplane` must be one that serves nobody, for it remembers what it reads.
    """
    plan = dataplane.plan_full(wanted.routings, wanted.node)
    return Difference(
        same=not plan,
        mode=dataplane.name,
        pending=wanted.pending,
        counts=dict(plan.counts()),
        lines=tuple(plan.lines()),
        rules=dataplane.check_base_rules(wanted.node),
        messages=tuple(plan.netlink()) if netlink else (),
    )
