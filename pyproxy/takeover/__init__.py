"""Removing what kube-proxy has left in the kernel, in every one of its modes, and nothing else."""

from pyproxy.takeover.kernel import find, remove
from pyproxy.takeover.leftovers import Failure, Leftovers

__all__ = ["Failure", "Leftovers", "find", "remove"]
