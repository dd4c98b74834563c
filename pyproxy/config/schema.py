"""KubeProxyConfiguration, kubeproxy.config.k8s.io/v1alpha1, as Kubernetes v1.36 has it.

The section of nftables mode also has two fields of pyproxy alone, which concern flow offload.

A value that is not given is zero as in Go. A field that is a pointer in Go is None, because an
explicit zero has a meaning of its own there. Durations are text in Go's notation. The schema checks
types alone; the flag with the same meaning checks the values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import msgspec
from msgspec import field

from pyproxy.config import durations

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
KIND = "KubeProxyConfiguration"

Leaf: TypeAlias = str | int | float | bool | tuple[str, ...] | dict[str, bool] | None
"""The value of a field that is no section."""

_ZERO_DURATION = "0s"


class _Section(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of the configuration, by Kubernetes' own field names."""


class ClientConnection(_Section, frozen=True, kw_only=True):
    """The client of the API server."""

    accept_content_types: str = ""
    burst: int = 0
    content_type: str = ""
    kubeconfig: str = ""
    qps: float = 0.0


class Conntrack(_Section, frozen=True, kw_only=True):
    """The kernel's connection tracking; 0 leaves a setting as it is."""

    max_per_core: int | None = None
    min: int | None = None
    tcp_be_liberal: bool = False
    tcp_close_wait_timeout: str | None = None
    tcp_established_timeout: str | None = None
    udp_stream_timeout: str = _ZERO_DURATION
    udp_timeout: str = _ZERO_DURATION


class DetectLocal(_Section, frozen=True, kw_only=True):
    """The interfaces of pods."""

    bridge_interface: str = ""
    interface_name_prefix: str = ""


class Iptables(_Section, frozen=True, kw_only=True):
    """The section of iptables mode."""

    localhost_node_ports: bool | None = None
    masquerade_all: bool = False
    masquerade_bit: int | None = None
    min_sync_period: str = _ZERO_DURATION
    snat_node_internal_ip: bool | None = field(default=None, name="snatNodeInternalIP")
    sync_period: str = _ZERO_DURATION


class Ipvs(_Section, frozen=True, kw_only=True):
    """The section of ipvs mode."""

    exclude_cidrs: tuple[str, ...] = field(default=(), name="excludeCIDRs")
    min_sync_period: str = _ZERO_DURATION
    scheduler: str = ""
    strict_arp: bool = field(default=False, name="strictARP")
    sync_period: str = _ZERO_DURATION
    tcp_fin_timeout: str = _ZERO_DURATION
    tcp_timeout: str = _ZERO_DURATION
    udp_timeout: str = _ZERO_DURATION


class Nftables(_Section, frozen=True, kw_only=True):
    """The section of nftables mode."""

    # pyproxy's own, which kube-proxy refuses to read.
    flow_offload: str = ""
    flow_offload_interfaces: tuple[str, ...] = ()
    masquerade_all: bool = False
    masquerade_bit: int | None = None
    min_sync_period: str = _ZERO_DURATION
    sync_period: str = _ZERO_DURATION


class Routing(_Section, frozen=True, kw_only=True):
    """The output of one log format."""

    # A resource.Quantity, which YAML may have as text or as a number.
    info_buffer_size: str | int | float = "0"
    split_stream: bool = False


class LogOptions(_Section, frozen=True, kw_only=True):
    """klog's options by format."""

    json: Routing = Routing()
    text: Routing = Routing()


class Module(_Section, frozen=True, kw_only=True):
    """klog's verbosity for some source files."""

    file_pattern: str
    verbosity: int


class Logging(_Section, frozen=True, kw_only=True):
    """The log; `flush_frequency` is in nanoseconds if it is a number."""

    flush_frequency: str | int = _ZERO_DURATION
    format: str = ""
    options: LogOptions = LogOptions()
    verbosity: int = 0
    vmodule: tuple[Module, ...] = ()


class Winkernel(_Section, frozen=True, kw_only=True):
    """The section of Windows."""

    enable_dsr: bool = field(default=False, name="enableDSR")
    forward_health_check_vip: bool = False
    network_name: str = ""
    root_hns_endpoint_name: str = ""
    source_vip: str = ""


class KubeProxyConfiguration(_Section, frozen=True, kw_only=True):
    """The root. ConfigMaps of old clusters have `udpIdleTimeout`, which v1.36 lacks."""

    api_version: str = API_VERSION
    bind_address: str = ""
    bind_address_hard_fail: bool = False
    client_connection: ClientConnection = ClientConnection()
    cluster_cidr: str = field(default="", name="clusterCIDR")
    config_sync_period: str = _ZERO_DURATION
    conntrack: Conntrack = Conntrack()
    detect_local: DetectLocal = DetectLocal()
    detect_local_mode: str = ""
    enable_profiling: bool = False
    feature_gates: dict[str, bool] = field(default_factory=dict)
    healthz_bind_address: str = ""
    hostname_override: str = ""
    iptables: Iptables = Iptables()
    ipvs: Ipvs = Ipvs()
    kind: str = KIND
    logging: Logging = Logging()
    metrics_bind_address: str = ""
    mode: str = ""
    nftables: Nftables = Nftables()
    node_port_addresses: tuple[str, ...] = ()
    oom_score_adj: int | None = None
    port_range: str = ""
    show_hidden_metrics_for_version: str = ""
    udp_idle_timeout: str = _ZERO_DURATION
    windows_run_as_service: bool = False
    winkernel: Winkernel = Winkernel()


def leaves(section: msgspec.Struct, prefix: str = "") -> Iterator[tuple[str, Leaf]]:
    """Yield every field that is no section, after its path, such as `conntrack.maxPerCore`."""
    for each in msgspec.structs.fields(section):
        value = getattr(section, each.name)
        path = prefix + each.encode_name
        if isinstance(value, msgspec.Struct):
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


ZERO: Mapping[str, Leaf] = dict(leaves(KubeProxyConfiguration()))
"""Every path, with its value if it is not given."""


def is_zero(path: str, value: Leaf) -> bool:
    """Return whether kube-proxy would replace the value by its default."""
    if ZERO[path] == _ZERO_DURATION:
        try:
            return durations.parse(str(value)) == 0
        except ValueError:
            return False
    return value == ZERO[path]


def with_leaves(
    configuration: KubeProxyConfiguration, values: Mapping[str, Leaf]
) -> KubeProxyConfiguration:
    """Return a configuration with other values at some paths; a number may be text."""
    tree = msgspec.to_builtins(configuration)
    for path, value in values.items():
        *sections, last = path.split(".")
        at = tree
        for section in sections:
            at = at[section]
        at[last] = value
    return msgspec.convert(tree, KubeProxyConfiguration, strict=False)
