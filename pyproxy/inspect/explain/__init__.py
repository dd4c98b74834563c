"""The explanation of one Service: a pure function from facts to steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from pyproxy.inspect.explain import endpoints, node, service
from pyproxy.inspect.explain.step import Result, Step
from pyproxy.inspect.facts import Facts

__all__ = ["Explanation", "Result", "Step", "explain"]

# A failed step may cause those after it to fail, so the order decides which fault is the verdict.
_STEPS: Sequence[Callable[[Facts], Step]] = (
    service.agent,
    service.exists,
    service.fields,
    service.address,
    service.selector,
    endpoints.slices,
    endpoints.ports,
    endpoints.readiness,
    endpoints.policy,
    node.source_ranges,
    node.kernel,
    node.conntrack,
)


class Explanation(msgspec.Struct, frozen=True):
    """The steps from the Service to a packet.

    `verdict` and `fix` are those of the first failed step; `ok` is true if none failed.
    """

    target: str
    ok: bool
    verdict: str
    fix: str
    steps: tuple[Step, ...]


def explain(target: str, facts: Facts) -> Explanation:
    """Return the explanation of a target, which ends at the first final step."""
    steps: list[Step] = []
    for step in _STEPS:
        steps.append(step(facts))
        if steps[-1].final:
            break
    failed = next((step for step in steps if step.result is Result.FAILED), None)
    if failed is None:
        return Explanation(target, True, "no fault found on this node", "", tuple(steps))
    return Explanation(target, False, failed.message, failed.fix, tuple(steps))
