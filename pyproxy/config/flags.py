"""The flags with an effect, under kube-proxy's names where it has them."""

from __future__ import annotations

from pyproxy.config import values
from pyproxy.config.flag import Flag
from pyproxy.config.modes import DEFAULT, ProxyMode
from pyproxy.model.service_bounds import DEFAULT_BOUNDS

_IPTABLES = frozenset({ProxyMode.IPTABLES})
_IPVS = frozenset({ProxyMode.IPVS})
_NFTABLES = frozenset({ProxyMode.NFTABLES})
_NOT_IPVS = frozenset(ProxyMode) - _IPVS

KUBECONFIG = Flag(
    "--kubeconfig",
    values.text,
    "",
    "kubeconfig of the API server; its changes on disk are followed",
    ("clientConnection.kubeconfig",),
)
MASTER = Flag("--master", values.text, "", "URL of the API server, instead of that in --kubeconfig")
KUBE_API_CONTENT_TYPE = Flag(
    "--kube-api-content-type",
    values.text,
    "application/vnd.kubernetes.protobuf",
    "media type to request objects in: application/json or application/vnd.kubernetes.protobuf",
    ("clientConnection.contentType",),
)
MANIFESTS = Flag("--manifests", values.text, "", "folder of manifests instead of an API server")
HOSTNAME_OVERRIDE = Flag(
    "--hostname-override",
    values.text,
    "",
    "name of this Node (default the host's name in lower case)",
    ("hostnameOverride",),
)
BIND_ADDRESS = Flag(
    "--bind-address",
    values.address,
    "0.0.0.0",  # noqa: S104 (nothing is bound to it; unspecified stands for none)
    "primary address of the node, instead of the Node object's",
    ("bindAddress",),
)
PROXY_MODE = Flag(
    "--proxy-mode",
    values.proxy_mode,
    DEFAULT.value,
    f"kernel subsystem that serves: {', '.join(mode.value for mode in ProxyMode)}",
    ("mode",),
)

DETECT_LOCAL_MODE = Flag(
    "--detect-local-mode",
    values.local_mode,
    "ClusterCIDR",
    "how to recognize pods: ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
    ("detectLocalMode",),
)
CLUSTER_CIDR = Flag(
    "--cluster-cidr",
    values.cluster_networks,
    "",
    "CIDRs of pods, at most one per family",
    ("clusterCIDR",),
)
POD_BRIDGE_INTERFACE = Flag(
    "--pod-bridge-interface",
    values.interface_name(15),  # IFNAMSIZ is 16 with the final NUL
    "",
    "bridge of pods, for BridgeInterface",
    ("detectLocal.bridgeInterface",),
)
POD_INTERFACE_NAME_PREFIX = Flag(
    "--pod-interface-name-prefix",
    values.interface_name(14),  # one less than a name, for nft's asterisk at its end
    "",
    "prefix of pod interfaces, for InterfaceNamePrefix",
    ("detectLocal.interfaceNamePrefix",),
)
MASQUERADE_ALL = Flag(
    "--masquerade-all",
    values.boolean,
    "false",
    "masquerade all connections to cluster IPs",
    ("nftables.masqueradeAll", "iptables.masqueradeAll"),
)
MASQUERADE_BIT = Flag(
    "--iptables-masquerade-bit",
    values.integer(0, 31),
    "14",  # 0x4000, kube-proxy's mark
    "bit of the packet mark for masquerading, in every proxy mode",
    ("nftables.masqueradeBit", "iptables.masqueradeBit"),
)
NODEPORT_ADDRESSES = Flag(
    "--nodeport-addresses",
    values.node_ports,
    "primary",
    "addresses of node ports: CIDRs, primary, all, localhost; "
    "if not given, all,localhost in iptables mode and all in ipvs mode",
    fields=("nodePortAddresses",),
    repeats=True,
)

