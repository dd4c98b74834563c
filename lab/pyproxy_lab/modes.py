"""The proxy modes by the names that make and the tests know them by: `iptables-legacy`."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from pyproxy.config.modes import ProxyMode
from pyproxy.errors import UsageError
from pyproxy.model.flavour import Flavour


class LabMode(msgspec.Struct, frozen=True):
    """A mode to run an agent in, with its flavour where it has several."""

    name: str
    proxy_mode: ProxyMode
    flavour: Flavour | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags that ask an agent for it."""
        mode = f"--proxy-mode={self.proxy_mode.value}"
        if self.flavour is None:
            return (mode,)
        return (mode, f"--iptables-flavour={self.flavour.value}")


NFTABLES = LabMode("nftables", ProxyMode.NFTABLES)
IPTABLES = LabMode("iptables", ProxyMode.IPTABLES)
IPTABLES_LEGACY = LabMode("iptables-legacy", ProxyMode.IPTABLES, Flavour.LEGACY)
IPTABLES_NFT = LabMode("iptables-nft", ProxyMode.IPTABLES, Flavour.NFT)
IPVS = LabMode("ipvs", ProxyMode.IPVS)

MODES: Mapping[str, LabMode] = {
    each.name: each for each in (NFTABLES, IPTABLES, IPTABLES_LEGACY, IPTABLES_NFT, IPVS)
}


def named(name: str) -> LabMode:
    """Find a mode by its name. Raises UsageError, with the names that there are."""
    try:
        return MODES[name]
    except KeyError as error:
        raise UsageError(f"{name!r} is not a mode: use one of {', '.join(MODES)}") from error
