"""iptables for iptables mode and for takeover: its programs, their text, and KUBE- names."""
