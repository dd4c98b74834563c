"""Rulesets of programs that are often on a node, written from their documentation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from pyproxy_lab.namespace import Namespace

_EMPTY = {name: f"*{name}\nCOMMIT\n" for name in ("raw", "mangle", "nat")}
_EMPTY["filter"] = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"


class Ruleset(msgspec.Struct, frozen=True):
    """Rules for nft, or for the restore programs of iptables by name; `owner` is named for them.

    `sets` is for `ipset restore`.
    """

    owner: str
    nft: str = ""
    restore: dict[str, str] = {}
    sets: str = ""

    @contextmanager
    def loaded(self, node: Namespace) -> Iterator[None]:
        """Load the rules next to pyproxy's, and restore what was there before."""
        saved = {
            program: node.run([program.replace("restore", "save")]).stdout
            for program in self.restore
        }
        try:
            if self.sets:
                node.run(["ipset", "restore"], text=self.sets)
            if self.nft:
                node.run(["nft", "-f", "-"], text=self.nft)
            for program, text in self.restore.items():
                node.run([program, "--noflush"], text=text)
            yield
        finally:
            if self.nft:
                family, name = self.nft.split()[1:3]
                node.run(["nft", "delete", "table", family, name])
            for program, text in saved.items():
                # A table that did not exist is emptied.
                created = (each for each in _EMPTY if f"*{each}\n" not in text)
                node.run([program], text=text + "".join(_EMPTY[each] for each in created))
            if self.sets:
                node.run(["ipset", "destroy"])


FIREWALLD = """table inet firewalld {
    chain mangle_PREROUTING {
        type filter hook prerouting priority mangle + 10; policy accept;
        jump mangle_PREROUTING_ZONES
    }
    chain mangle_PREROUTING_ZONES {
        goto mangle_PRE_public
    }
    chain mangle_PRE_public { }
    chain raw_PREROUTING {
        type filter hook prerouting priority raw + 10; policy accept;
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        meta nfproto ipv6 fib saddr . mark . iif oif missing drop
    }
    chain nat_PREROUTING {
        type nat hook prerouting priority dstnat + 10; policy accept;
        iifname "eth0" goto nat_PRE_public
    }
    chain nat_PRE_public { }
    chain nat_POSTROUTING {
        type nat hook postrouting priority srcnat + 10; policy accept;
        oifname "eth0" goto nat_POST_public
    }
    chain nat_POST_public {
        meta nfproto ipv4 oifname != "lo" masquerade
    }
    chain filter_PREROUTING {
        type filter hook prerouting priority filter + 10; policy accept;
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        meta nfproto ipv6 fib saddr . mark . iif oif missing drop
    }
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        iifname "eth0" goto filter_IN_public
        reject with icmpx admin-prohibited
    }
    chain filter_IN_public {
        tcp dport 22 ct state { new, untracked } accept
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        ip6 daddr { ::/96, ::ffff:0.0.0.0/96, 2002::/24 } reject with icmpv6 addr-unreachable
        iifname "eth0" goto filter_FWD_public
        reject with icmpx admin-prohibited
    }
    chain filter_FWD_public {
        reject with icmpx admin-prohibited
    }
    chain filter_OUTPUT {
        type filter hook output priority filter + 10; policy accept;
        ct state { established, related } accept
        oifname "lo" accept
        ip6 daddr { ::/96, ::ffff:0.0.0.0/96, 2002::/24 } reject with icmpv6 addr-unreachable
    }
}
"""

DOCKER = """*filter
:FORWARD ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8081 -j DNAT --to-destination 172.17.0.2:80
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP
COMMIT
"""

KUBELET = """*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate ESTABLISHED,DNAT -j DROP
COMMIT
"""

