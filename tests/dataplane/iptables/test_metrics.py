"""The metrics that kube-proxy has in iptables mode alone, on a real kernel in both flavours."""

from __future__ import annotations

import csv
import socket
from collections.abc import Iterator

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.iptables.dataplane import IptablesDataplane
from pyproxy.metrics import Metrics
from pyproxy.model.flavour import Flavour
from pyproxy.netlink import nfacct
from pyproxy.xtables import kube_names
from tests.dataplane.iptables.programming import program, programming
from tests.dataplane.nftables.test_dataplane import numbered
from tests.exposition import series
from tests.test_metrics import METRICS_FILE

pytestmark = pytest.mark.kernel

PACKETS = {
    kube_names.INVALID_DROPPED: "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
    kube_names.LOCALHOST_ACCEPTED: "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
}


@pytest.fixture
def dataplane(namespace: Namespace, flavour: Flavour) -> Iterator[IptablesDataplane]:
    if not namespace.call(nfacct.is_supported):
        pytest.skip("the kernel has no nfacct")
    with programming(namespace, flavour) as made:
        namespace.call(made.prepare)
        program(namespace, made, [numbered(1)])
        yield made


def read(dataplane: IptablesDataplane) -> str:
    metrics = Metrics()
    metrics.register(dataplane)
    return metrics.exposition().decode()


def described(metric: Metric) -> tuple[str, str]:
    labels = {key for sample in metric.samples for key in sample.labels}
    return metric.type, ",".join(sorted(labels))


def test_all_metrics_of_kube_proxys_iptables_mode_are_exposed(dataplane: IptablesDataplane) -> None:
    found = {
        metric.name + ("_total" if metric.type == "counter" else ""): described(metric)
        for metric in text_string_to_metric_families(read(dataplane))
    }
    with METRICS_FILE.open() as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["modes"] == "iptables"]
    assert rows
    for row in rows:
        assert found[row["metric"]] == (row["type"], row["labels"])


@pytest.mark.parametrize("counter", sorted(PACKETS))
def test_packets_of_a_counter_are_read_at_each_scrape(
    namespace: Namespace, flavour: Flavour, dataplane: IptablesDataplane, counter: str
) -> None:
    assert {series(read(dataplane))[name] for name in PACKETS.values()} == {0}
    namespace.run(["ip", "link", "set", "lo", "up"])
    rule = ["-A", "OUTPUT", "-p", "udp", "-m", "nfacct", "--nfacct-name", counter]
    namespace.run([f"iptables-{flavour.value}", "--wait", *rule])
    namespace.call(lambda: send(3))
    found = series(read(dataplane))
    assert {name: found[PACKETS[name]] for name in PACKETS} == {
        name: 3 if name == counter else 0 for name in PACKETS
    }


def send(count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(b"x", ("127.0.0.1", 9))


def test_without_nfacct_objects_the_other_metrics_stay(
    namespace: Namespace, dataplane: IptablesDataplane
) -> None:
    namespace.call(dataplane.cleanup)
    found = series(read(dataplane))
    assert not found.keys() & set(PACKETS.values())
    assert "pyproxy_iptables_lock_waits_total" in found
