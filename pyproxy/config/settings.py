"""The settings of one agent, grouped by the part of it that they are for.

Their defaults are kube-proxy's (v1.36) for the nftables mode, unless a comment says otherwise.
"""

from __future__ import annotations

import enum

import msgspec

from pyproxy.config.modes import DEFAULT, ProxyMode
from pyproxy.config.schema import KubeProxyConfiguration
from pyproxy.model.address import Address, Mark, Network, address_text
from pyproxy.model.flavour import Flavour

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
    """Where a server listens; port 0 lets the kernel choose one."""

    address: Address
    port: int

    def __str__(self) -> str:
        text = address_text(self.address)
        return f"[{text}]:{self.port}" if ":" in text else f"{text}:{self.port}"


class Api(msgspec.Struct, frozen=True):
    """How the API server is reached; both empty means the in-cluster configuration."""

    kubeconfig: str = ""
    master: str = ""


class LocalTraffic(msgspec.Struct, frozen=True):
    """Which clients are pods. Only the fields that `mode` names are looked at.

    `cluster_networks` has at most one network a family.
    """

    mode: LocalMode = LocalMode.CLUSTER_CIDR
    cluster_networks: tuple[Network, ...] = ()
    bridge_interface: str = ""
    interface_name_prefix: str = ""

    def interfaces(self, wildcard: str) -> str:
        """Name the interfaces of pods, the last letters as `wildcard`; empty if addresses tell."""
        if self.mode is LocalMode.BRIDGE_INTERFACE:
            return self.bridge_interface
        if self.mode is LocalMode.INTERFACE_NAME_PREFIX:
            return f"{self.interface_name_prefix}{wildcard}"
        return ""


class Masquerade(msgspec.Struct, frozen=True):
    """The bit (0 to 31) that marks packets to masquerade, and whether all are masqueraded."""

    bit: int = 14
    everything: bool = False

    @property
    def mark(self) -> Mark:
        """The packet mark with that bit alone."""
        return Mark(1 << self.bit)


class NodePorts(msgspec.Struct, frozen=True):
    """The node's addresses on which node ports answer: the union of what is set.

    `primary` are the first address of each family in the Node object, `everywhere` all of the
    node's addresses except loopback, and `localhost` the loopback addresses. Without `loopback`
    no loopback address is among them, whatever names it.
    """

    primary: bool = True
    everywhere: bool = False
    localhost: bool = False
    networks: tuple[Network, ...] = ()
    loopback: bool = True

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
    """Where health and metrics are served; None where they are not.

    With `hard_fail` an address that cannot be bound ends the agent instead of being tried again.
    """

    health: ListenAddress | None = ListenAddress(Address(bytes(4)), 10256)
    metrics: ListenAddress | None = ListenAddress(Address(b"\x7f\0\0\1"), 10249)
    hard_fail: bool = False


class SyncPeriods(msgspec.Struct, frozen=True):
    """How often the agent writes, in seconds.

    `min_sync_period` is the least time between two commits; `sync_period` is the time between two
    checks of what the kernel holds, and twice that is how late a commit may be before the agent
    is unhealthy.
    """

    min_sync_period: float = 0.0
    sync_period: float = 30.0


class Conntrack(msgspec.Struct, frozen=True):
    """The kernel's connection tracking; timeouts are in seconds, and 0 leaves a setting alone.

    At most `max_per_core` connections a core are tracked, and `min` however few cores there are;
    with `max_per_core` 0 the limit stays as it is, whatever `min` says.
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

    Without a `flavour` the rules are of the one that the node's other programs use.
    """

    flavour: Flavour | None = None


class IpvsSettings(msgspec.Struct, frozen=True):
    """The settings of ipvs mode; timeouts are in seconds, and 0 leaves a setting alone.

    `scheduler` is one of the kernel's, such as `rr`. Virtual services in `exclude_networks` are
    never touched. With `strict_arp` the node answers ARP for addresses of the asked device only.
    """

    scheduler: str = "rr"
    exclude_networks: tuple[Network, ...] = ()
    strict_arp: bool = False
    tcp_timeout: float = 0.0
    tcp_fin_timeout: float = 0.0
    udp_timeout: float = 0.0


class FlagValue(msgspec.Struct, frozen=True):
    """A flag as it took effect, for people to read; `given` says it was on the command line."""

    name: str
    value: str
    given: bool = False


class Settings(msgspec.Struct, frozen=True):
    """The configuration of one agent.

    `node_name` is the Node's name in the API. `node_address` overrides the node's primary address
    of its family. `manifests` is a folder that replaces the API server, empty for none. `takeover`
    removes what kube-proxy left in the kernel. `iptables` and `ipvs` are the defaults in other
    modes. `oom_score_adj` is that of proc(5), from -1000 to 1000. `ui` is the address of the page.
    `inspect_socket` is the Unix socket for `pyproxy status` and similar commands, empty for none.
    `endpoint_counters` counts the connections of each endpoint. `flags` are all flags of the
    command line, in alphabetical order. `configuration` is all of it in Kubernetes' form, and
    `config_file` the path that it was read from, empty for none. `remarks` are log lines about
    flags and fields without effect.
    """

    node_name: str
    mode: ProxyMode = DEFAULT
    node_address: Address | None = None
    manifests: str = ""
    verbosity: int = 0
    takeover: bool = False
    api: Api = Api()
    local_traffic: LocalTraffic = LocalTraffic()
    masquerade: Masquerade = Masquerade()
    node_ports: NodePorts = NodePorts()
    serving: Serving = Serving()
    pace: SyncPeriods = SyncPeriods()
    conntrack: Conntrack = Conntrack()
    iptables: IptablesSettings = IptablesSettings()
    ipvs: IpvsSettings = IpvsSettings()
    oom_score_adj: int = -999
    ui: ListenAddress | None = None
    inspect_socket: str = "/run/pyproxy/pyproxy.sock"
    endpoint_counters: bool = False
    flags: tuple[FlagValue, ...] = ()
    configuration: KubeProxyConfiguration = KubeProxyConfiguration()
    config_file: str = ""
    remarks: tuple[str, ...] = ()