UFW = """*filter
:ufw-before-input - [0:0]
:ufw-before-forward - [0:0]
:ufw-after-input - [0:0]
:ufw-reject-forward - [0:0]
:ufw-track-forward - [0:0]
:ufw-user-forward - [0:0]
:ufw-user-input - [0:0]
:ufw-not-local - [0:0]
:ufw-logging-deny - [0:0]
-A INPUT -j ufw-before-input
-A INPUT -j ufw-after-input
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-reject-forward
-A FORWARD -j ufw-track-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 3 -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j ufw-logging-deny
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p udp -m udp --sport 67 --dport 68 -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufw-not-local -m addrtype --dst-type BROADCAST -j RETURN
-A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j ufw-logging-deny
-A ufw-not-local -j DROP
-A ufw-user-forward -i cbr0 -j ACCEPT
-A ufw-user-forward -o cbr0 -j ACCEPT
COMMIT
"""

CALICO = """*raw
:cali-PREROUTING - [0:0]
:cali-from-host-endpoint - [0:0]
:cali-rpf-skip - [0:0]
-A PREROUTING -m comment --comment "cali:6gwbT8clXdHdC1b1" -j cali-PREROUTING
-A cali-PREROUTING -m comment --comment "cali:1" -j MARK --set-xmark 0x0/0xf0000
-A cali-PREROUTING -i cali+ -m comment --comment "cali:2" -j MARK --set-xmark 0x40000/0x40000
-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -j cali-rpf-skip
-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -m rpfilter --validmark --invert -j DROP
-A cali-PREROUTING -m mark --mark 0x0/0x40000 -j cali-from-host-endpoint
-A cali-PREROUTING -m mark --mark 0x10000/0x10000 -j ACCEPT
COMMIT
*filter
:cali-FORWARD - [0:0]
:cali-from-wl-dispatch - [0:0]
:cali-to-wl-dispatch - [0:0]
:cali-from-hep-forward - [0:0]
-A FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A FORWARD -m comment --comment "cali:S93hcgKJrXEqnTfs" -m mark --mark 0x10000/0x10000 -j ACCEPT
-A cali-FORWARD -m comment --comment "cali:vjrMJCRpqwy5oRoX" -j MARK --set-xmark 0x0/0xe0000
-A cali-FORWARD -m mark --mark 0x0/0x10000 -j cali-from-hep-forward
-A cali-FORWARD -i cali+ -j cali-from-wl-dispatch
-A cali-FORWARD -o cali+ -j cali-to-wl-dispatch
-A cali-from-wl-dispatch -m comment --comment "Unknown interface" -j DROP
-A cali-to-wl-dispatch -m comment --comment "Unknown interface" -j DROP
COMMIT
"""

NFTABLES_CONF = """table inet filter {
    chain input {
        type filter hook input priority filter;
    }
    chain forward {
        type filter hook forward priority filter;
    }
    chain output {
        type filter hook output priority filter;
    }
}
"""

FAIL2BAN = """table inet f2b-table {
    set addr-set-sshd { type ipv4_addr; elements = { 203.0.113.77 } }
    chain f2b-chain {
        type filter hook input priority filter - 1; policy accept;
        tcp dport 22 ip saddr @addr-set-sshd reject with icmp port-unreachable
    }
}
"""

LIBVIRT = """*filter
:LIBVIRT_FWI - [0:0]
:LIBVIRT_FWO - [0:0]
:LIBVIRT_FWX - [0:0]
-A FORWARD -j LIBVIRT_FWX
-A FORWARD -j LIBVIRT_FWI
-A FORWARD -j LIBVIRT_FWO
-A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWO -s 192.168.122.0/24 -i virbr0 -j ACCEPT
-A LIBVIRT_FWO -i virbr0 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWX -i virbr0 -o virbr0 -j ACCEPT
COMMIT
"""

KUBE_ROUTER_SETS = """create KUBE-SRC hash:ip
create KUBE-DST hash:ip
add KUBE-SRC 10.244.1.11
add KUBE-SRC 10.244.1.12
add KUBE-DST 10.244.1.11
"""

