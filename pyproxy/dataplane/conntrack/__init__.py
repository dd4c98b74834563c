"""Removing the conntrack entries of UDP and SCTP flows whose Service has another answer now."""

from pyproxy.dataplane.conntrack.reconciler import Observer, Reconciler

__all__ = ["Observer", "Reconciler"]
