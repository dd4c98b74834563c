"""Removing what kube-proxy has left in the kernel, in every one of its modes, and nothing else.

What pyproxy's own iptables mode has left looks much the same, and is found here too.
"""

from pyproxy.takeover.kernel import find, find_node_port_services, find_own_rules, remove
from pyproxy.takeover.leftovers import Failure, InService, Leftovers
from pyproxy.takeover.tools import has_legacy_rules

__all__ = [
    "Failure",
    "InService",
    "Leftovers",
    "find",
    "find_node_port_services",
    "find_own_rules",
    "has_legacy_rules",
    "remove",
]
