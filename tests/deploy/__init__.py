"""What lies in deploy/, checked without a cluster."""
