import json
import logging
import socket
from collections.abc import Iterator

import pytest

from pyproxy.config import ListenAddress, Serving, Settings, file
from pyproxy.config.schema import KubeProxyConfiguration
from pyproxy.config.settings import FlagValue
from pyproxy.errors import UsageError
from pyproxy.health.pages import rfc3339
from pyproxy.health.server import HealthServers
from pyproxy.health.state import Health
from pyproxy.metrics import Metrics
from pyproxy.model.address import parse_address
from tests.health.conftest import LIMITS, Clock, Get
from tests.waiting import until

LOOPBACK = parse_address("127.0.0.1")


def settings(health_port: int = 0, metrics_port: int = 0, *, hard_fail: bool = False) -> Settings:
    return Settings(
        node_name="n",
        serving=Serving(
            ListenAddress(LOOPBACK, health_port), ListenAddress(LOOPBACK, metrics_port), hard_fail
        ),
        flags=(FlagValue("--v", "3", given=True),),
        configuration=KubeProxyConfiguration(oom_score_adj=7),
    )


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(30, clock, clock.wall)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def servers(health: Health, metrics: Metrics) -> Iterator[HealthServers]:
    servers = HealthServers(settings(), health, metrics, LIMITS)
    servers.start()
    yield servers
    servers.stop()


def test_health_before_the_first_commit(servers: HealthServers, get: Get) -> None:
    response = get(servers.health_port, "/healthz")
    assert response.status == 503
    assert response.body == (
        '{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2025-11-21T01:59:18Z",'
        '"nodeEligible":true,"healthy":false,"status":{'
        '"IPv4":{"lastUpdated":"0001-01-01T00:00:00Z","healthy":false},'
        '"IPv6":{"lastUpdated":"0001-01-01T00:00:00Z","healthy":false}}}'
    )


def test_health_after_it(servers: HealthServers, health: Health, clock: Clock, get: Get) -> None:
    health.updated()
    clock.seconds += 7.25
    response = get(servers.health_port, "/healthz")
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.body == (
        '{"lastUpdated":"2025-11-21T01:59:25.25Z","currentTime":"2025-11-21T01:59:25.25Z",'
        '"nodeEligible":true,"healthy":true,"status":{'
        '"IPv4":{"lastUpdated":"2025-11-21T01:59:25.25Z","healthy":true},'
        '"IPv6":{"lastUpdated":"2025-11-21T01:59:25.25Z","healthy":true}}}'
    )


def test_livez_ignores_the_node(servers: HealthServers, health: Health, get: Get) -> None:
    health.updated()
    healthz = json.loads(get(servers.health_port, "/healthz").body)
    response = get(servers.health_port, "/livez")
    assert response.status == 200
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    del healthz["nodeEligible"]
    assert list(json.loads(response.body).items()) == list(healthz.items())


def test_an_overdue_sync_fails_both(
    servers: HealthServers, health: Health, clock: Clock, get: Get
) -> None:
    health.updated()
    health.queued()
    clock.seconds += 59
    within = json.loads(get(servers.health_port, "/healthz").body)
    assert within["healthy"]
    assert within["lastUpdated"] == within["currentTime"]
    assert within["status"]["IPv4"]["lastUpdated"] == "2025-11-21T01:59:18Z"
    clock.seconds += 1
    for path in ("/healthz", "/livez"):
        response = get(servers.health_port, path)
        assert response.status == 503
        late = json.loads(response.body)
        assert not late["healthy"]
        assert late["lastUpdated"] == "2025-11-21T01:59:18Z"
        assert late["status"]["IPv6"] == {"lastUpdated": "2025-11-21T01:59:18Z", "healthy": False}


def test_a_node_being_removed_fails_healthz_only(
    servers: HealthServers, health: Health, get: Get
) -> None:
    health.updated()
    health.set_node_eligible(eligible=False)
    response = get(servers.health_port, "/healthz")
    assert response.status == 503
    body = json.loads(response.body)
    assert (body["nodeEligible"], body["healthy"]) == (False, False)
    assert body["status"]["IPv4"]["healthy"]
    assert get(servers.health_port, "/livez").status == 200


def test_an_agent_that_shuts_down_fails_healthz_only(
    servers: HealthServers, health: Health, get: Get
) -> None:
    health.updated()
    health.set_shutting_down()
    response = get(servers.health_port, "/healthz")
    assert response.status == 503
    body = json.loads(response.body)
    assert (body["nodeEligible"], body["healthy"]) == (True, False)
    assert get(servers.health_port, "/livez").status == 200


def test_a_stuck_thread_fails_both(
    servers: HealthServers, health: Health, clock: Clock, get: Get
) -> None:
    health.updated()
    health.heartbeat()
    clock.seconds += 30
    assert get(servers.health_port, "/healthz").status == 503
    assert get(servers.health_port, "/livez").status == 503
    health.heartbeat()
    assert get(servers.health_port, "/livez").status == 200


