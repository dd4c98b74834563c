"""The node's network beyond what pyproxy programs: sysctls, routes, neighbours, other firewalls.

Readers return frozen facts of the caller's network namespace, and do not judge them.
"""
