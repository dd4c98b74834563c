"""The two flavours of iptables."""

from __future__ import annotations

import enum


class Flavour(enum.Enum):
    """Which iptables programs and kernel tables are used: iptables-legacy or iptables-nft."""

    LEGACY = "legacy"
    NFT = "nft"
