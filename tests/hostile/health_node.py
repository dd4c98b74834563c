"""A node that serves health and metrics, and a pod beside it, without an agent."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

from pyproxy_lab.namespace import Namespace

from pyproxy.config import ListenAddress, Serving, Settings
from pyproxy.health.connection_metrics import ConnectionMetrics
from pyproxy.health.limits import Limits, within
from pyproxy.health.server import HealthServers
from pyproxy.health.state import Health
from pyproxy.metrics import Metrics
from pyproxy.model.address import Address
from tests.exposition import series
from tests.namespaces import empty_namespace
from tests.waiting import PATIENCE

NODE, POD, OTHER_POD = "192.0.2.1", "192.0.2.2", "192.0.2.3"
NODE6, POD6 = "2001:db8::1", "2001:db8::2"
HEALTH, METRICS = 10256, 10249
LIMITS = within(1024)


class HealthNode:
    """The namespaces of the node and of a pod with two addresses, and the node's servers."""

    def __init__(self, node: Namespace, pod: Namespace, limits: Limits) -> None:
        self.node, self.pod = node, pod
        self.metrics = Metrics()
        self.health = Health(30.0)
        self.health.updated()
        anywhere = Address(bytes(4))
        serving = Serving(ListenAddress(anywhere, HEALTH), ListenAddress(anywhere, METRICS))
        settings = Settings("n", serving=serving)
        self.servers = HealthServers(settings, self.health, self.metrics, limits)
        self.metrics.register(ConnectionMetrics(self.servers.threads, lambda: 0))

    def get(
        self, where: Namespace, path: str = "/livez", *, host: str = NODE, source: str = ""
    ) -> int:
        """Return the status of a response, 0 if the connection ends without one."""
        return where.call(partial(_get, host, path, source))

    def series(self) -> dict[str, float]:
        """Return the metrics, as the registry has them now."""
        return series(self.metrics.exposition().decode())

    def dropped(self, reason: str, listener: str = "health") -> float:
        """Return how many connections were dropped for a reason."""
        name = "pyproxy_http_dropped_connections_total"
        return self.series().get(f'{name}{{listener="{listener}",reason="{reason}"}}', 0)

    def open_connections(self, listener: str = "health") -> float:
        """Return how many connections are open now."""
        return self.series()[f'pyproxy_http_open_connections{{listener="{listener}"}}']


@contextmanager
def health_node(limits: Limits = LIMITS) -> Iterator[HealthNode]:
    """Make the namespaces and start the servers, until the end of the block."""
    with empty_namespace("node") as node, empty_namespace("pod") as pod:
        node.ip(
            [
                "link set lo up",
                f"link add eth0 type veth peer name eth0 netns {pod.name}",
                f"addr add {NODE}/24 dev eth0",
                f"addr add {NODE6}/64 dev eth0 nodad",
                "link set eth0 up",
            ]
        )
        pod.ip(
            [
                *(f"addr add {address}/24 dev eth0" for address in (POD, OTHER_POD)),
                f"addr add {POD6}/64 dev eth0 nodad",
                "link set eth0 up",
            ]
        )
        made = HealthNode(node, pod, limits)
        node.call(made.servers.start)
        try:
            yield made
        finally:
            made.servers.stop()


def _get(host: str, path: str, source: str) -> int:
    port = METRICS if path == "/metrics" else HEALTH
    from_address = (source, 0) if source else None
    connection = http.client.HTTPConnection(
        host, port, timeout=PATIENCE, source_address=from_address
    )
    with closing(connection):
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            return 0
        return response.status
