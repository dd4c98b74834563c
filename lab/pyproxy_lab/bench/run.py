"""One run of one agent: it starts, things change, connections are made, it ends."""

from __future__ import annotations

import itertools
import time
import urllib.request
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from pyproxy_lab.bench import cluster, usage
from pyproxy_lab.bench.changes import Changes
from pyproxy_lab.bench.cluster import Churn, Cluster
from pyproxy_lab.bench.contestant import Contestant
from pyproxy_lab.bench.figures import Spread
from pyproxy_lab.bench.kernel import Announcements, transactions
from pyproxy_lab.bench.measures import Figures, Measure, Run
from pyproxy_lab.bench.place import Place
from pyproxy_lab.bench.prober import Prober
from pyproxy_lab.bench.shape import FRESH_POD, Size
from pyproxy_lab.cluster import kubeconfig
from pyproxy_lab.namespace import LabError
from pyproxy_lab.process import Agent

_PROBED = 16
_RESTS = 0.5
_REST_PATIENCE = 60.0
_SERVICES, _EACH = 32, 60
_HEALTH = "http://127.0.0.1:10256/healthz"
_METRICS = "http://127.0.0.1:10249/metrics"
_FULL_SYNC = "kubeproxy_sync_full_proxy_rules_duration_seconds_sum"
_LAST_SYNC = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
_BETWEEN_REQUESTS = 0.005


class Plan(msgspec.Struct, frozen=True):
    """The plan of each run: changes of each kind, seconds between two, and the churn.

    `patience` is the limit in seconds of each step.
    """

    size: Size
    changes: int
    pause: float
    churn_rate: float
    churn_seconds: float
    patience: float

    @property
    def steps(self) -> int:
        """The number of steps of progress that a run reports."""
        return 5