FEATURE_GATES = Flag(
    "--feature-gates",
    values.booleans_by_name,
    "",
    "feature gates as NAME=BOOL; AllowServiceExternalIPs=false proxies no external IP",
    ("featureGates",),
    repeats=True,
)

HEALTHZ_BIND_ADDRESS = Flag(
    "--healthz-bind-address",
    values.listen_address(10256),
    "0.0.0.0:10256",
    "address of /healthz and /livez, 0 for none",
    ("healthzBindAddress",),
)
METRICS_BIND_ADDRESS = Flag(
    "--metrics-bind-address",
    values.listen_address(10249),
    "127.0.0.1:10249",
    "address of /metrics, 0 for none",
    ("metricsBindAddress",),
)
_PORT = values.integer(0, 65535)
HEALTHZ_PORT = Flag(
    "--healthz-port",
    _PORT,
    "10256",
    "port if --healthz-bind-address has none; 0 disables /healthz (deprecated)",
    instead="--healthz-bind-address",
)
METRICS_PORT = Flag(
    "--metrics-port",
    _PORT,
    "10249",
    "port if --metrics-bind-address has none; 0 disables /metrics (deprecated)",
    instead="--metrics-bind-address",
)
BIND_ADDRESS_HARD_FAIL = Flag(
    "--bind-address-hard-fail",
    values.boolean,
    "false",
    "exit if one of these addresses cannot be bound, instead of retrying every second",
    ("bindAddressHardFail",),
)

# In a file, the first field counts that is set and not in an ignored section. A file without a mode
# may set both nftables and iptables.
SYNC_PERIOD = Flag(
    "--sync-period",
    values.duration_from(0.001),
    "30s",
    "half the time after which an overdue commit makes the agent unhealthy",
    ("nftables.syncPeriod", "ipvs.syncPeriod", "iptables.syncPeriod"),
)
MIN_SYNC_PERIOD = Flag(
    "--min-sync-period",
    values.duration_from(0),
    "0s",
    "least time between two commits",
    ("nftables.minSyncPeriod", "ipvs.minSyncPeriod", "iptables.minSyncPeriod"),
)
IPTABLES_SYNC_PERIOD = Flag(
    "--iptables-sync-period",
    values.duration_from(0.001),
    "30s",
    "alias of --sync-period, except in ipvs mode",
    ("iptables.syncPeriod",),
    modes=_NOT_IPVS,
)
IPTABLES_MIN_SYNC_PERIOD = Flag(
    "--iptables-min-sync-period",
    values.duration_from(0),
    "0s",
    "alias of --min-sync-period, except in ipvs mode",
    ("iptables.minSyncPeriod",),
    modes=_NOT_IPVS,
)
IPVS_SYNC_PERIOD = Flag(
    "--ipvs-sync-period",
    values.duration_from(0.001),
    "30s",
    "alias of --sync-period in ipvs mode",
    ("ipvs.syncPeriod",),
    modes=_IPVS,
)
IPVS_MIN_SYNC_PERIOD = Flag(
    "--ipvs-min-sync-period",
    values.duration_from(0),
    "0s",
    "alias of --min-sync-period in ipvs mode",
    ("ipvs.minSyncPeriod",),
    modes=_IPVS,
)

IPTABLES_FLAVOUR = Flag(
    "--iptables-flavour",
    values.iptables_flavour,
    "auto",
    "flavour of iptables: legacy, nft, or auto for the one that the node uses",
    modes=_IPTABLES,
)
IPTABLES_LOCALHOST_NODEPORTS = Flag(
    "--iptables-localhost-nodeports",
    values.boolean,
    "true",
    "serve node ports on 127.0.0.1 in iptables mode",
    ("iptables.localhostNodePorts",),
    modes=_IPTABLES,
)

