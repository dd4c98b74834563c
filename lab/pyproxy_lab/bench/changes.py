"""The kinds of change, each timed from the API server's write to its effect."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

from pyproxy_lab.bench.cluster import Cluster, Order, fresh_pods
from pyproxy_lab.bench.kernel import Announcements
from pyproxy_lab.bench.measures import Measure
from pyproxy_lab.bench.prober import Prober
from pyproxy_lab.bench.shape import (
    SLICE_LIMIT,
    Size,
    endpoint_slice,
    pod_ip,
    service,
    service_name,
)

ROLLOUT_PODS = 1_000
_AT_ONCE = 25
_STEP = 0.05

Timed = tuple[Measure, float]


class Changes:
    """Changes Services that no other part of the measurement uses."""

    def __init__(
        self, api: Cluster, prober: Prober, size: Size, fresh: Iterator[int], patience: float
    ) -> None:
        self._api = api
        self._prober = prober
        self._size = size
        self._fresh = fresh
        self._patience = patience
        self._swapped, self._made, self._rolled = range(size.services, size.services + 3)

    def probed(self, alive: Callable[[], None]) -> Callable[[], Iterator[Timed]]:
        """Prepare the changes that a prober reports; each call makes one of each kind."""
        self._put(self._swapped, *fresh_pods(self._fresh, 1))

        def wait(number: int, holds: Callable[[str], bool]) -> float:
            return self._prober.until(number, holds, self._patience, alive)

        def once() -> Iterator[Timed]:
            (pod,) = fresh_pods(self._fresh, 1)
            at = self._api.order(Order(put=[endpoint_slice(self._swapped, [pod])])).at
            yield Measure.SWAP_RESPONSE, wait(self._swapped, pod_ip(pod).__eq__) - at
            at = self._put(self._made, *fresh_pods(self._fresh, 1))
            yield Measure.MADE_RESPONSE, wait(self._made, bool) - at
            at = self._delete(self._made)
            yield Measure.DELETED_RESPONSE, wait(self._made, lambda found: not found) - at

        wait(self._swapped, bool)
        return once

    def announced(self, kernel: Announcements, turn: int, pause: float) -> Iterator[Timed]:
        """Add an endpoint to one of all Services, and take it away again."""
        number = turn * 7919 % self._size.services
        there = range(number * self._size.endpoints, (number + 1) * self._size.endpoints)
        pods = list(there[:SLICE_LIMIT])
        (pod,) = fresh_pods(self._fresh, 1)
        kernel.forget()
        done = self._api.order(Order(put=[endpoint_slice(number, [*pods, pod])]))
        yield Measure.UP_KERNEL, kernel.await_pods([pod_ip(pod)], self._patience) - done.at
        time.sleep(pause)
        kernel.forget()
        done = self._api.order(Order(put=[endpoint_slice(number, pods)]))
        yield Measure.DOWN_KERNEL, kernel.await_commit(self._patience) - done.at
        time.sleep(pause)

    def rollout(self, kernel: Announcements) -> float:
        """Replace all pods of a large Service, a few at a time; the seconds that the last takes."""
        old = fresh_pods(self._fresh, ROLLOUT_PODS)
        new = fresh_pods(self._fresh, ROLLOUT_PODS)
        parts = range(0, ROLLOUT_PODS, SLICE_LIMIT)
        slices = [
            endpoint_slice(self._rolled, old[begin : begin + SLICE_LIMIT], begin // SLICE_LIMIT)
            for begin in parts
        ]
        self._api.order(Order(put=[service(self._rolled), *slices]))
        kernel.await_pods([pod_ip(pod) for pod in old], self._patience)
        kernel.forget()
        began = time.monotonic()
        at = began
        for step in itertools.count(1):
            done = min(step * _AT_ONCE, ROLLOUT_PODS)
            part = (done - 1) // SLICE_LIMIT
            begin = part * SLICE_LIMIT
            pods = [*new[begin:done], *old[done : begin + SLICE_LIMIT]]
            at = self._api.order(Order(put=[endpoint_slice(self._rolled, pods, part)])).at
            if done == ROLLOUT_PODS:
                break
            time.sleep(max(0.0, began + step * _STEP - time.monotonic()))
        return kernel.await_pods([pod_ip(pod) for pod in new], self._patience) - at

    def forget_rollout(self) -> None:
        """Delete the large Service."""
        parts = range(ROLLOUT_PODS // SLICE_LIMIT)
        self._api.order(
            Order(
                delete=[
                    ("Service", service_name(self._rolled)),
                    *(("EndpointSlice", f"{service_name(self._rolled)}-{part}") for part in parts),
                ]
            )
        )

    def _put(self, number: int, *pods: int) -> float:
        return self._api.order(Order(put=[service(number), endpoint_slice(number, pods)])).at

    def _delete(self, number: int) -> float:
        name = service_name(number)
        gone = [("Service", name), ("EndpointSlice", f"{name}-0")]
        return self._api.order(Order(delete=gone)).at