class Bench:
    """Everything that all runs share."""

    def __init__(self, plan: Plan, place: Place, api: Cluster, folder: Path) -> None:
        self._plan = plan
        self._place = place
        self._api = api
        self._folder = folder
        self._prober = Prober(place.client)
        self._fresh: Iterator[int] = itertools.count()
        self._kubeconfig = folder / "kubeconfig"
        self._kubeconfig.write_bytes(msgspec.json.encode(kubeconfig(api.url, "")))

    def run(self, contestant: Contestant, number: int, step: Callable[[str], None]) -> Run:
        """Measure once; `step` is called with the name of each step. Raises LabError."""
        figures: Figures = {}
        log = self._folder / f"{contestant.name}-{number}.log"
        step("start")
        began = time.monotonic()
        with contestant.serving(self._place.node, self._kubeconfig, log) as agent:
            with usage.Peak(agent.pid) as peak:
                self._start(agent, began, figures)
                step("changes")
                self._changes(agent, contestant, figures)
                step("churn")
                if self._plan.churn_rate and contestant.announces:
                    self._churn(agent, figures)
                figures[Measure.STEADY] = [usage.memory(agent.pid, "VmRSS")]
                step("connections")
                self._connections(figures)
            figures[Measure.HELPERS] = [peak.helpers]
            step("restart")
            self._restart(agent, contestant, figures)
        return Run(contestant.name, number, figures)

    def _start(self, agent: Agent, began: float, figures: Figures) -> None:
        patience = self._plan.patience
        probed = _spread(self._plan.size.services, _PROBED)
        times = [
            self._prober.until(number, bool, patience, agent.require_alive) for number in probed
        ]
        figures[Measure.FIRST_RESPONSE] = [times[0] - began]
        figures[Measure.LAST_RESPONSE] = [times[-1] - began]
        self._rest(agent)
        figures[Measure.START_CPU] = [usage.cpu(agent.pid)]
        figures[Measure.PEAK] = [usage.memory(agent.pid, "VmHWM")]
        seconds = _metric(_FULL_SYNC)
        if seconds is not None:
            figures[Measure.FULL_SYNC] = [seconds]

    def _restart(self, agent: Agent, contestant: Contestant, figures: Figures) -> None:
        agent.stop()
        before = transactions()
        began, moment = time.monotonic(), time.time()
        agent.start()
        while not is_in_step(moment):
            agent.require_alive()
            if time.monotonic() - began > self._plan.patience:
                raise LabError("the agent is not healthy again after a restart")
            time.sleep(_BETWEEN_REQUESTS)
        figures[Measure.RESTART] = [time.monotonic() - began]
        self._rest(agent)
        figures[Measure.RESTART_CPU] = [usage.cpu(agent.pid)]
        if contestant.announces:
            figures[Measure.RESTART_COMMITS] = [(transactions() - before) % (1 << 32)]

    def _rest(self, agent: Agent) -> None:
        deadline = time.monotonic() + _REST_PATIENCE
        before = -1.0
        while (now := usage.cpu(agent.pid)) - before > _RESTS / 20 and time.monotonic() < deadline:
            before = now
            time.sleep(_RESTS)

    def _changes(self, agent: Agent, contestant: Contestant, figures: Figures) -> None:
        changes = Changes(
            self._api, self._prober, self._plan.size, self._fresh, self._plan.patience
        )
        kinds = changes.probed(agent.require_alive)
        before = usage.cpu(agent.pid)
        count = 0
        for _ in range(self._plan.changes):
            for measure, seconds in kinds():
                figures.setdefault(measure, []).append(seconds)
                count += 1
                time.sleep(self._plan.pause)
        if contestant.announces:
            with Announcements() as kernel:
                for turn in range(self._plan.changes):
                    for measure, seconds in changes.announced(kernel, turn, self._plan.pause):
                        figures.setdefault(measure, []).append(seconds)
                        count += 1
        self._rest(agent)
        figures[Measure.CHANGE_CPU] = [(usage.cpu(agent.pid) - before) / count]
        if contestant.announces:
            before = usage.cpu(agent.pid)
            with Announcements() as kernel:
                figures[Measure.ROLLOUT] = [changes.rollout(kernel)]
                figures[Measure.ROLLOUT_COMMITS] = [kernel.commits]
            self._rest(agent)
            figures[Measure.ROLLOUT_CPU] = [usage.cpu(agent.pid) - before]
            changes.forget_rollout()
            self._rest(agent)

    def _churn(self, agent: Agent, figures: Figures) -> None:
        cpu = usage.cpu(agent.pid)
        latencies = self._churn_half(agent)
        memory = usage.memory(agent.pid, "VmRSS")
        latencies += self._churn_half(agent)
        found = Spread(latencies)
        figures[Measure.CHURN] = [found.median]
        figures[Measure.CHURN_P99] = [found.p99]
        figures[Measure.CHURN_CPU] = [(usage.cpu(agent.pid) - cpu) / len(latencies)]
        figures[Measure.CHURN_GROWTH] = [usage.memory(agent.pid, "VmRSS") - memory]

    def _churn_half(self, agent: Agent) -> list[float]:
        plan = self._plan
        pods = cluster.fresh_pods(self._fresh, int(plan.churn_rate * plan.churn_seconds) + 1)
        churn = Churn(plan.churn_rate, plan.churn_seconds / 2, plan.size, pods[0])
        with Announcements() as kernel:
            latencies = kernel.latencies(self._api, churn, plan.patience)
        self._rest(agent)
        return latencies

    def _connections(self, figures: Figures) -> None:
        services = _spread(self._plan.size.services, _SERVICES)
        traffic = self._prober.services(services, _EACH)
        direct = self._prober.pods([FRESH_POD + each for each in range(_SERVICES)], _EACH)
        figures[Measure.CONNECTIONS] = [traffic.connections]
        figures[Measure.BEST] = [traffic.best]
        figures[Measure.MEDIAN] = [traffic.median]
        figures[Measure.WORST] = [traffic.worst]
        figures[Measure.DIRECT] = [direct.median]


def _spread(services: int, count: int) -> list[int]:
    """Pick Services from the first to the last."""
    count = min(count, services)
    return sorted({index * (services - 1) // max(1, count - 1) for index in range(count)})


def is_in_step(moment: float) -> bool:
    """Return whether the agent here is healthy and has synced since a moment. Blocks."""
    # Some are healthy before their first sync, so the time of the last sync is checked as well.
    return _is_healthy() and (_metric(_LAST_SYNC) or 0.0) >= moment


def _is_healthy() -> bool:
    try:
        with urllib.request.urlopen(_HEALTH, timeout=5) as response:
            return bool(response.status == HTTPStatus.OK)
    except OSError:
        return False


def _metric(name: str) -> float | None:
    """Read a metric of the agent, of IPv4 where there is one for each family."""
    try:
        with urllib.request.urlopen(_METRICS, timeout=5) as response:
            text = response.read().decode()
    except OSError:
        return None
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels.get("ip_family", "IPv4") == "IPv4":
                return sample.value
    return None
