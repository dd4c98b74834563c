"""Which mode serves what was asked for, and what of a configuration speaks to that mode."""

from __future__ import annotations

from pyproxy.config.settings import ProxyMode

_SILENT = {
    "": ("ipvs.",),
    "iptables": ("nftables.", "ipvs."),
    "ipvs": (
        "nftables.",
        *(f"iptables.{name}" for name in ("localhostNodePorts", "minSyncPeriod", "syncPeriod")),
    ),
    "nftables": ("iptables.", "ipvs."),
}
_ALL = "all"
_ALL_AND_LOCALHOST = "all,localhost"


def serving(asked: str) -> ProxyMode:
    """Choose the mode for what a file asks; kubeadm writes none, which means the best there is."""
    return ProxyMode(asked) if asked else ProxyMode.NFTABLES


def silent(asked: str) -> tuple[str, ...]:
    """Give how the paths of those fields begin that say nothing where this mode is asked for.

    A file without a mode was written for kube-proxy's default, so that what it says for iptables
    counts for what the section nftables leaves open.
    """
    return _SILENT[asked]


def node_port_addresses(asked: str, *, localhost: bool) -> str:
    """Say where node ports answer if nobody says it, as the flag would; empty for its default.

    What a node answered on while kube-proxy served in the mode that is asked for, or in its default
    mode, must not fall silent. `localhost` is `iptables.localhostNodePorts`.
    """
    if asked == "nftables":
        return ""
    return _ALL_AND_LOCALHOST if localhost and asked != "ipvs" else _ALL
