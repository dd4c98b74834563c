"""Parts that nftables mode and ipvs mode share: sets, base rules, elements, read-back."""
