"""Check deploy/ without a cluster."""
