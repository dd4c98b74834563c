"""The two kinds of iptables that a node may have."""

from __future__ import annotations

import enum


class Flavour(enum.Enum):
    """Which of the kernel's two tables nat, filter and so on: iptables has programs for each."""

    LEGACY = "legacy"
    NFT = "nft"
