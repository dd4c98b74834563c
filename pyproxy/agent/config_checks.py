"""Checks the configuration against the cluster, and keeps the mistakes that it finds."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.commit import Commit
from pyproxy.agent.config_rules import cidr_problems, node_problems
from pyproxy.agent.sources import Source
from pyproxy.config.settings import Settings
from pyproxy.model.address import Family, family_of
from pyproxy.model.config_problems import ConfigProblem, ConfigTopic
from pyproxy.model.objects import ObjectName

log = logging.getLogger(__name__)


class ConfigChecks(Collector):
    """The mistakes in the configuration: a commit listener, and a metric.

    `check` logs each mistake once, and again if its text changes. Its methods are for the agent's
    thread, except `problems` and `collect`.
    """

    def __init__(self, settings: Settings, source: Source) -> None:
        self._settings = settings
        self._source = source
        self._families: set[Family] = set()
        self._problems: tuple[ConfigProblem, ...] = ()

    def problems(self) -> tuple[ConfigProblem, ...]:
        """Return the mistakes that the last check found. Any thread; does not block."""
        return self._problems

    def committed(self, commit: Commit, cluster_state: ClusterState) -> None:
        """Note the families of the changed Services. Does not block."""
        if commit.full:
            self._families.clear()
        for name in commit.routings:
            # A family stays noted until the next full commit, as its last Service seldom goes.
            if len(self._families) == len(Family):
                return
            self._note_families(name, cluster_state)

    def check(self, cluster_state: ClusterState) -> None:
        """Check everything again. Takes constant time; does not block."""
        found = self.find(cluster_state)
        for each in found:
            if each not in self._problems:
                log.warning("configuration problem %s: %s", each.topic.value, each)
        topics = {each.topic for each in found}
        for before in self._problems:
            if before.topic not in topics:
                log.info("configuration problem %s is solved", before.topic.value)
        self._problems = found

    def collect(self) -> Iterator[Metric]:
        """Yield the gauge with 1 for each topic that has a problem, and 0 for each other one."""
        present = {each.topic for each in self._problems}
        gauge = GaugeMetricFamily(
            "pyproxy_configuration_problems",
            "Whether the configuration of the node has this mistake",
            labels=("problem",),
        )
        for topic in ConfigTopic:
            gauge.add_metric((topic.value,), float(topic in present))
        yield gauge

    def find(self, cluster_state: ClusterState) -> tuple[ConfigProblem, ...]:
        """Return the present mistakes, and log none. Takes constant time; does not block."""
        return tuple(self._find(cluster_state))

    def _find(self, cluster_state: ClusterState) -> Iterator[ConfigProblem]:
        if not cluster_state.has_synced:
            return
        node = cluster_state.node
        # A folder of manifests need not have a Node.
        if node is not None or not self._settings.manifests:
            yield from node_problems(self._settings, node, self._source.node_names())
        yield from cidr_problems(self._settings, node, self._families)

    def _note_families(self, name: ObjectName, cluster_state: ClusterState) -> None:
        service = cluster_state.services.get(name)
        if service is not None:
            self._families.update(map(family_of, service.cluster_ips))