IPVS_SCHEDULER = Flag(
    "--ipvs-scheduler",
    values.ipvs_scheduler,
    "",
    "IPVS scheduler by the kernel's name (default rr)",
    ("ipvs.scheduler",),
    modes=_IPVS,
)
IPVS_EXCLUDE_CIDRS = Flag(
    "--ipvs-exclude-cidrs",
    values.networks,
    "",
    "CIDRs of virtual services that ipvs mode leaves alone",
    ("ipvs.excludeCIDRs",),
    repeats=True,
    modes=_IPVS,
)
IPVS_STRICT_ARP = Flag(
    "--ipvs-strict-arp",
    values.boolean,
    "false",
    "reply to ARP for addresses of the receiving device only, in ipvs mode",
    ("ipvs.strictARP",),
    modes=_IPVS,
)
IPVS_TCP_TIMEOUT = Flag(
    "--ipvs-tcp-timeout",
    values.duration_from(0),
    "0s",
    "timeout of idle TCP connections in IPVS, 0 to keep the kernel's",
    ("ipvs.tcpTimeout",),
    modes=_IPVS,
)
IPVS_TCPFIN_TIMEOUT = Flag(
    "--ipvs-tcpfin-timeout",
    values.duration_from(0),
    "0s",
    "timeout of TCP connections after a FIN in IPVS, 0 to keep the kernel's",
    ("ipvs.tcpFinTimeout",),
    modes=_IPVS,
)
IPVS_UDP_TIMEOUT = Flag(
    "--ipvs-udp-timeout",
    values.duration_from(0),
    "0s",
    "timeout of UDP flows in IPVS, 0 to keep the kernel's",
    ("ipvs.udpTimeout",),
    modes=_IPVS,
)
VERBOSITY = Flag(
    "--v",
    values.integer(0, 2**31 - 1),
    "0",
    "log verbosity: 2 for the modes that the machine supports, 4 for debug lines, "
    "6 for those of libraries",
    ("logging.verbosity",),
)
LOGGING_FORMAT = Flag(
    "--logging-format",
    values.log_format,
    "text",
    "format of log lines: text or json",
    ("logging.format",),
)
TAKEOVER = Flag(
    "--takeover",
    values.boolean,
    "false",
    "remove kube-proxy's objects from the kernel, after the first commit",
)

CONNTRACK_MAX_PER_CORE = Flag(
    "--conntrack-max-per-core",
    values.integer(0, 2**31 - 1),
    "32768",
    "conntrack limit per CPU core, 0 to keep the kernel's",
    ("conntrack.maxPerCore",),
)
CONNTRACK_MIN = Flag(
    "--conntrack-min",
    values.integer(0, 2**31 - 1),
    "131072",
    "least conntrack limit, for few cores",
    ("conntrack.min",),
)
CONNTRACK_TCP_BE_LIBERAL = Flag(
    "--conntrack-tcp-be-liberal",
    values.boolean,
    "false",
    "accept TCP packets outside the window as part of their connection",
    ("conntrack.tcpBeLiberal",),
)
CONNTRACK_TCP_TIMEOUT_CLOSE_WAIT = Flag(
    "--conntrack-tcp-timeout-close-wait",
    values.duration_from(0),
    "1h0m0s",
    "conntrack timeout of half-closed TCP connections, 0 to keep the kernel's",
    ("conntrack.tcpCloseWaitTimeout",),
)
CONNTRACK_TCP_TIMEOUT_ESTABLISHED = Flag(
    "--conntrack-tcp-timeout-established",
    values.duration_from(0),
    "24h0m0s",
    "conntrack timeout of idle TCP connections, 0 to keep the kernel's",
    ("conntrack.tcpEstablishedTimeout",),
)
CONNTRACK_UDP_TIMEOUT = Flag(
    "--conntrack-udp-timeout",
    values.duration_from(0),
    "0s",
    "conntrack timeout of UDP flows without a reply, 0 to keep the kernel's",
    ("conntrack.udpTimeout",),
)
CONNTRACK_UDP_TIMEOUT_STREAM = Flag(
    "--conntrack-udp-timeout-stream",
    values.duration_from(0),
    "0s",
    "conntrack timeout of UDP flows with replies, 0 to keep the kernel's",
    ("conntrack.udpStreamTimeout",),
)
OOM_SCORE_ADJ = Flag(
    "--oom-score-adj",
    values.integer(-1000, 1000),
    "-999",
    "oom_score_adj of this process, from -1000 (never killed) to 1000",
    ("oomScoreAdj",),
)

