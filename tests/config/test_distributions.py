"""The swap on real clusters: each command line and file starts, with known lines and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pyproxy.agent.config_rules import cidr_problems, node_problems
from pyproxy.cli import KUBE_PROXY_FLAGS
from pyproxy.config import NodePorts, Settings
from pyproxy.config.schema import API_VERSION, KIND
from pyproxy.model.address import Family, parse_address, parse_network
from pyproxy.model.objects import Node

from .parsing import parse

HEAD = f"apiVersion: {API_VERSION}\nkind: {KIND}\n"
TABLE: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("distributions.yaml").read_text()
)


def node_ports(ports: NodePorts) -> str:
    words = {
        "primary": ports.primary,
        "all": ports.everywhere,
        "localhost": ports.localhost and ports.loopback,
    }
    return ",".join([*(word for word, on in words.items() if on), *map(str, ports.networks)])


def facts(settings: Settings) -> dict[str, object]:
    """The settings that decide where packets go and how the agent is watched, as text."""
    conntrack, ipvs = settings.conntrack, settings.ipvs
    return {
        "mode": settings.mode.value,
        "node": settings.node_name,
        "api": f"{settings.api.kubeconfig} {settings.api.master}".strip(),
        "local": settings.local_traffic.mode.value,
        "pods": ",".join(map(str, settings.local_traffic.cluster_networks)),
        "node ports": node_ports(settings.node_ports),
        "masquerade": f"{settings.masquerade.bit} {settings.masquerade.everything}",
        "periods": f"{settings.pace.min_sync_period:g} {settings.pace.sync_period:g}",
        "conntrack": f"{conntrack.max_per_core} {conntrack.min}",
        "timeouts": f"{conntrack.tcp_established_timeout:g} {conntrack.tcp_close_wait_timeout:g}",
        "ipvs": f"{ipvs.scheduler} {ipvs.strict_arp} {ipvs.tcp_timeout:g} {ipvs.udp_timeout:g}",
        "health": str(settings.serving.health),
        "metrics": str(settings.serving.metrics),
        "oom": settings.oom_score_adj,
        "log": f"{settings.log_format} {settings.verbosity}",
    }


DEFAULTS = facts(parse(*KUBE_PROXY_FLAGS)) | {
    "node": "node-a",
    "api": "/k",
    "pods": "10.9.0.0/16",
}


def start(folder: Path, command: str, text: str) -> tuple[Settings, list[str]]:
    path = folder / "config.conf"
    path.write_text(HEAD + text)
    settings = parse(*KUBE_PROXY_FLAGS, *command.replace("CONFIG", str(path)).split())
    return settings, [line.replace(str(path), "CONFIG") for line in settings.remarks]


def problems(settings: Settings) -> list[str]:
    """The lines that the agent logs once it has the Node and a Service, both of IPv4."""
    node = Node(
        settings.node_name,
        addresses=(parse_address("172.30.0.11"),),
        pod_networks=(parse_network("10.9.1.0/24"),),
    )
    found = [
        *node_problems(settings, node, (), node.addresses, {Family.IPV4}),
        *cidr_problems(settings, node, {Family.IPV4}),
    ]
    return [f"configuration problem {each.topic.value}: {each}" for each in found]


@pytest.mark.parametrize("name", TABLE)
def test_it_starts_with_known_lines_and_settings(tmp_path: Path, name: str) -> None:
    row = TABLE[name]
    settings, lines = start(tmp_path, row["command"], row.get("file", ""))
    assert [*lines, *problems(settings)] == row.get("lines", [])
    assert facts(settings) == DEFAULTS | row.get("settings", {})


# The fields of the file that kubeadm writes, by the minor versions that write them. Zero values
# stand for kube-proxy's defaults.
KUBEADM = (
    (20, 36, "bindAddress: 0.0.0.0"),
    (20, 36, "clientConnection: {acceptContentTypes: '', burst: 0, contentType: '', qps: 0,"),
    (20, 36, "  kubeconfig: /k}"),
    (20, 36, "clusterCIDR: 10.9.0.0/16"),
    (20, 36, "configSyncPeriod: 0s"),
    (20, 27, "conntrack: {maxPerCore: null, min: null, tcpCloseWaitTimeout: null,"),
    (28, 36, "conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, udpTimeout: 0s,"),
    (28, 36, "  udpStreamTimeout: 0s, tcpCloseWaitTimeout: null,"),
    (20, 36, "  tcpEstablishedTimeout: null}"),
    (22, 36, "detectLocal: {bridgeInterface: '', interfaceNamePrefix: ''}"),
    (20, 36, "detectLocalMode: ''"),
    (20, 36, "enableProfiling: false"),
    (20, 36, "healthzBindAddress: ''"),
    (20, 36, "hostnameOverride: ''"),
    (20, 25, "iptables: {masqueradeAll: false, masqueradeBit: null,"),
    (26, 36, "iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null,"),
    (20, 36, "  minSyncPeriod: 0s, syncPeriod: 0s}"),
    (20, 36, "ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: '', strictARP: false,"),
    (20, 36, "  syncPeriod: 0s, tcpFinTimeout: 0s, tcpTimeout: 0s, udpTimeout: 0s}"),
    (28, 36, "logging: {flushFrequency: 0, verbosity: 0,"),
    (28, 30, "  options: {json: {infoBufferSize: '0'}}}"),
    (31, 36, "  options: {json: {infoBufferSize: '0'}, text: {infoBufferSize: '0'}}}"),
    (20, 36, "metricsBindAddress: ''"),
    (20, 36, "mode: ''"),
    (29, 36, "nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s,"),
    (29, 36, "  syncPeriod: 0s}"),
    (20, 36, "nodePortAddresses: null"),
    (20, 36, "oomScoreAdj: null"),
    (20, 36, "portRange: ''"),
    (20, 36, "showHiddenMetricsForVersion: ''"),
    (20, 25, "udpIdleTimeout: 0s"),
    (20, 36, "winkernel: {enableDSR: false, networkName: '', sourceVip: ''}"),
    (33, 36, "windowsRunAsService: false"),
)


@pytest.mark.parametrize("minor", range(20, 37))
def test_every_kubeadm_file_starts_without_a_line(tmp_path: Path, minor: int) -> None:
    text = "\n".join(line for first, last, line in KUBEADM if first <= minor <= last)
    command = "--config=CONFIG --hostname-override=node-a"
    settings, lines = start(tmp_path, command, text)
    assert lines == []
    assert facts(settings) == DEFAULTS
