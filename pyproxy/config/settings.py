"""The settings of one agent, grouped by the part of the agent that uses them.

Their defaults are kube-proxy's (v1.36) for the nftables mode, unless a comment says otherwise.
"""

from __future__ import annotations

import enum

import msgspec

from pyproxy.config.modes import DEFAULT, ProxyMode
from pyproxy.config.schema import KubeProxyConfiguration
from pyproxy.model.address import Address, Family, Mark, Network, address_text
from pyproxy.model.flavour import Flavour
from pyproxy.model.service_bounds import DEFAULT_BOUNDS, ServiceBounds

LOOPBACK = Network(Address(b"\x7f\0\0\0"), 8)
"""The IPv4 addresses that only this machine itself can send to."""

LOOPBACK_IPV6 = Address(bytes(15) + b"\x01")
"""The IPv6 address that only this machine itself can send to."""


def is_loopback(address: Address) -> bool:
    """Return whether only this machine itself can send to an address."""
    return address in LOOPBACK or address == LOOPBACK_IPV6


class LocalMode(enum.Enum):
    """The way to recognize connections from pods of this node: `--detect-local-mode`."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


class ListenAddress(msgspec.Struct, frozen=True):
    """The address of a server; with port 0 the kernel chooses the port."""

    address: Address
    port: int

    def __str__(self) -> str:
        text = address_text(self.address)
        return f"[{text}]:{self.port}" if ":" in text else f"{text}:{self.port}"


class Api(msgspec.Struct, frozen=True):
    """The API server; if the first two are empty, the in-cluster configuration names it.

    `content_type` is the media type to request objects in. `accept_content_types` overrides it if
    it is not empty: media types in order of preference, separated by commas.
    """

    kubeconfig: str = ""
    master: str = ""
    content_type: str = "application/vnd.kubernetes.protobuf"
    accept_content_types: str = ""


class LocalTraffic(msgspec.Struct, frozen=True):
    """How to recognize pods of the cluster; only the fields that belong to `mode` are used.

    `cluster_networks` has at most one network per family.
    """

    mode: LocalMode = LocalMode.CLUSTER_CIDR
    cluster_networks: tuple[Network, ...] = ()
    bridge_interface: str = ""
    interface_name_prefix: str = ""

    def interfaces(self, wildcard: str) -> str:
        """Return the pattern of pod interfaces; empty if pods are recognized by address.

        `wildcard` ends the pattern of a prefix: `*` in nft, `+` in iptables.
        """
        if self.mode is LocalMode.BRIDGE_INTERFACE:
            return self.bridge_interface
        if self.mode is LocalMode.INTERFACE_NAME_PREFIX:
            return f"{self.interface_name_prefix}{wildcard}"
        return ""


class Masquerade(msgspec.Struct, frozen=True):
    """The bit (0 to 31) that marks packets to masquerade.

    `everything` masquerades all connections to cluster IPs.
    """

    bit: int = 14
    everything: bool = False

    @property
    def mark(self) -> Mark:
        """The packet mark with that bit alone."""
        return Mark(1 << self.bit)


class NodePorts(msgspec.Struct, frozen=True):
    """The node's addresses that serve node ports: the union of the fields.

    `primary` is the first address of each family in the Node object, `everywhere` all addresses of
    the node except loopback, and `localhost` the loopback addresses. Without `loopback`, no
    loopback address serves node ports, even if another field names it.
    """

    primary: bool = True
    everywhere: bool = False
    localhost: bool = False
    networks: tuple[Network, ...] = ()
    loopback: bool = True

    @property
    def everywhere_in(self) -> frozenset[Family]:
        """The families in which every address of the node but loopback ones serves node ports."""
        return frozenset(
            family
            for family in Family
            if self.everywhere
            or any(each.family is family and not each.prefix for each in self.networks)
        )

    @property
    def names_loopback(self) -> bool:
        """Whether 127.0.0.1, or another address of 127.0.0.0/8, is named."""
        return self.localhost or any(
            network.address in LOOPBACK or LOOPBACK.address in network for network in self.networks
        )

    @property
    def serves_loopback(self) -> bool:
        """Whether node ports serve on an address of 127.0.0.0/8."""
        return self.loopback and self.names_loopback


class Serving(msgspec.Struct, frozen=True):
    """The addresses of the health and metrics servers; None for no server.

    With `hard_fail`, the agent exits if it cannot bind an address, instead of retrying.
    """

    health: ListenAddress | None = ListenAddress(Address(bytes(4)), 10256)
    metrics: ListenAddress | None = ListenAddress(Address(b"\x7f\0\0\1"), 10249)
    hard_fail: bool = False


class SyncPeriods(msgspec.Struct, frozen=True):
    """The periods of syncs, in seconds.

    `min_sync_period` is the least time between two commits. `sync_period` has one effect: the agent
    is unhealthy while a commit is overdue by twice that time.
    """

    min_sync_period: float = 0.0
    sync_period: float = 30.0


class Conntrack(msgspec.Struct, frozen=True):
    """The kernel's connection tracking; timeouts are in seconds, and 0 leaves a setting alone.

    The limit is `max_per_core` connections per CPU core, but at least `min`. With `max_per_core` 0
    the limit stays as it is, and `min` has no effect.
    """

    max_per_core: int = 32768
    min: int = 131072
    tcp_established_timeout: float = 24 * 3600.0
    tcp_close_wait_timeout: float = 3600.0
    tcp_be_liberal: bool = False
    udp_timeout: float = 0.0
    udp_stream_timeout: float = 0.0


class IptablesSettings(msgspec.Struct, frozen=True):
    """The settings of iptables mode.

    `flavour` is None to use the flavour of the node's other programs.
    """

    flavour: Flavour | None = None


class IpvsSettings(msgspec.Struct, frozen=True):
    """The settings of ipvs mode; timeouts are in seconds, and 0 leaves a setting alone.

    `scheduler` is the kernel's name of one, such as `rr`. Virtual services in `exclude_networks`
    are never changed. With `strict_arp`, the node replies to ARP requests only for addresses of the
    receiving device.
    """

    scheduler: str = "rr"
    exclude_networks: tuple[Network, ...] = ()
    strict_arp: bool = False
    tcp_timeout: float = 0.0
    tcp_fin_timeout: float = 0.0
    udp_timeout: float = 0.0


class FlowOffload(enum.Enum):
    """The connections that the kernel forwards on the fast path: `--flow-offload`."""

    NONE = "none"
    SERVICES = "services"


class NftablesSettings(msgspec.Struct, frozen=True):
    """The settings of nftables mode.

    `endpoint_counters` counts the connections to each endpoint. `offload_interfaces` are names, and
    prefixes that end in `*`, of the interfaces of the fast path; empty for those of pods, of
    default routes and of tunnels.
    """

    endpoint_counters: bool = False
    flow_offload: FlowOffload = FlowOffload.NONE
    offload_interfaces: tuple[str, ...] = ()


class FlagValue(msgspec.Struct, frozen=True):
    """A flag and its text in force, for /flagz; `given` is true if the command line has it."""

    name: str
    value: str
    given: bool = False


class Settings(msgspec.Struct, frozen=True):
    """The configuration of one agent.

    `node_name` is the Node's name in the API. `node_address` overrides the node's primary address
    of its family. `manifests` is a folder that replaces the API server, empty for none.
    `log_format` is `text` or `json`. `takeover` removes kube-proxy's objects from the kernel.
    `nftables`, `iptables` and `ipvs` have their defaults in other modes. `oom_score_adj` is
    that of proc(5), from -1000 to 1000.

    With `external_ips` false, no external IP is proxied (feature gate AllowServiceExternalIPs).

    `ui` is the address of the read-only page, None for no page. `inspect_socket` is the path of the
    Unix socket that `pyproxy status` and similar commands connect to, empty for no socket.
    `bounds` are those of each Service.

    `flags` are all flags, in alphabetical order. `configuration` has the same settings as a
    KubeProxyConfiguration, and `config_file` is the path that it was read from, empty for none.
    `remarks` are log lines about flags and fields that are ignored or have no effect, and
    `file_warnings` are those of them that name mistakes in the file.
    """

    node_name: str
    mode: ProxyMode = DEFAULT
    node_address: Address | None = None
    manifests: str = ""
    verbosity: int = 0
    log_format: str = "text"
    takeover: bool = False
    api: Api = Api()
    local_traffic: LocalTraffic = LocalTraffic()
    masquerade: Masquerade = Masquerade()
    node_ports: NodePorts = NodePorts()
    external_ips: bool = True
    serving: Serving = Serving()
    pace: SyncPeriods = SyncPeriods()
    conntrack: Conntrack = Conntrack()
    nftables: NftablesSettings = NftablesSettings()
    iptables: IptablesSettings = IptablesSettings()
    ipvs: IpvsSettings = IpvsSettings()
    oom_score_adj: int = -999
    ui: ListenAddress | None = None
    inspect_socket: str = "/run/pyproxy/pyproxy.sock"
    bounds: ServiceBounds = DEFAULT_BOUNDS
    flags: tuple[FlagValue, ...] = ()
    configuration: KubeProxyConfiguration = KubeProxyConfiguration()
    config_file: str = ""
    remarks: tuple[str, ...] = ()
    file_warnings: tuple[str, ...] = ()
