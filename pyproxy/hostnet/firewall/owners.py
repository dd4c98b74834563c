"""The programs that tables and chains look like, by the names that programs give theirs."""

from __future__ import annotations

import re

import msgspec


class Owner(msgspec.Struct, frozen=True):
    """A program that makes rules, and what a person can do where its rules stop packets.

    `offloaded` says of a firewall or policy engine what it misses of connections on the fast path,
    whose packets meet no rule; empty for other programs.
    """

    name: str
    fix: str = ""
    offloaded: str = ""


_POLICY = "allow the traffic in the network policies: kubectl get networkpolicies -A"
_LATER = "a policy that changes later does not stop them"
_OFFLOADED = {
    **dict.fromkeys(
        (
            "Antrea",
            "Calico",
            "firewalld",
            "kube-network-policies",
            "kube-router's network policy",
            "ufw",
            "Weave Net's network policy",
        ),
        _LATER,
    ),
    # tc's ingress runs before the flowtable, which does not read marks.
    "Cilium": "its programs at tc still see them, but marks that these set, as for its proxy, have "
    "no effect",
}

# The first pattern that matches the chain, or the table and the chain, names the owner.
_OWNERS: tuple[tuple[re.Pattern[str], Owner], ...] = tuple(
    (re.compile(pattern), Owner(name, fix, _OFFLOADED.get(name, "")))
    for pattern, name, fix in (
        (r"(^|\s)(firewalld)\b", "firewalld",
         "allow it in firewalld: add the interface to the zone trusted, or run firewall-cmd "
         "--permanent --zone=trusted --add-source=POD-NETWORK and firewall-cmd --reload"),
        (r"\sufw6?-|^ufw", "ufw",
         "allow it in ufw: ufw route allow, or DEFAULT_FORWARD_POLICY=\"ACCEPT\" in "
         "/etc/default/ufw"),
        (r"\s(KUBE-NWPLCY-|KUBE-POD-FW-|KUBE-ROUTER-)", "kube-router's network policy", _POLICY),
        (r"\s(cali-|cali:)|\bcalico\b", "Calico",
         "see Calico's policies: calicoctl get networkpolicy,globalnetworkpolicy -A -o wide"),
        (r"\s(OLD_)?CILIUM_|\bcilium", "Cilium",
         "see cilium monitor --type drop on this node"),
        (r"\sWEAVE-", "Weave Net's network policy", _POLICY),
        (r"\s(ANTREA-)|\bantrea", "Antrea", _POLICY),
        (r"\s(FLANNEL-)", "flannel", ""),
        (r"\s(DOCKER|docker)|\bdocker", "docker",
         "accept the pods' traffic in docker's chain for that: "
         "iptables -I DOCKER-USER -d POD-NETWORK -j ACCEPT, and the same with -s"),
        (r"\s(NETAVARK|CNI-)|\bnetavark", "a CNI plugin or podman", ""),
        (r"\sLIBVIRT_|\blibvirt", "libvirt", ""),
        (r"\s(f2b-|fail2ban)|\bf2b-table", "fail2ban",
         "see fail2ban-client status, and unban the address with fail2ban-client unban"),
        (r"\sKUBE-(FIREWALL|KUBELET-CANARY|MARK-DROP|IPTABLES-HINT)", "kubelet", ""),
        (r"\bkube-network-policies|\bkindnet", "kube-network-policies", _POLICY),
        (r"\bkube-proxy\b", "kube-proxy", "remove its rules: pyproxy cleanup"),
        (r"\s(shorewall|sfilter|smurfs|reject|dynamic|net-fw|fw-net)$", "shorewall", ""),
        (r"\sCROWDSEC|\bcrowdsec", "CrowdSec", "see cscli decisions list"),
        (r"\b(azure|GKE|gke|AWS)-", "the cloud provider's agent", ""),
    )
)  # fmt: skip
UNKNOWN = Owner("")

_DEBIAN = ("inet filter", "ip filter", "ip6 filter")


def owner_of(table: str, chain: str) -> Owner:
    """Return the program that a chain looks like; UNKNOWN if its names are of no known one."""
    title = f"{table} {chain}"
    found = next((owner for pattern, owner in _OWNERS if pattern.search(title)), None)
    if found is not None:
        return found
    if table in _DEBIAN[:1] and chain in ("input", "forward", "output"):
        return Owner("/etc/nftables.conf", "accept it in /etc/nftables.conf, and run nft -f on it")
    return UNKNOWN
