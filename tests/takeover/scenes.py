"""A node with kube-proxy's leftovers, and with objects of other programs.

`data/` is what kube-proxy v1.36.2 leaves of a few Services: `nft list ruleset` in nftables mode,
and `iptables-save` in iptables mode. It is for IPv4; the same for IPv6 is made from it.
"""

from __future__ import annotations

import re
from pathlib import Path

from pyproxy_lab.namespace import Namespace

DATA = Path(__file__).with_name("data")
NFTABLES = (DATA / "kube-proxy-nftables.txt").read_text()
IPTABLES = (DATA / "kube-proxy-iptables.txt").read_text()
MODES = ("nftables", "iptables-legacy", "iptables-nft")
FLAVOURS = ("legacy", "nft")
PROGRAMS = ("iptables", "ip6tables")
COUNTERS = ("ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts")
OWN_TABLES = ("table inet pyproxy", "table inet pyproxy-node")
TOOLS = ("iptables-legacy", "iptables-nft", "ipset", "nfacct")

_TO_IPV6 = (
    (r"10\.244\.0\.0/16", "fd10::/16"),
    (r"10\.244\.(\d+)\.(\d+)(?:/32)?:8080", r"[fd10:\1::\2]:8080"),
    (r"10\.244\.(\d+)\.(\d+)/32", r"fd10:\1::\2/128"),
    (r"(?<!__)10\.244\.(\d+)\.(\d+)", r"fd10:\1::\2"),
    (r"10\.96\.0\.0/12", "fd00:10:96::/108"),
    (r"10\.96\.\d*(\d)\.(\d+)/32", r"fd00:10:96::\1:\2/128"),
    (r"10\.96\.\d*(\d)\.(\d+)", r"fd00:10:96::\1:\2"),
    (r"172\.30\.0\.11", "fd30::11"),
    (r"198\.51\.100\.77/32", "2001:db8::77/128"),
    (r"198\.51\.100\.77", "2001:db8::77"),
    (r"203\.0\.113\.0/24", "2001:db8:1::/64"),
    (r"127\.0\.0\.0/8", "::1/128"),
    (r"255\.255\.255\.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    (r"icmp-port-unreachable", "icmp6-port-unreachable"),
    (r"ipv4_addr", "ipv6_addr"),
    (r"\bip (saddr|daddr)", r"ip6 \1"),
    (r"dnat ip to", "dnat ip6 to"),
    (r"table ip kube-proxy", "table ip6 kube-proxy"),
)
"""Comments change too, but not the names of sets and chains, where colons are not allowed."""

FOREIGN_NFTABLES = """
table inet foreign {
    set kube-proxy { type ipv4_addr; elements = { 192.0.2.1 } }
    chain kube-proxy { type filter hook input priority 5; policy accept; ip saddr 192.0.2.7 drop; }
}
table inet kube-proxy {
    chain KUBE-SERVICES { }
}
"""

FOREIGN_IPTABLES = """
*nat
:FOREIGN - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j FOREIGN
-A FOREIGN -p tcp -m tcp --dport 9999 -m comment --comment "-j KUBE-SERVICES" -j RETURN
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:FOREIGN - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-SVCS - [0:0]
-A INPUT -p udp -m udp --dport 9999 -j FOREIGN
-A FOREIGN -m set --match-set FAMILY-foreign src -j DROP
-A FOREIGN -g KUBE-SVCS
-A KUBE-SVCS -j RETURN
COMMIT
"""


def in_ipv6(text: str) -> str:
    """Return the leftovers for IPv6, with the lab's addresses of pods and nodes."""
    for pattern, to in _TO_IPV6:
        text = re.sub(pattern, to, text)
    return text


def make_foreign(here: Namespace) -> None:
    """Create objects of kubelet, and of other programs with names similar to kube-proxy's."""
    here.run(["nft", "-f", "-"], text=FOREIGN_NFTABLES)
    here.run(["nfacct", "add", "foreign"])
    for program, family in zip(PROGRAMS, ("inet", "inet6"), strict=True):
        here.run(["ipset", "create", f"{family}-foreign", "hash:ip", "family", family])
        for flavour in FLAVOURS:
            text = FOREIGN_IPTABLES.replace("FAMILY", family)
            here.run([f"{program}-{flavour}-restore", "--wait", "--noflush"], text=text)


def leave(here: Namespace, mode: str) -> None:
    """Create the leftovers of a mode of kube-proxy, in both families."""
    if mode == "nftables":
        here.run(["nft", "-f", "-"], text=NFTABLES + in_ipv6(NFTABLES))
        return
    flavour = mode.removeprefix("iptables-")
    for counter in COUNTERS:
        here.run(["nfacct", "add", counter], check=False)
    for program, text in zip(PROGRAMS, (IPTABLES, in_ipv6(IPTABLES)), strict=True):
        command = f"{program}-{flavour}"
        for chain in ("INPUT", "OUTPUT"):  # kube-proxy looks before it adds this jump
            here.run([command, "-D", chain, "-j", "KUBE-FIREWALL"], check=False)
        here.run([f"{command}-restore", "--wait", "--noflush"], text=text)


def state(here: Namespace) -> dict[str, list[str]]:
    """List the kernel's objects except pyproxy's tables, without packet counts."""

    def lines(*command: str) -> list[str]:
        return [
            re.sub(r"\[\d+:\d+\]", "", line)
            for line in here.run(command).stdout.splitlines()
            if not line.startswith("#") and line not in OWN_TABLES
        ]

    found = {
        "tables": lines("nft", "list", "tables"),
        "foreign": lines("nft", "list", "table", "inet", "foreign"),
        "not kube-proxy's": lines("nft", "list", "table", "inet", "kube-proxy"),
        "sets": lines("ipset", "save"),
        "counters": [line.split("=")[-1] for line in lines("nfacct", "list")],
        "links": [line.split(":")[1] for line in lines("ip", "-o", "link")],
    }
    for program in PROGRAMS:
        for flavour in FLAVOURS:
            found[f"{program}-{flavour}"] = lines(f"{program}-{flavour}-save")
    return found


def without_firewall(found: dict[str, list[str]]) -> dict[str, list[str]]:
    """Leave out KUBE-FIREWALL, which kube-proxy creates and kubelet owns."""
    return {
        what: [line for line in lines if "KUBE-FIREWALL" not in line]
        for what, lines in found.items()
    }