KUBE_ROUTER = """*filter
:KUBE-ROUTER-FORWARD - [0:0]
:KUBE-POD-FW-WEB - [0:0]
:KUBE-NWPLCY-DEFAULT - [0:0]
-I FORWARD -m comment --comment "kube-router netpol" -j KUBE-ROUTER-FORWARD
-A KUBE-ROUTER-FORWARD -d 10.244.1.11/32 -j KUBE-POD-FW-WEB
-A KUBE-ROUTER-FORWARD -m mark --mark 0x20000/0x20000 -j ACCEPT
-A KUBE-POD-FW-WEB -m conntrack --ctstate INVALID -j DROP
-A KUBE-POD-FW-WEB -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-POD-FW-WEB -m addrtype --src-type LOCAL -d 10.244.1.11/32 -j ACCEPT
-A KUBE-POD-FW-WEB -j KUBE-NWPLCY-DEFAULT
-A KUBE-POD-FW-WEB -m mark ! --mark 0x10000/0x10000 \
-m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-group 100
-A KUBE-POD-FW-WEB -m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable
-A KUBE-POD-FW-WEB -j MARK --set-xmark 0x0/0x10000
-A KUBE-POD-FW-WEB -j MARK --set-xmark 0x20000/0x20000
-A KUBE-NWPLCY-DEFAULT -m set --match-set KUBE-SRC src \
-m set --match-set KUBE-DST dst -p tcp -m tcp --dport 8080 -j MARK --set-xmark 0x10000/0x10000
COMMIT
"""
"""Pod 10.244.1.11 accepts this node's pods at port 8080."""

CALICO_POLICY = """*filter
:cali-FORWARD - [0:0]
:cali-to-wl-dispatch - [0:0]
:cali-tw-cbr0 - [0:0]
:cali-pi-web - [0:0]
-I FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000
-A cali-FORWARD -o cbr0 -j cali-to-wl-dispatch
-A cali-to-wl-dispatch -o cbr0 -g cali-tw-cbr0
-A cali-tw-cbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-tw-cbr0 -m conntrack --ctstate INVALID -j DROP
-A cali-tw-cbr0 -j MARK --set-xmark 0x0/0x10000
-A cali-tw-cbr0 -m mark --mark 0x0/0x20000 -j cali-pi-web
-A cali-tw-cbr0 -m comment --comment "Return if policy accepted" \
-m mark --mark 0x10000/0x10000 -j RETURN
-A cali-tw-cbr0 -m comment --comment "Drop if no policies passed packet" \
-m mark --mark 0x0/0x20000 -j DROP
-A cali-pi-web -p tcp -m set --match-set CALI-ALLOWED src \
-m multiport --dports 8080 -j MARK --set-xmark 0x10000/0x10000
COMMIT
"""


def by_iptables(owner: str, text: str, program: str, sets: str = "") -> Ruleset:
    """Return rules for one flavour of iptables: legacy or nft."""
    return Ruleset(owner, restore={f"iptables-{program}-restore": text}, sets=sets)


# Without the rule that accepts translated packets, as zones of older versions have it.
FIREWALLD_STRICT = FIREWALLD.replace("ct status dnat accept", "")
DOCKER_STRICT = DOCKER.replace(":FORWARD ACCEPT", ":FORWARD DROP")
UFW_STRICT = (
    "\n".join(
        line
        for line in UFW.replace("*filter\n", "*filter\n:FORWARD DROP [0:0]\n").splitlines()
        if "cbr0" not in line
    )
    + "\n"
)
KUBE_ROUTER_SETS_WITHOUT_CLIENTS = (
    "\n".join(line for line in KUBE_ROUTER_SETS.splitlines() if not line.startswith("add KUBE-SRC"))
    + "\n"
)
CALICO_SETS = "create CALI-ALLOWED hash:net\nadd CALI-ALLOWED 192.0.2.0/24\n"

_IPTABLES = {
    "docker": DOCKER,
    "kubelet": KUBELET,
    "ufw": UFW,
    "Calico": CALICO,
    "libvirt": LIBVIRT,
}

HARMLESS = {
    "firewalld": Ruleset("firewalld", FIREWALLD),
    "nftables.conf": Ruleset("", NFTABLES_CONF),
    "fail2ban": Ruleset("fail2ban", FAIL2BAN),
    **{
        f"{name}, {program}": by_iptables(name, text, program)
        for name, text in _IPTABLES.items()
        for program in ("nft", "legacy")
    },
}