INSPECT_SOCKET = Flag(
    "--inspect-socket",
    values.socket_path,
    "/run/pyproxy/pyproxy.sock",
    "Unix socket for pyproxy status and similar commands, root only; empty for none",
)
UI_BIND_ADDRESS = Flag(
    "--ui-bind-address",
    values.page_address,
    "",
    "address of the read-only page, which has no password; a port alone is on 127.0.0.1; "
    "empty or 0 for none",
)
MAX_FRONTENDS_PER_SERVICE = Flag(
    "--max-frontends-per-service",
    values.integer(1, 2**31 - 1),
    str(DEFAULT_BOUNDS.frontends),
    "most frontends of one Service: its addresses times its ports, without node addresses",
)
MAX_ENDPOINTS_PER_SERVICE = Flag(
    "--max-endpoints-per-service",
    values.integer(1, 2**31 - 1),
    str(DEFAULT_BOUNDS.endpoints),
    "most endpoints of one Service, counted for each of its frontends",
)
MAX_SOURCE_RANGES_PER_SERVICE = Flag(
    "--max-source-ranges-per-service",
    values.integer(1, 2**31 - 1),
    str(DEFAULT_BOUNDS.source_ranges),
    "most source ranges of one Service, counted for each of its load balancer frontends",
)
ENDPOINT_COUNTERS = Flag(
    "--endpoint-counters",
    values.boolean,
    "false",
    "count connections to each endpoint for pyproxy top, which costs kernel memory",
    modes=_NFTABLES,
)

FLOW_OFFLOAD = Flag(
    "--flow-offload",
    values.flow_offload,
    "none",
    "connections that the kernel forwards past routing and all hooks: none, or services for "
    "established connections to Services",
    ("nftables.flowOffload",),
    modes=_NFTABLES,
)
FLOW_OFFLOAD_INTERFACES = Flag(
    "--flow-offload-interfaces",
    values.interfaces,
    "",
    "interfaces whose packets may be offloaded, as names, and prefixes ending in *; if not given, "
    "those of pods, of default routes and of tunnels",
    ("nftables.flowOffloadInterfaces",),
    modes=_NFTABLES,
)

CONFIG = Flag(
    "--config", values.text, "", "file with a KubeProxyConfiguration, which replaces most flags"
)
WRITE_CONFIG_TO = Flag(
    "--write-config-to", values.text, "", "write the configuration in force to this file and exit"
)
INIT_ONLY = Flag("--init-only", values.boolean, "false", "make the kernel settings and exit")
VERSION = Flag(
    "--version", values.version_request, "false", "print the version and exit; raw for all of it"
)
CLEANUP = Flag("--cleanup", values.boolean, "false", "run the command cleanup instead")

SYNC_PERIOD_ALIASES = (IPTABLES_SYNC_PERIOD, IPVS_SYNC_PERIOD)
MIN_SYNC_PERIOD_ALIASES = (IPTABLES_MIN_SYNC_PERIOD, IPVS_MIN_SYNC_PERIOD)
ALIASES: tuple[Flag[float], ...] = (*SYNC_PERIOD_ALIASES, *MIN_SYNC_PERIOD_ALIASES)
"""Flags with the meaning of another flag. That flag reads their fields of a file."""

PORTS = ((HEALTHZ_PORT, HEALTHZ_BIND_ADDRESS), (METRICS_PORT, METRICS_BIND_ADDRESS))
"""Deprecated flags of ports, and the flags of their addresses."""

EFFECTIVE: tuple[Flag[object], ...] = tuple(
    each for each in tuple(vars().values()) if isinstance(each, Flag)
)
"""All flags of this module."""
