"""Remove what kube-proxy has left in the kernel, in each of its modes, and nothing else.

The leftovers of pyproxy's own iptables mode have the same names, and are found here too.

`kernel` imports pyroute2, which is slow: agents import it only if there is something to remove.
"""
