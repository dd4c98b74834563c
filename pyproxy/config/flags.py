"""The flags that do something, by kube-proxy's names where it has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from pyproxy.config import values

T_co = TypeVar("T_co", covariant=True)


class Flag(msgspec.Struct, Generic[T_co], frozen=True):
    """One flag: how its text is read, and what it is where nobody gives it.

    `repeats` is for lists, which grow where Go's other flags take the last value given.
    """

    name: str
    read: Callable[[str], T_co]
    default: str
    help: str
    repeats: bool = False

    @property
    def is_boolean(self) -> bool:
        """Whether the flag alone means true, and the next argument is not its value."""
        return self.read is values.boolean


KUBECONFIG = Flag("--kubeconfig", values.text, "", "the file that says how to reach the API server")
MASTER = Flag("--master", values.text, "", "the API server's URL, before the one in --kubeconfig")
MANIFESTS = Flag("--manifests", values.text, "", "a folder of manifests instead of an API server")
HOSTNAME_OVERRIDE = Flag(
    "--hostname-override", values.text, "", "the name of this Node; else the host's, in lower case"
)
BIND_ADDRESS = Flag(
    "--bind-address",
    values.address,
    "0.0.0.0",  # noqa: S104 (nothing is bound to it; unspecified stands for none)
    "the node's primary address, if not the Node's own",
)
PROXY_MODE = Flag("--proxy-mode", values.proxy_mode, "nftables", "what serves; nftables so far")

DETECT_LOCAL_MODE = Flag(
    "--detect-local-mode",
    values.local_mode,
    "ClusterCIDR",
    "who is a pod: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
)
CLUSTER_CIDR = Flag(
    "--cluster-cidr", values.cluster_networks, "", "the pods' CIDRs, at most one a family"
)
POD_BRIDGE_INTERFACE = Flag(
    "--pod-bridge-interface", values.interface_name(15), "", "the bridge, for BridgeInterface"
)
POD_INTERFACE_NAME_PREFIX = Flag(
    "--pod-interface-name-prefix",
    values.interface_name(14),  # one less than a name, for nft's asterisk at its end
    "",
    "how pods' interfaces begin, for InterfaceNamePrefix",
)
MASQUERADE_ALL = Flag(
    "--masquerade-all", values.boolean, "false", "masquerade all connections to cluster IPs"
)
MASQUERADE_BIT = Flag(
    "--iptables-masquerade-bit",
    values.integer(0, 31),
    "14",
    "the bit of the packet mark that asks for masquerading, in every proxy mode",
)
NODEPORT_ADDRESSES = Flag(
    "--nodeport-addresses",
    values.node_ports,
    "primary",
    "where node ports answer: CIDRs, primary, all, localhost",
    repeats=True,
)

HEALTHZ_BIND_ADDRESS = Flag(
    "--healthz-bind-address",
    values.listen_address(10256),
    "0.0.0.0:10256",
    "where /healthz and /livez are served; 0 for nowhere",
)
METRICS_BIND_ADDRESS = Flag(
    "--metrics-bind-address",
    values.listen_address(10249),
    "127.0.0.1:10249",
    "where /metrics is served; 0 for nowhere",
)
BIND_ADDRESS_HARD_FAIL = Flag(
    "--bind-address-hard-fail", values.boolean, "false", "end if one of them cannot be bound"
)

SYNC_PERIOD = Flag(
    "--sync-period", values.duration_from(0.001), "30s", "the time between checks of the kernel"
)
MIN_SYNC_PERIOD = Flag(
    "--min-sync-period", values.duration_from(0), "0s", "the least time between two commits"
)
IPTABLES_SYNC_PERIOD = Flag(
    "--iptables-sync-period", values.duration_from(0.001), "30s", "the same as --sync-period"
)
IPTABLES_MIN_SYNC_PERIOD = Flag(
    "--iptables-min-sync-period", values.duration_from(0), "0s", "the same as --min-sync-period"
)
TAKEOVER = Flag(
    "--takeover",
    values.boolean,
    "false",
    "once this node is served, remove what kube-proxy has left in the kernel, in every mode",
)
VERBOSITY = Flag("--v", values.integer(0, 2**31 - 1), "0", "how much is logged: 4 and more debugs")

CONFIG = Flag("--config", values.text, "", "not in this version yet")
WRITE_CONFIG_TO = Flag("--write-config-to", values.text, "", "not in this version yet")
INIT_ONLY = Flag("--init-only", values.boolean, "false", "not in this version yet")
CLEANUP = Flag("--cleanup", values.boolean, "false", "the same as the command cleanup")

REFUSED: tuple[Flag[str] | Flag[bool], ...] = (CONFIG, WRITE_CONFIG_TO, INIT_ONLY)
"""Flags that ask for something else than a running proxy, so that none may be passed over."""

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
    TAKEOVER,
    VERBOSITY,
    CONFIG,
    WRITE_CONFIG_TO,
    INIT_ONLY,
    CLEANUP,
)
