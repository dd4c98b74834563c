"""nftables: a constant ruleset, with Services and endpoints as elements of its maps."""
