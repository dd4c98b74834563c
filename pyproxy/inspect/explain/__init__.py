"""The whole way from a Service to a packet: a pure function from facts to steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from pyproxy.inspect.explain import endpoints, node, service
from pyproxy.inspect.explain.case import Case, KernelFacts, Mark, Step

__all__ = ["Case", "Explanation", "KernelFacts", "Mark", "Step", "explain"]

_STEPS: Sequence[Callable[[Case], Step]] = (
    service.agent,
    service.exists,
    service.fields,
    service.address,
    service.selector,
    endpoints.slices,
    endpoints.ports,
    endpoints.readiness,
    endpoints.policy,
    node.sources,
    node.elements,
    node.flows,
)


class Explanation(msgspec.Struct, frozen=True):
    """Steps, in the order of a packet's way, and what it comes to.

    `verdict` is one sentence; `fix` is what to do, empty where nothing is wrong.
    """

    target: str
    well: bool
    verdict: str
    fix: str
    steps: tuple[Step, ...]


def explain(target: str, case: Case) -> Explanation:
    """Go all the way, as far as there is one."""
    steps: list[Step] = []
    for step in _STEPS:
        steps.append(step(case))
        if steps[-1].last:
            break
    wrong = next((step for step in steps if step.mark is Mark.CROSS), None)
    if wrong is None:
        return Explanation(
            target, well=True, verdict="nothing is wrong on this node", fix="", steps=tuple(steps)
        )
    return Explanation(target, well=False, verdict=wrong.says, fix=wrong.fix, steps=tuple(steps))
