"""What nftables mode and ipvs mode share: sets, base rules, elements and their read-back."""
