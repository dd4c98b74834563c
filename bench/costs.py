"""The cost of single changes at several sizes by turns, so that other load falls on all alike.

Each size has an agent and a network namespace of its own, so that their rules are apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import msgspec
from pyproxy_lab.bench.figures import Spread
from pyproxy_lab.bench.shape import Size
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import Namespace, ip
from pyproxy_lab.owner import Owner

from bench.inside import Inside, inside, lists, slice_object


class Cost(msgspec.Struct, frozen=True):
    """The cost of one change: seconds from the watch's bytes to the commit, messages and bytes."""

    seconds: Spread
    messages: float
    size: float


def costs_of_changes(sizes: Sequence[Size], changes: int, mode: LabMode) -> list[Cost]:
    """Measure `changes` at each size: by turns an endpoint goes from a slice, and comes back."""
    with ExitStack() as all_of_them:
        agents = [all_of_them.enter_context(_settled(size, mode)) for size in sizes]
        before = [agent.sent for agent in agents]
        seconds: list[list[float]] = [[] for _ in sizes]
        for number in range(changes):
            for size, agent, found in zip(sizes, agents, seconds, strict=True):
                found.append(agent.change(_line(number, size)))
        after = [agent.sent for agent in agents]
    return [
        Cost(Spread(found), (now[0] - then[0]) / changes, (now[1] - then[1]) / changes)
        for found, now, then in zip(seconds, after, before, strict=True)
    ]


@contextmanager
def _settled(size: Size, mode: LabMode) -> Iterator[Inside]:
    """Have an agent that has programmed everything, in a network namespace that is its own."""
    namespace = Namespace(f"{Owner.this_process().network(1)}-{size.services}")
    ip([f"netns add {namespace.name}"])
    try:
        namespace.ip(["link set lo up"])
        with ExitStack() as stack:
            # Threads and programs are in the namespace of the thread that starts them.
            agent = namespace.call(lambda: stack.enter_context(inside(mode)))
            agent.handle_event(lists(size))
            namespace.call(lambda: stack.enter_context(agent.looping()))
            try:
                yield agent
            finally:
                namespace.call(stack.close)
    finally:
        ip([f"netns del {namespace.name}"])


def _line(number: int, size: Size) -> bytes:
    return msgspec.json.encode({"type": "MODIFIED", "object": slice_object(number, size)})
