"""Inspection of a running agent: snapshots, queries over a Unix socket, and explanations."""
