"""The /etc/resolv.conf of pods, and the address in it."""

from __future__ import annotations

ZONE = "cluster.local"

ADDRESS = "10.96.0.10"
"""The cluster IP that kubeadm gives kube-dns."""


def resolv_conf(namespace: str) -> str:
    """Return the file of the pods of a namespace, as a kubelet writes it."""
    search = f"{namespace}.svc.{ZONE} svc.{ZONE} {ZONE}"
    return f"search {search}\nnameserver {ADDRESS}\noptions ndots:5\n"
