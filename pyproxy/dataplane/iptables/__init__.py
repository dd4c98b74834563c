"""The iptables dataplane: a chain for each Service, and a tree of chains that leads there."""
