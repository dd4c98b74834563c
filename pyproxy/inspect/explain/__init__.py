"""The explanation of one Service: a pure function from facts to steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from pyproxy.inspect.explain import endpoints, node, service
from pyproxy.inspect.explain.path_firewalls import firewalls
from pyproxy.inspect.explain.path_probes import probes
from pyproxy.inspect.explain.path_proxies import proxies
from pyproxy.inspect.explain.path_routes import routes
from pyproxy.inspect.explain.path_switches import switches
from pyproxy.inspect.explain.step import Result, Step
from pyproxy.inspect.facts import Facts

__all__ = ["Explanation", "Result", "Step", "conclude", "explain"]

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
    proxies,
    switches,
    routes,
    firewalls,
    probes,
)


class Explanation(msgspec.Struct, frozen=True):
    """The steps from the Service to the endpoint.

    `verdict` and `fix` are those of the first failed step; `ok` is true if none failed. `checked`
    are the names of the steps with a result, `not_checked` those of the others.
    """

    target: str
    ok: bool
    verdict: str
    fix: str
    steps: tuple[Step, ...]
    checked: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()


def explain(target: str, facts: Facts) -> Explanation:
    """Return the explanation of a target, which ends at the first final step."""
    steps: list[Step] = []
    for step in _STEPS:
        steps.append(step(facts))
        if steps[-1].final:
            break
    return conclude(target, steps)


def conclude(target: str, steps: Sequence[Step]) -> Explanation:
    """Return the explanation that consists of these steps, with its verdict."""
    unknown = [each for each in steps if each.result in (Result.SKIPPED, Result.UNDECIDED)]
    checked = tuple(each.name for each in steps if each not in unknown)
    not_checked = tuple(each.name for each in unknown)
    failed = next((step for step in steps if step.result is Result.FAILED), None)
    if failed is not None:
        verdict, fix = failed.message, failed.fix
    else:
        verdict, fix = _without_fault(checked, unknown), ""
    return Explanation(target, failed is None, verdict, fix, tuple(steps), checked, not_checked)


def _without_fault(checked: Sequence[str], unknown: Sequence[Step]) -> str:
    verdict = f"no fault found; checked: {', '.join(checked)}"
    for result, words in ((Result.SKIPPED, "not checked"), (Result.UNDECIDED, "undecided")):
        names = [f"{each.name} ({_reason(each)})" for each in unknown if each.result is result]
        if names:
            verdict += f"; {words}: {', '.join(names)}"
    return verdict


def _reason(step: Step) -> str:
    return step.message.removeprefix("not checked: ")
