"""Find the Services that iptables rejects, and write all others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Protocol

import msgspec

from pyproxy.dataplane.interface import Failure, NodeRouting
from pyproxy.dataplane.iptables.committed_state import CommittedTables
from pyproxy.dataplane.iptables.plan import IptablesPlan
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import Frontend, PortRouting, ServiceRouting
from pyproxy.xtables.programs import RestoreError

_ROUNDS = 4
"""Writes after which rejected Services are no longer left out by the lines at fault.

iptables-nft-restore names about eleven lines at once.
"""
_FOUND_SINGLY = 4
"""Rejected Services that are found one by one where all that use the same extensions are rejected.

Where some are accepted, there are _FOUND_AMONG_OTHERS.
"""
_FOUND_AMONG_OTHERS = 16

PlanFull = Callable[[Iterable[ServiceRouting], NodeRouting], IptablesPlan]


class Write(Protocol):
    """Writes a plan. Without `from_known`, tables may differ from what was written before."""

    def __call__(self, plan: IptablesPlan, *, from_known: bool = True) -> None:
        """Raise RestoreError if a rule is rejected, KernelError for other errors."""
        ...


class Rejections:
    """Writes plans again without the Services that the kernel rejects.

    `plan_full` reads the kernel back, and `write` records what it has written in `committed`.
    """

    def __init__(self, committed: CommittedTables, write: Write, plan_full: PlanFull) -> None:
        self._committed = committed
        self._write = write
        self._plan_full = plan_full

    def leave_out(self, plan: IptablesPlan, error: RestoreError) -> tuple[Failure, ...]:
        """Write a full plan without the Services at fault, whose programmed state stays.

        `error` is that of the write which was rejected. Blocks for several writes. Raises
        KernelError.
        """
        failures: dict[ObjectName, Failure] = {}
        wanted = {name: routing for name, routing in plan.services.items() if routing is not None}
        node = plan.node or NodeRouting()
        for _ in range(_ROUNDS):
            owners = self._committed.find_owners(wanted.values(), node, error.faults)
            if not owners:
                break
            for name in owners.keys() & failures.keys():
                # The kernel rejects its programmed state too, which must not hold up all others.
                del wanted[name]
            new = owners.keys() - failures.keys()
            failures |= {name: Failure(name, error.of(owners[name])) for name in new}
            wanted = self._with_committed(wanted, new)
            # The read-back of `plan_full` shows which tables the failed write had reached.
            if (again := self._try(self._plan_full(wanted.values(), node))) is None:
                return tuple(failures.values())
            error = again
        # The kernel often rejects an iptables-legacy table as a whole, and names no rule. Before
        # 1.8.10 its program names no errno either, so the error may be one that passes.
        if self._try(self._plan_full(wanted.values(), node)) is None:
            return tuple(failures.values())
        self._write(self._plan_full(self._with_committed(wanted, list(wanted)).values(), node))
        groups: dict[frozenset[str], list[ServiceRouting]] = {}
        for routing in wanted.values():
            if routing != self._committed.routing(routing.name):
                uses = self._committed.extensions(routing, node)
                groups.setdefault(uses, []).append(routing)
        bisected = (self._bisect(groups[uses]) for uses in sorted(groups, key=len))
        return (*failures.values(), *chain.from_iterable(bisected))

    def _try(self, plan: IptablesPlan) -> RestoreError | None:
        """Write a plan, and return the error if it was rejected."""
        try:
            self._write(plan)
        except RestoreError as error:
            return error
        return None

    def _with_committed(
        self, wanted: Mapping[ObjectName, ServiceRouting], names: Iterable[ObjectName]
    ) -> dict[ObjectName, ServiceRouting]:
        """Return `wanted` with the committed routing of the named Services, or without them.

        A frontend that another Service has by now is that Service's.
        """
        committed = {name: self._committed.routing(name) for name in set(names)}
        taken = {
            place
            for name, routing in wanted.items()
            if name not in committed
            for port in routing.ports
            for place in map(partial(_place, port), port.frontends)
        }
        return {
            name: _without(routing, taken) if name in committed else routing
            for name, desired in wanted.items()
            if (routing := committed.get(name, desired)) is not None
        }

    def _bisect(self, routings: list[ServiceRouting]) -> list[Failure]:
        """Write these Services; if they are rejected, write each half on its own.

        They use the same extensions, so that the kernel often rejects all of them. After a few were
        found one by one, each group that is rejected is left out as a whole. So the number of
        writes grows with the logarithm of the number of Services.
        """
        failures: list[Failure] = []
        most = _FOUND_SINGLY
        groups = [routings]
        while groups:
            group = groups.pop()
            plan = self._committed.plan({each.name: each for each in group}, None)
            if (error := self._try(plan)) is None:
                most = _FOUND_AMONG_OTHERS
                continue
            # Some tables of the plan may have been written before the one that failed.
            self._write(self._committed.undo(plan), from_known=False)
            if len(group) == 1 or len(failures) >= most:
                failures += [Failure(each.name, error) for each in group]
            else:
                middle = len(group) // 2
                groups += [group[middle:], group[:middle]]
        return failures


def _place(port: PortRouting, frontend: Frontend) -> tuple[object, ...]:
    return port.family, port.protocol, frontend.address, frontend.port


def _without(routing: ServiceRouting, taken: Collection[tuple[object, ...]]) -> ServiceRouting:
    """Return a routing without the frontends at these places."""
    ports = tuple(
        msgspec.structs.replace(
            port,
            frontends=tuple(each for each in port.frontends if _place(port, each) not in taken),
        )
        for port in routing.ports
    )
    return msgspec.structs.replace(routing, ports=ports)
