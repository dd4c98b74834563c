import csv
import platform
from collections.abc import Mapping
from pathlib import Path

import pytest

from pyproxy.config.modes import ProxyMode
from pyproxy.dataplane.modes import MODES
from pyproxy.metrics import Metrics
from pyproxy.model.objects import Kind
from tests.exposition import series
from tests.used_metrics import read, used

METRICS_FILE = Path(__file__).parent / "data" / "kube-proxy-metrics.tsv"

with METRICS_FILE.open() as file:
    KUBE_PROXY_METRICS = {
        row["metric"]: row
        for row in csv.DictReader(file, delimiter="\t")
        if "nftables" in row["modes"]
    }

LEFT_OUT = {
    "rest_client_exec_plugin_certificate_rotation_age": "certificates are not parsed",
    "rest_client_exec_plugin_ttl_seconds": "certificates are not parsed",
    "rest_client_rate_limiter_duration_seconds": "requests are not limited",
    "rest_client_transport_cache_entries": "a cache of Go's client",
    "rest_client_transport_cert_rotation_gc_calls_total": "a cache of Go's client",
    "rest_client_transport_create_calls_total": "a cache of Go's client",
}

# Name, as kube-proxy's table has it: type, labels and buckets.
Exposed = Mapping[str, tuple[str, str, str]]


@pytest.fixture(scope="module")
def exposed() -> Exposed:
    found = {}
    for family in read(used()):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {key for sample in family.samples for key in sample.labels} - {"le"}
        buckets = dict.fromkeys(s.labels["le"] for s in family.samples if "le" in s.labels)
        found[name] = (family.type, ",".join(sorted(labels)), ",".join(buckets))
    return found


@pytest.mark.parametrize("name", sorted(KUBE_PROXY_METRICS.keys() - LEFT_OUT.keys()))
def test_type_labels_and_buckets_are_kube_proxys(name: str, exposed: Exposed) -> None:
    row = KUBE_PROXY_METRICS[name]
    assert exposed[name] == (row["type"], row["labels"], row["buckets"])


def test_all_others_are_our_own_or_the_process(exposed: Exposed) -> None:
    others = exposed.keys() - KUBE_PROXY_METRICS.keys()
    assert {name for name in others if not name.startswith("process_")} == {
        "pyproxy_configuration_problems",
        "pyproxy_programming_latency_seconds",
        "pyproxy_programming_phase_seconds",
        "pyproxy_drift_repairs_total",
        "pyproxy_events_total",
        "pyproxy_flow_offload_active",
        "pyproxy_flow_offload_flows_total",
        "pyproxy_flow_offload_interfaces",
        "pyproxy_kernel_table_fill_ratio",
        "pyproxy_kernel_writes_total",
        "pyproxy_dataplane_bytes_total",
        "pyproxy_dataplane_messages_total",
        "pyproxy_http_connections_total",
        "pyproxy_http_dropped_connections_total",
        "pyproxy_http_open_connections",
        "pyproxy_incomplete_health_check_ports",
        "pyproxy_invalid_objects",
        "pyproxy_log_lines_suppressed_total",
        "pyproxy_session_affinity_refused_connections_total",
        "pyproxy_source_last_event_age_seconds",
        "pyproxy_worker_failures_total",
    }
    assert LEFT_OUT.keys() <= KUBE_PROXY_METRICS.keys()
    assert not LEFT_OUT.keys() & exposed.keys()


def test_no_created_series() -> None:
    assert "_created" not in used().exposition().decode()


