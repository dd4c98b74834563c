"""Removing what kube-proxy has left in the kernel, in every one of its modes, and nothing else.

What pyproxy's own iptables mode has left looks much the same, and is found here too.

`kernel` needs pyroute2, which is slow to import: agents need it where there is something to remove.
"""
