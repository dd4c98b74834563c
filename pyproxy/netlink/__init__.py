"""Netlink messages as bytes: batches for nf_tables, requests and dumps for everything else."""
