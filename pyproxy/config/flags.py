"""The flags that do something, by kube-proxy's names where it has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from pyproxy.config import values
from pyproxy.config.modes import DEFAULT, ProxyMode

T_co = TypeVar("T_co", covariant=True)


class Flag(msgspec.Struct, Generic[T_co], frozen=True):
    """One flag: how its text is read, and what it is where nobody gives it.

    `fields` are the paths in a KubeProxyConfiguration that say the same, of which the first that is
    given counts; none where only the command line can say it. `repeats` is for lists, which grow
    where Go's other flags take the last value given. In a mode that is none of `modes` it changes
    nothing.
    """

    name: str
    read: Callable[[str], T_co]
    default: str
    help: str
    fields: tuple[str, ...] = ()
    repeats: bool = False
    modes: frozenset[ProxyMode] = frozenset(ProxyMode)

    @property
    def is_boolean(self) -> bool:
        """Whether the flag alone means true, and the next argument is not its value."""
        return self.read is values.boolean


_IPTABLES = frozenset({ProxyMode.IPTABLES})
_IPVS = frozenset({ProxyMode.IPVS})
_NFTABLES = frozenset({ProxyMode.NFTABLES})
_NOT_IPVS = frozenset(ProxyMode) - _IPVS

KUBECONFIG = Flag(
    "--kubeconfig",
    values.text,
    "",
    "the file that says how to reach the API server",
    ("clientConnection.kubeconfig",),
)
MASTER = Flag("--master", values.text, "", "the API server's URL, before the one in --kubeconfig")
MANIFESTS = Flag("--manifests", values.text, "", "a folder of manifests instead of an API server")
HOSTNAME_OVERRIDE = Flag(
    "--hostname-override",
    values.text,
    "",
    "the name of this Node; else the host's, in lower case",
    ("hostnameOverride",),
)
BIND_ADDRESS = Flag(
    "--bind-address",
    values.address,
    "0.0.0.0",  # noqa: S104 (nothing is bound to it; unspecified stands for none)
    "the node's primary address, if not the Node's own",
    ("bindAddress",),
)
PROXY_MODE = Flag(
    "--proxy-mode",
    values.proxy_mode,
    DEFAULT.value,
    f"the kernel subsystem that serves: {', '.join(mode.value for mode in ProxyMode)}",
    ("mode",),
)

DETECT_LOCAL_MODE = Flag(
    "--detect-local-mode",
    values.local_mode,
    "ClusterCIDR",
    "who is a pod: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
    ("detectLocalMode",),
)
CLUSTER_CIDR = Flag(
    "--cluster-cidr",
    values.cluster_networks,
    "",
    "the pods' CIDRs, at most one a family",
    ("clusterCIDR",),
)
POD_BRIDGE_INTERFACE = Flag(
    "--pod-bridge-interface",
    values.interface_name(15),
    "",
    "the bridge, for BridgeInterface",
    ("detectLocal.bridgeInterface",),
)
POD_INTERFACE_NAME_PREFIX = Flag(
    "--pod-interface-name-prefix",
    values.interface_name(14),  # one less than a name, for nft's asterisk at its end
    "",
    "how pods' interfaces begin, for InterfaceNamePrefix",
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
    "14",
    "the bit of the packet mark that asks for masquerading, in every proxy mode",
    ("nftables.masqueradeBit", "iptables.masqueradeBit"),
)
NODEPORT_ADDRESSES = Flag(
    "--nodeport-addresses",
    values.node_ports,
    "primary",
    "where node ports answer: CIDRs, primary, all, localhost; not given, in iptables mode all and "
    "localhost, and in ipvs mode all",
    fields=("nodePortAddresses",),
    repeats=True,
)

HEALTHZ_BIND_ADDRESS = Flag(
    "--healthz-bind-address",
    values.listen_address(10256),
    "0.0.0.0:10256",
    "where /healthz and /livez are served; 0 for nowhere",
    ("healthzBindAddress",),
)
METRICS_BIND_ADDRESS = Flag(
    "--metrics-bind-address",
    values.listen_address(10249),
    "127.0.0.1:10249",
    "where /metrics is served; 0 for nowhere",
    ("metricsBindAddress",),
)
BIND_ADDRESS_HARD_FAIL = Flag(
    "--bind-address-hard-fail",
    values.boolean,
    "false",
    "end if one of them cannot be bound",
    ("bindAddressHardFail",),
)

SYNC_PERIOD = Flag(
    "--sync-period",
    values.duration_from(0.001),
    "30s",
    "the time between checks of the kernel",
    ("nftables.syncPeriod", "ipvs.syncPeriod", "iptables.syncPeriod"),
)
MIN_SYNC_PERIOD = Flag(
    "--min-sync-period",
    values.duration_from(0),
    "0s",
    "the least time between two commits",
    ("nftables.minSyncPeriod", "ipvs.minSyncPeriod", "iptables.minSyncPeriod"),
)
IPTABLES_SYNC_PERIOD = Flag(
    "--iptables-sync-period",
    values.duration_from(0.001),
    "30s",
    "the same as --sync-period, but for ipvs mode",
    ("iptables.syncPeriod",),
    modes=_NOT_IPVS,
)
IPTABLES_MIN_SYNC_PERIOD = Flag(
    "--iptables-min-sync-period",
    values.duration_from(0),
    "0s",
    "the same as --min-sync-period, but for ipvs mode",
    ("iptables.minSyncPeriod",),
    modes=_NOT_IPVS,
)
IPVS_SYNC_PERIOD = Flag(
    "--ipvs-sync-period",
    values.duration_from(0.001),
    "30s",
    "the same as --sync-period, in ipvs mode",
    ("ipvs.syncPeriod",),
    modes=_IPVS,
)
IPVS_MIN_SYNC_PERIOD = Flag(
    "--ipvs-min-sync-period",
    values.duration_from(0),
    "0s",
    "the same as --min-sync-period, in ipvs mode",
    ("ipvs.minSyncPeriod",),
    modes=_IPVS,
)

IPTABLES_FLAVOUR = Flag(
    "--iptables-flavour",
    values.iptables_flavour,
    "auto",
    "which kind of iptables: legacy, nft, or auto for the one that the node uses",
    modes=_IPTABLES,
)
IPTABLES_LOCALHOST_NODEPORTS = Flag(
    "--iptables-localhost-nodeports",
    values.boolean,
    "true",
    "in iptables mode, let node ports answer on 127.0.0.1",
    ("iptables.localhostNodePorts",),
    modes=_IPTABLES,
)

IPVS_SCHEDULER = Flag(
    "--ipvs-scheduler",
    values.ipvs_scheduler,
    "",
    "how ipvs mode picks endpoints, by the kernel's name; rr where not given",
    ("ipvs.scheduler",),
    modes=_IPVS,
)
IPVS_EXCLUDE_CIDRS = Flag(
    "--ipvs-exclude-cidrs",
    values.networks,
    "",
    "where ipvs mode touches no virtual service",
    ("ipvs.excludeCIDRs",),
    repeats=True,
    modes=_IPVS,
)
IPVS_STRICT_ARP = Flag(
    "--ipvs-strict-arp",
    values.boolean,
    "false",
    "in ipvs mode, answer ARP for the addresses of the asked device alone",
    ("ipvs.strictARP",),
    modes=_IPVS,
)
IPVS_TCP_TIMEOUT = Flag(
    "--ipvs-tcp-timeout",
    values.duration_from(0),
    "0s",
    "how long IPVS remembers idle TCP connections; 0 leaves it as it is",
    ("ipvs.tcpTimeout",),
    modes=_IPVS,
)
IPVS_TCPFIN_TIMEOUT = Flag(
    "--ipvs-tcpfin-timeout",
    values.duration_from(0),
    "0s",
    "how long IPVS remembers TCP connections after a FIN; 0 leaves it as it is",
    ("ipvs.tcpFinTimeout",),
    modes=_IPVS,
)
IPVS_UDP_TIMEOUT = Flag(
    "--ipvs-udp-timeout",
    values.duration_from(0),
    "0s",
    "how long IPVS remembers UDP flows; 0 leaves it as it is",
    ("ipvs.udpTimeout",),
    modes=_IPVS,
)
VERBOSITY = Flag(
    "--v",
    values.integer(0, 2**31 - 1),
    "0",
    "how much is logged: 4 and more debugs",
    ("logging.verbosity",),
)
TAKEOVER = Flag(
    "--takeover",
    values.boolean,
    "false",
    "once this node is served, remove what kube-proxy has left in the kernel, in every mode",
)

CONNTRACK_MAX_PER_CORE = Flag(
    "--conntrack-max-per-core",
    values.integer(0, 2**31 - 1),
    "32768",
    "how many connections a CPU core is good for; 0 leaves the kernel's limit as it is",
    ("conntrack.maxPerCore",),
)
CONNTRACK_MIN = Flag(
    "--conntrack-min",
    values.integer(0, 2**31 - 1),
    "131072",
    "the least limit of connections, however few cores there are",
    ("conntrack.min",),
)
CONNTRACK_TCP_BE_LIBERAL = Flag(
    "--conntrack-tcp-be-liberal",
    values.boolean,
    "false",
    "let TCP packets outside the window pass as part of their connection",
    ("conntrack.tcpBeLiberal",),
)
CONNTRACK_TCP_TIMEOUT_CLOSE_WAIT = Flag(
    "--conntrack-tcp-timeout-close-wait",
    values.duration_from(0),
    "1h0m0s",
    "how long half-closed TCP connections are remembered; 0 leaves it as it is",
    ("conntrack.tcpCloseWaitTimeout",),
)
CONNTRACK_TCP_TIMEOUT_ESTABLISHED = Flag(
    "--conntrack-tcp-timeout-established",
    values.duration_from(0),
    "24h0m0s",
    "how long idle TCP connections are remembered; 0 leaves it as it is",
    ("conntrack.tcpEstablishedTimeout",),
)
CONNTRACK_UDP_TIMEOUT = Flag(
    "--conntrack-udp-timeout",
    values.duration_from(0),
    "0s",
    "how long UDP packets without an answer are remembered; 0 leaves it as it is",
    ("conntrack.udpTimeout",),
)
CONNTRACK_UDP_TIMEOUT_STREAM = Flag(
    "--conntrack-udp-timeout-stream",
    values.duration_from(0),
    "0s",
    "how long answered UDP flows are remembered; 0 leaves it as it is",
    ("conntrack.udpStreamTimeout",),
)
OOM_SCORE_ADJ = Flag(
    "--oom-score-adj",
    values.integer(-1000, 1000),
    "-999",
    "how soon the kernel ends this process for want of memory, from -1000 (never) to 1000",
    ("oomScoreAdj",),
)

INSPECT_SOCKET = Flag(
    "--inspect-socket",
    values.socket_path,
    "/run/pyproxy/pyproxy.sock",
    "the Unix socket on which pyproxy status and its like ask, root only; empty for none",
)
UI_BIND_ADDRESS = Flag(
    "--ui-bind-address",
    values.page_address,
    "",
    "where the page for readers is served, read-only; a port alone is one of 127.0.0.1; "
    "empty or 0 for nowhere",
)
ENDPOINT_COUNTERS = Flag(
    "--endpoint-counters",
    values.boolean,
    "false",
    "count the connections to each endpoint, for pyproxy top; this costs kernel memory",
    modes=_NFTABLES,
)

CONFIG = Flag(
    "--config", values.text, "", "a file with a KubeProxyConfiguration, in most flags' place"
)
WRITE_CONFIG_TO = Flag(
    "--write-config-to", values.text, "", "write the configuration in force to this file, and end"
)
INIT_ONLY = Flag("--init-only", values.boolean, "false", "make the kernel's settings, and end")
CLEANUP = Flag("--cleanup", values.boolean, "false", "the same as the command cleanup")

SYNC_PERIOD_ALIASES = (IPTABLES_SYNC_PERIOD, IPVS_SYNC_PERIOD)
MIN_SYNC_PERIOD_ALIASES = (IPTABLES_MIN_SYNC_PERIOD, IPVS_MIN_SYNC_PERIOD)
ALIASES: tuple[Flag[float], ...] = (*SYNC_PERIOD_ALIASES, *MIN_SYNC_PERIOD_ALIASES)
"""Flags that mean the same as another flag, which reads their fields of a file."""

EFFECTIVE: tuple[Flag[object], ...] = (
    KUBECONFIG,
    MASTER,
    MANIFESTS,
    HOSTNAME_OVERRIDE,
    BIND_ADDRESS,
    PROXY_MODE,
    DETECT_LOCAL_MODE,
    CLUSTER_CIDR,
    POD_BRIDGE_INTERFACE,
    POD_INTERFACE_NAME_PREFIX,
    MASQUERADE_ALL,
    MASQUERADE_BIT,
    NODEPORT_ADDRESSES,
    HEALTHZ_BIND_ADDRESS,
    METRICS_BIND_ADDRESS,
    BIND_ADDRESS_HARD_FAIL,
    SYNC_PERIOD,
    MIN_SYNC_PERIOD,
    IPTABLES_SYNC_PERIOD,
    IPTABLES_MIN_SYNC_PERIOD,
    IPVS_SYNC_PERIOD,
    IPVS_MIN_SYNC_PERIOD,
    IPTABLES_FLAVOUR,
    IPTABLES_LOCALHOST_NODEPORTS,
    IPVS_SCHEDULER,
    IPVS_EXCLUDE_CIDRS,
    IPVS_STRICT_ARP,
    IPVS_TCP_TIMEOUT,
    IPVS_TCPFIN_TIMEOUT,
    IPVS_UDP_TIMEOUT,
    TAKEOVER,
    CONNTRACK_MAX_PER_CORE,
    CONNTRACK_MIN,
    CONNTRACK_TCP_BE_LIBERAL,
    CONNTRACK_TCP_TIMEOUT_CLOSE_WAIT,
    CONNTRACK_TCP_TIMEOUT_ESTABLISHED,
    CONNTRACK_UDP_TIMEOUT,
    CONNTRACK_UDP_TIMEOUT_STREAM,
    OOM_SCORE_ADJ,
    INSPECT_SOCKET,
    UI_BIND_ADDRESS,
    ENDPOINT_COUNTERS,
    VERBOSITY,
    CONFIG,
    WRITE_CONFIG_TO,
    INIT_ONLY,
    CLEANUP,
)
