"""The proxy modes of lab and tests, each flavour by itself: one declared value per mode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import IptablesSettings, Settings
from pyproxy.errors import UsageError
from pyproxy.model.flavour import Flavour

Command = tuple[str, ...]


class LabMode(msgspec.Struct, frozen=True):
    """A mode to run an agent in, and how the node's own tools read and wipe what it writes.

    `listing` are commands that print all rules, `shown` is the one for the demo. `wipes` are
    commands with their input that remove all rules, as another program may do. `messages` are what
    the dataplane counts as messages. `in_turn` says that it picks endpoints in turn instead of at
    random, `announced` that nf_tables notifies of all that any proxy writes in this mode.
    `kernel_file` is a file that exists if the kernel has the mode, empty if every kernel has it.
    `options` are further flags of the agent.
    """

    name: str
    proxy_mode: ProxyMode
    flavour: Flavour | None = None
    listing: tuple[Command, ...] = ()
    shown: Command = ()
    wipes: tuple[tuple[Command, str], ...] = ()
    messages: str = "netlink messages"
    in_turn: bool = False
    announced: bool = False
    kernel_file: str = ""
    options: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags that start an agent in this mode."""
        mode = f"--proxy-mode={self.proxy_mode.value}"
        if self.flavour is None:
            return (mode, *self.options)
        return (mode, f"--iptables-flavour={self.flavour.value}", *self.options)

    @property
    def is_available(self) -> bool:
        """Whether this kernel has the mode, by a file in /proc or /sys."""
        return not self.kernel_file or Path(self.kernel_file).exists()

    def settings(self, node_name: str) -> Settings:
        """Return the settings of an agent in this mode, all else by default."""
        return Settings(node_name, self.proxy_mode, iptables=IptablesSettings(self.flavour))


_EMPTY_TABLES = "".join(f"*{table}\nCOMMIT\n" for table in ("nat", "filter", "mangle"))


def _list_table(table: str) -> Command:
    return ("nft", "list", "table", "inet", table)


def _delete_table(table: str) -> tuple[Command, str]:
    return ("nft", "delete", "table", "inet", table), ""


def _iptables(flavour: Flavour) -> LabMode:
    programs = [f"{program}-{flavour.value}" for program in ("iptables", "ip6tables")]
    return LabMode(
        f"iptables-{flavour.value}",
        ProxyMode.IPTABLES,
        flavour,
        listing=tuple((f"{program}-save",) for program in programs),
        shown=(f"{programs[0]}-save", "-t", "nat"),
        wipes=tuple(((f"{program}-restore", "--wait"), _EMPTY_TABLES) for program in programs),
        messages="runs of iptables-restore",
    )


NFTABLES = LabMode(
    "nftables",
    ProxyMode.NFTABLES,
    listing=(_list_table("pyproxy"),),
    shown=_list_table("pyproxy"),
    wipes=(_delete_table("pyproxy"),),
    announced=True,
)
NFTABLES_OFFLOAD = msgspec.structs.replace(
    NFTABLES, name="nftables-offload", options=("--flow-offload=services",)
)
IPTABLES_LEGACY = _iptables(Flavour.LEGACY)
IPTABLES_NFT = _iptables(Flavour.NFT)
IPTABLES = LabMode(
    "iptables",
    ProxyMode.IPTABLES,
    shown=("iptables-save", "-t", "nat"),
    messages="runs of iptables-restore",
)
IPVS = LabMode(
    "ipvs",
    ProxyMode.IPVS,
    listing=(
        _list_table("pyproxy-ipvs"),
        ("ipvsadm", "-Sn"),
        ("ip", "-br", "addr", "show", "kube-ipvs0"),
    ),
    shown=("ipvsadm", "-Ln", "--stats"),
    wipes=(
        _delete_table("pyproxy-ipvs"),
        (("ipvsadm", "-C"), ""),
        (("ip", "link", "del", "kube-ipvs0"), ""),
    ),
    in_turn=True,
    kernel_file="/proc/net/ip_vs",
)

MODES: Mapping[str, LabMode] = {
    each.name: each for each in (NFTABLES, IPTABLES, IPTABLES_LEGACY, IPTABLES_NFT, IPVS)
}


def named(name: str) -> LabMode:
    """Return the mode of this name. Raises UsageError, with the names that there are."""
    try:
        return MODES[name]
    except KeyError as error:
        raise UsageError(f"{name!r} is not a mode: use one of {', '.join(MODES)}") from error
