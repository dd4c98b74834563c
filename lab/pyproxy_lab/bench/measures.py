"""The measures, and one run's figures."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

import msgspec


class Unit(enum.Enum):
    """The unit of a figure."""

    SECONDS = "seconds"
    BYTES = "bytes"
    RATE = "a second"
    COUNT = "count"


class Measure(enum.Enum):
    """One figure: its name in JSON, its words in a table, its unit."""

    def __init__(self, key: str, words: str, unit: Unit) -> None:
        self.key = key
        self.words = words
        self.unit = unit

    FIRST_RESPONSE = "first_response", "start to the first Service's response", Unit.SECONDS
    LAST_RESPONSE = "last_response", "start to a response of all probed Services", Unit.SECONDS
    FULL_SYNC = "full_sync", "first sync by its own metric", Unit.SECONDS
    START_CPU = "start_cpu", "CPU of a start, until it is idle", Unit.SECONDS
    PEAK = "peak_memory", "peak memory of the process", Unit.BYTES
    HELPERS = "helpers_memory", "peak memory of programs that it runs", Unit.BYTES
    UP_KERNEL = "endpoint_up_kernel", "endpoint up: to the kernel", Unit.SECONDS
    DOWN_KERNEL = "endpoint_down_kernel", "endpoint down: to the kernel", Unit.SECONDS
    SWAP_RESPONSE = "endpoint_replaced_response", "endpoint replaced: to its response", Unit.SECONDS
    MADE_RESPONSE = "service_made_response", "Service made: to its response", Unit.SECONDS
    DELETED_RESPONSE = "service_deleted_response", "Service deleted: to its rejection", Unit.SECONDS
    CHANGE_CPU = "change_cpu", "CPU of one of these changes", Unit.SECONDS
    ROLLOUT = "rollout", "rollout of 1,000 pods: last pod to the kernel", Unit.SECONDS
    ROLLOUT_COMMITS = "rollout_commits", "rollout: transactions", Unit.COUNT
    ROLLOUT_CPU = "rollout_cpu", "rollout: CPU", Unit.SECONDS
    CHURN = "churn", "churn: a change to the kernel, median", Unit.SECONDS
    CHURN_P99 = "churn_p99", "churn: a change to the kernel, p99", Unit.SECONDS
    CHURN_CPU = "churn_cpu", "churn: CPU of a change", Unit.SECONDS
    CHURN_GROWTH = "churn_growth", "churn: memory after its second half, less before", Unit.BYTES
    STEADY = "steady_memory", "memory after all changes", Unit.BYTES
    RESTART = "restart", "restart, nothing changed: to healthy and synced", Unit.SECONDS
    RESTART_CPU = "restart_cpu", "CPU of a restart, until it is idle", Unit.SECONDS
    RESTART_COMMITS = "restart_commits", "restart: transactions", Unit.COUNT
    CONNECTIONS = "connections", "connections, one after the other", Unit.RATE
    BEST = "latency_best", "first response: best Service", Unit.SECONDS
    MEDIAN = "latency_median", "first response: median Service", Unit.SECONDS
    WORST = "latency_worst", "first response: worst Service", Unit.SECONDS
    DIRECT = "latency_direct", "first response: median pod, without rules", Unit.SECONDS


LESS_IS_WORSE = frozenset({Measure.CONNECTIONS})

Figures = dict[Measure, list[float]]


class Run(msgspec.Struct, frozen=True):
    """One agent's figures of one run; where something was done several times, all of them."""

    agent: str
    number: int
    figures: Mapping[Measure, Sequence[float]]
