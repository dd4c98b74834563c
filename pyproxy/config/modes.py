"""The proxy modes, as the configuration knows them: the one declaration per mode in this package.

The rest of a mode is declared beside its dataplane, in `pyproxy.dataplane.modes`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec


class ProxyMode(enum.Enum):
    """The kernel subsystem that serves: `--proxy-mode`."""

    NFTABLES = "nftables"
    IPTABLES = "iptables"
    IPVS = "ipvs"


DEFAULT = ProxyMode.NFTABLES
"""The mode if neither a flag nor a file names one: kubeadm writes none, which means the best."""


class ModeConfig(msgspec.Struct, frozen=True):
    """How a configuration reads in one mode.

    `ignored` are the beginnings of the paths of fields that have no effect. `node_ports` is the
    value of --nodeport-addresses if it is not given, empty for the flag's own default. Without
    `loopback` node ports never serve on 127.0.0.1.
    """

    ignored: tuple[str, ...] = ("nftables.", "iptables.", "ipvs.")
    node_ports: str = ""
    loopback: bool = True


_CONFIGS: Mapping[ProxyMode, ModeConfig] = {
    ProxyMode.NFTABLES: ModeConfig(ignored=("iptables.", "ipvs.")),
    ProxyMode.IPTABLES: ModeConfig(ignored=("nftables.", "ipvs."), node_ports="all"),
    ProxyMode.IPVS: ModeConfig(
        ignored=(
            "nftables.",
            *(f"iptables.{name}" for name in ("localhostNodePorts", "minSyncPeriod", "syncPeriod")),
        ),
        node_ports="all",
        # IPVS has no way back from a pod to 127.0.0.1.
        loopback=False,
    ),
}

_UNNAMED = ModeConfig(ignored=("ipvs.",), node_ports="all")
"""A file without a mode was written for kube-proxy's default, iptables, so that its section counts
for what the section nftables leaves open."""


def serving(asked: str) -> ProxyMode:
    """Return the mode that serves if a file asks for this one, empty for none."""
    return ProxyMode(asked) if asked else DEFAULT


def of(asked: str) -> ModeConfig:
    """Return how a configuration reads in the mode that a file asks for, empty for none."""
    return _CONFIGS.get(ProxyMode(asked), ModeConfig()) if asked else _UNNAMED


def node_port_addresses(asked: str, *, localhost: bool) -> str:
    """Return --nodeport-addresses if it is not given; empty for the flag's own default.

    A node that kube-proxy served in the mode asked for, or in its default mode, keeps every address
    that node ports served on. `localhost` is `iptables.localhostNodePorts`.
    """
    config = of(asked)
    if not config.node_ports:
        return ""
    return f"{config.node_ports},localhost" if localhost and config.loopback else config.node_ports
