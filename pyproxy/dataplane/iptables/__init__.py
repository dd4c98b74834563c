"""The iptables dataplane: a chain for each Service port, and a tree of chains that leads to it."""
