"""Deletion of conntrack entries of UDP and SCTP flows that a commit has made stale."""

from pyproxy.dataplane.conntrack.reconciler import Observer, Reconciler

__all__ = ["Observer", "Reconciler"]