def test_types_are_announced_under_the_names_that_go_announces() -> None:
    lines = used().exposition().decode().splitlines()
    announced = {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE")}
    for name in KUBE_PROXY_METRICS.keys() - LEFT_OUT.keys():
        assert announced[name] == KUBE_PROXY_METRICS[name]["type"]


def test_what_happens_is_counted() -> None:
    found = series(used().exposition().decode())
    sync = "kubeproxy_sync_proxy_rules"
    assert found[f"{sync}_service_changes_total"] == 1
    assert found[f"{sync}_endpoint_changes_pending"] == 1
    for family in ("IPv4", "IPv6"):
        label = f'ip_family="{family}"'
        assert found[f"{sync}_duration_seconds_count{{{label}}}"] == 2
        assert found[f'{sync}_duration_seconds_bucket{{{label},le="0.001"}}'] == 1
        assert found[f'{sync}_duration_seconds_bucket{{{label},le="+Inf"}}'] == 2
        assert found[f"kubeproxy_sync_full_proxy_rules_duration_seconds_count{{{label}}}"] == 1
        assert found[f"kubeproxy_sync_partial_proxy_rules_duration_seconds_count{{{label}}}"] == 1
        assert found[f"{sync}_last_timestamp_seconds{{{label}}}"] == 1003.5
        assert found[f"{sync}_last_queued_timestamp_seconds{{{label}}}"] == 1001.5
        assert found[f"{sync}_nftables_sync_failures_total{{{label}}}"] == 1
        external = f'{sync}_no_local_endpoints_total{{{label},traffic_policy="external"}}'
        assert found[external] == 2
    for code in ("200", "<error>"):
        counted = f'rest_client_requests_total{{code="{code}",host="api:6443",method="GET"}}'
        assert found[counted] == 1
    gate = 'kubernetes_feature_enabled{name="%s",stage="%s"}'
    assert found[gate % ("AllowServiceExternalIPs", "DEPRECATED")] == 0
    assert found[gate % ("NFTablesProxyMode", "")] == 1
    sizes = 'rest_client_response_size_bytes_bucket{host="api:6443",le="%s",verb="GET"}'
    assert (found[sizes % 4096], found[sizes % 16384]) == (0, 1)
    assert found['pyproxy_programming_latency_seconds_bucket{le="0.0005"}'] == 1
    assert found['pyproxy_invalid_objects{kind="Service"}'] == 2
    assert found["pyproxy_dataplane_bytes_total"] == 1234
    assert found["pyproxy_source_last_event_age_seconds"] == 12.5


def test_changes_taken_are_pending_no_more() -> None:
    metrics = used()
    metrics.changes.taken()
    found = series(metrics.exposition().decode())
    assert found["kubeproxy_sync_proxy_rules_service_changes_pending"] == 0
    assert found["kubeproxy_sync_proxy_rules_endpoint_changes_pending"] == 0
    assert found["kubeproxy_sync_proxy_rules_endpoint_changes_total"] == 1


def test_a_changed_node_asks_for_a_sync_and_counts_as_no_service() -> None:
    metrics = Metrics()
    metrics.changes.queued(Kind.NODE, 5.0)
    found = series(metrics.exposition().decode())
    queued = 'kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"}'
    assert found[queued] == 5.0
    assert found["kubeproxy_sync_proxy_rules_service_changes_total"] == 0


@pytest.mark.parametrize("mode", list(ProxyMode))
def test_failures_are_counted_under_the_names_that_kube_proxy_has_in_that_mode(
    mode: ProxyMode,
) -> None:
    names = MODES[mode].failure_names
    metrics = Metrics(sync_failures=names.sync, cleanup_failures=names.cleanup)
    metrics.syncs.failed()
    metrics.syncs.cleanup_failed()
    found = {family.name for family in metrics.collect() if "failures" in family.name}
    with METRICS_FILE.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    in_mode = {row["metric"].removesuffix("_total") for row in rows if mode.value in row["modes"]}
    assert found - {"pyproxy_worker_failures"} <= in_mode
    if names.sync:
        assert len(found & in_mode) == 2


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("riscv64", "linux/riscv64")],
)
def test_the_platform_has_gos_name(
    machine: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert f'platform="{expected}"' in Metrics().exposition().decode()
