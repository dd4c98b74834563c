"""The proxy modes as the configuration has them: one declaration per mode.

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
"""The mode if neither a flag nor a file names one. Kubernetes documents an empty mode, as kubeadm
writes it, as the best one available."""


class ModeConfig(msgspec.Struct, frozen=True):
    """The meaning of a configuration in one mode.

    `ignored` are prefixes of the paths of fields without effect. `node_ports` is the default of
    --nodeport-addresses in this mode, empty for the flag's own default. Without `loopback`, node
    ports never serve on 127.0.0.1.
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
"""A file without a mode was written for kube-proxy's default, iptables. So fields of its section
`iptables` have an effect if the section `nftables` does not set them."""


def serving(asked: str) -> ProxyMode:
    """Return the mode that serves if a file names `asked`, empty for none."""
    return ProxyMode(asked) if asked else DEFAULT


def of(asked: str) -> ModeConfig:
    """Return the meaning of a configuration whose mode is `asked`, empty for none."""
    return _CONFIGS.get(ProxyMode(asked), ModeConfig()) if asked else _UNNAMED


def node_port_addresses(asked: str, *, localhost: bool) -> str:
    """Return the default of --nodeport-addresses in a mode; empty for the flag's own default.

    It is kube-proxy's in that mode, so that node ports keep every address after a takeover.
    `localhost` is `iptables.localhostNodePorts`.
    """
    config = of(asked)
    if not config.node_ports:
        return ""
    return f"{config.node_ports},localhost" if localhost and config.loopback else config.node_ports