def test_responses_are_counted(servers: HealthServers, health: Health, get: Get) -> None:
    get(servers.health_port, "/healthz")
    health.updated()
    get(servers.health_port, "/healthz")
    get(servers.health_port, "/livez")
    scraped = get(servers.metrics_port, "/metrics").body
    assert 'kubeproxy_proxy_healthz_total{code="503"} 1.0' in scraped
    assert 'kubeproxy_proxy_healthz_total{code="200"} 1.0' in scraped
    assert 'kubeproxy_proxy_livez_total{code="200"} 1.0' in scraped


@pytest.mark.parametrize(
    ("path", "status", "content_type", "body"),
    [
        ("/healthz", 200, "text/plain; charset=utf-8", "ok"),
        ("/proxyMode", 200, "text/plain; charset=utf-8", "nftables"),
        ("/other", 404, "text/plain; charset=utf-8", "404 page not found\n"),
    ],
)
def test_pages_of_the_metrics_address(
    servers: HealthServers, get: Get, path: str, status: int, content_type: str, body: str
) -> None:
    response = get(servers.metrics_port, path)
    assert (response.status, response.headers["Content-Type"], response.body) == (
        status,
        content_type,
        body,
    )


def test_pages_for_people_and_scrapers(servers: HealthServers, get: Get) -> None:
    port = servers.metrics_port
    metrics = get(port, "/metrics")
    assert metrics.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram\n" in metrics.body
    configz = get(port, "/configz")
    assert configz.status == 200
    assert configz.headers["Content-Type"] == "application/json"
    assert configz.headers["X-Content-Type-Options"] == "nosniff"
    (name, configuration), *others = json.loads(configz.body).items()
    assert (name, others) == ("kubeproxy.config.k8s.io", [])
    assert file.parse(json.dumps(configuration).encode()).configuration == KubeProxyConfiguration(
        oom_score_adj=7
    )
    flagz = get(port, "/flagz").body.splitlines()
    assert flagz[0] == "pyproxy flagz"
    assert flagz[3:] == ["v 3"]
    statusz = get(port, "/statusz").body.splitlines()
    assert statusz[0] == "pyproxy statusz"
    names = [line.split(":")[0] for line in statusz[3:] if line]
    assert names == ["Started", "Up", "Python version", "Binary version", "Paths"]
    assert statusz[-1] == "Paths: /configz /flagz /healthz /metrics /proxyMode /statusz"


def test_an_empty_address_is_not_served(health: Health, metrics: Metrics) -> None:
    servers = HealthServers(Settings("n", serving=Serving(None, None)), health, metrics, LIMITS)
    servers.start()
    assert (servers.health_port, servers.metrics_port) == (None, None)
    servers.stop()


def test_a_used_address_is_retried_until_it_is_free(
    health: Health,
    metrics: Metrics,
    taken: socket.socket,
    get: Get,
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = taken.getsockname()[1]
    servers = HealthServers(settings(health_port=port), health, metrics, LIMITS)
    with caplog.at_level(logging.INFO, "pyproxy"):
        servers.start()
        try:
            assert get(servers.metrics_port, "/healthz").status == 200
            assert servers.health_port is None
            taken.close()
            until(lambda: servers.health_port is not None)
            assert get(port, "/livez").status == 503
            until(lambda: len(caplog.messages) == 2)
        finally:
            servers.stop()
    assert caplog.messages == [
        f"--healthz-bind-address: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "retrying every second",
        f"--healthz-bind-address: listening on 127.0.0.1:{port}",
    ]


def test_stop_during_retries(health: Health, metrics: Metrics, taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    servers = HealthServers(settings(health_port=port, metrics_port=port), health, metrics, LIMITS)
    servers.start()
    servers.stop()
    assert servers.health_port is None


def test_a_used_address_is_a_usage_error_with_hard_fail(
    health: Health, metrics: Metrics, taken: socket.socket
) -> None:
    port = taken.getsockname()[1]
    servers = HealthServers(settings(metrics_port=port, hard_fail=True), health, metrics, LIMITS)
    with pytest.raises(UsageError) as mistake:
        servers.start()
    assert str(mistake.value) == (
        f"--metrics-bind-address: cannot listen on 127.0.0.1:{port}: Address already in use: "
        "free it or set another address"
    )


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0001-01-01T00:00:00Z"),
        (10**9, "1970-01-01T00:00:01Z"),
        (1_795_226_258_790_989_891, "2026-11-21T01:57:38.790989891Z"),
        (1_795_226_258_790_000_000, "2026-11-21T01:57:38.79Z"),
    ],
)
def test_times_are_formatted_as_in_go(nanoseconds: int, text: str) -> None:
    assert rfc3339(nanoseconds) == text
