"""Checks the configuration against the cluster, and keeps the mistakes that it finds."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.commit import Commit
from pyproxy.agent.config_rules import (
    CLOCK_TOLERANCE,
    api_server_problem,
    cidr_problems,
    clock_problem,
    family_problems,
    network_problems,
    node_problems,
)
from pyproxy.agent.sources import Source
from pyproxy.config.settings import Settings
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.model.address import Backend, Family, backend, family_of
from pyproxy.model.config_problems import ConfigProblem, ConfigTopic
from pyproxy.model.objects import ObjectName, Service
from pyproxy.source.client import Client

log = logging.getLogger(__name__)

_CLOCK_STEP = 30.0
"""Seconds from which on a change of the reported difference between the clocks is a new text."""

_CLOCK_MARGIN = 5.0
"""Seconds below the tolerance at which a reported difference is over."""


class ConfigProblemCollector(Collector):
    """The metric of mistakes in the configuration.

    `read` returns the present ones. It is called from any thread.
    """

    def __init__(self, read: Callable[[], Iterable[ConfigProblem]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the gauge with 1 for each topic that has a problem, and 0 for each other one."""
        present = {each.topic for each in self._read()}
        gauge = GaugeMetricFamily(
            "pyproxy_configuration_problems",
            "Whether the configuration of the node has this mistake",
            labels=("problem",),
        )
        for topic in ConfigTopic:
            gauge.add_metric((topic.value,), float(topic in present))
        yield gauge


class ConfigChecks:
    """A commit listener that finds the mistakes in the configuration.

    `check` logs each mistake once, and again if its text changes. Its methods are for the agent's
    thread, except `problems`. `client` is None for a folder of manifests. `of_file` returns the
    mistakes in the file of --config, which are logged already.
    """

    def __init__(
        self,
        settings: Settings,
        source: Source,
        client: Client | None,
        of_file: Callable[[], tuple[ConfigProblem, ...]] = tuple,
    ) -> None:
        self._settings = settings
        self._source = source
        self._client = client
        self._of_file = of_file
        self._servers: frozenset[Backend] = frozenset()
        self._owner: ObjectName | None = None
        # The difference in the reported text, 0 for none.
        self._clock_offset = 0.0
        self._families: set[Family] = set()
        self._problems: tuple[ConfigProblem, ...] = ()

    def problems(self) -> tuple[ConfigProblem, ...]:
        """Return the mistakes that the last check found. Any thread; does not block."""
        return self._problems

    def committed(self, commit: Commit, cluster_state: ClusterState) -> None:
        """Note the families of the changed Services, and API servers' addresses among theirs.

        Does not block.
        """
        if commit.full:
            # A family stays noted until the next full commit, because its last Service seldom goes.
            self._families.clear()
        for name in commit.routings:
            service = cluster_state.services.get(name)
            if service is not None:
                self._families.update(map(family_of, service.cluster_ips))
            if service is not None and self._is_server(service):
                self._owner = name
            elif name == self._owner:
                self._owner = None

    def check(self, cluster_state: ClusterState, node: NodeRouting) -> None:
        """Check everything again.

        Takes constant time, except after a change of the API servers' addresses. Does not block.
        """
        before, found = self._problems, self.find(cluster_state, node)
        # The source logs its own.
        logged = (*self._source.problems(), *self._of_file())
        for each in found:
            if each not in before and each not in logged:
                log.warning("configuration problem %s: %s", each.topic.value, each)
        topics = {each.topic for each in found}
        for topic in dict.fromkeys(each.topic for each in before):
            if topic not in topics:
                log.info("configuration problem %s is solved", topic.value)
        self._problems = found

    def find(self, cluster_state: ClusterState, node: NodeRouting) -> tuple[ConfigProblem, ...]:
        """Return the present mistakes as `check` does, and log none.

        `node` is the node's part in the last sync.
        """
        return tuple(self._find(cluster_state, node))

    def _find(self, cluster_state: ClusterState, routing: NodeRouting) -> Iterator[ConfigProblem]:
        yield from self._of_file()
        if self._client is not None:
            yield from self._of_client(self._client, cluster_state)
        yield from self._source.problems()
        if not cluster_state.has_synced:
            return
        node, reserved = cluster_state.node, routing.reserved
        # A folder of manifests need not have a Node.
        if node is not None or not self._settings.manifests:
            names = self._source.node_names()
            yield from node_problems(self._settings, node, names, reserved.local, self._families)
        yield from cidr_problems(self._settings, node, self._families & reserved.families)
        yield from family_problems(self._families - reserved.families, routing.programmable)
        yield from network_problems(routing.left_out)

    def _of_client(self, client: Client, cluster_state: ClusterState) -> Iterator[ConfigProblem]:
        servers = client.servers()
        if servers != self._servers:
            self._servers = servers
            services = cluster_state.services.values()
            self._owner = next((each.name for each in services if self._is_server(each)), None)
        if found := api_server_problem(client.hosts, os.environ, self._owner):
            yield found
        self._note_clock(client.clock_offset)
        if found := clock_problem(self._clock_offset):
            yield found

    def _note_clock(self, offset: float) -> None:
        # Dates are whole seconds, and a message that comes back or changes is logged again.
        reported = self._clock_offset
        changed = not reported or abs(offset - reported) > _CLOCK_STEP
        if abs(offset) > CLOCK_TOLERANCE:
            self._clock_offset = offset if changed else reported
        elif changed or abs(offset) <= CLOCK_TOLERANCE - _CLOCK_MARGIN:
            self._clock_offset = 0.0

    def _is_server(self, service: Service) -> bool:
        """Return whether an API server's address is the cluster IP of a Service.

        External IPs never get the address of an API server.
        """
        return bool(self._servers) and any(
            backend(address, port.port) in self._servers
            for address in service.cluster_ips
            for port in service.ports
        )
