"""Rules of other programs that stop a Service's packets, and what `explain` says of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tests.inspect import firewall_rulesets as rulesets
from tests.inspect.firewall_rulesets import Ruleset, by_iptables
from tests.inspect.node import NAMESPACE, SITE

TARGET = f"{NAMESPACE}/web"
ADDRESS, ADDRESS6, HOST_ADDRESS = "10.96.0.70", "fd00:10:96::70", "10.96.0.71"
NODE_PORT = "172.30.0.11:30070"
A1, A2, B1, B2 = "10.244.1.11", "10.244.1.12", "10.244.2.11", "10.244.2.12"
CLIENT = "172.30.0.100"
B1_6 = "fd10:2::11"
OF_NODE = f"{NAMESPACE}/host"
POD, NODE, HOST = "a pod on this node", "this node", "another host"
ALL = f"{A1}:8080, {A2}:8080, {B1}:8080 and 1 more"
ESTABLISHED = "FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
LATER = "FORWARD -i cbr0 -o eth0 -m conntrack --ctstate ESTABLISHED -j DROP"
BY_PORTS = "FORWARD -p tcp -m multiport --dports 8000:8100 -m comment --comment x -j REJECT"
BOTH_B = f"{B1}:8080, {B2}:8080"


class Fault(msgspec.Struct, frozen=True):
    """A ruleset for nft or a list of iptables commands, and the sentence that names its rule.

    `client` is a pod, the node or the outside client, whose connections to `target` fail.
    """

    words: str
    nft: str = ""
    iptables: Sequence[str] = ()
    undo: Sequence[str] = ()
    target: str = TARGET
    source: str = ""
    client: str = "a1"
    result: str = "failed"
    ruleset: Ruleset | None = None


def table(body: str, family: str = "inet", name: str = "other") -> str:
    return f"table {family} {name} {{\n{body}\n}}\n"


def chain(
    hook: str, rules: str, priority: str = "0", policy: str = "accept", kind: str = "filter"
) -> str:
    head = f"type {kind} hook {hook} priority {priority}; policy {policy};"
    return f"chain c {{\n{head}\n{rules}\n}}\n"


def dropped(hook: str, rules: str, words: str, priority: str = "0", **fields: Any) -> Fault:
    """A chain in a table of its own, and what its first rule does."""
    fields.setdefault("nft", table(chain(hook, rules, priority)))
    return Fault(f"of chain c in table inet other {words}", **fields)


def legacy(words: str, plant: Sequence[str], undo: Sequence[str], **fields: Any) -> Fault:
    return Fault(words, "", plant, undo, **fields)


FAULTS: dict[str, Fault] = {
    "forward policy": Fault(
        f"the policy of chain c in table inet other drops packets from {POD} to {ALL}",
        table(chain("forward", "", policy="drop")),
    ),
    "forward policy that accepts established alone": Fault(
        f"the policy of chain c in table inet other drops packets from {POD} to {ALL}",
        table(chain("forward", "ct state established,related accept", policy="drop")),
    ),
    "forward policy of the older family": Fault(
        f"the policy of chain c in table ip other drops packets from {POD} to {ALL}",
        table(chain("forward", "", policy="drop"), "ip"),
    ),
    "by port": dropped("forward", "tcp dport 8080 drop", f"drops packets from {POD} to {ALL}"),
    "by port, rejected": dropped(
        "forward",
        "tcp dport { 80, 8080 } reject with tcp reset",
        f"rejects packets from {POD} to {ALL}",
    ),
    "by interfaces": dropped(
        "forward", 'iifname "cbr0" oifname "eth0" drop', f"drops packets from {POD} to {BOTH_B}"
    ),
    "by mark": dropped(
        "forward",
        "meta mark and 0x4000 == 0x4000 drop",
        f"drops packets from {HOST} to",
        client="ext",
        target=NODE_PORT,
    ),
    "by a mark that another chain sets": Fault(
        "the rule with handle 4 of chain c in table inet other drops packets from "
        f"{POD} to {BOTH_B}",
        table(
            "chain m {\ntype filter hook prerouting priority mangle;\n"
            f"ip daddr {ADDRESS} meta mark set 0x7\n}}\n"
            + chain("forward", "oifname eth0 meta mark 0x7 drop")
        ),
    ),
    "by membership in a set": Fault(
        f"of chain c in table inet other drops packets from {POD} to {BOTH_B}",
        table(
            "set bad {\ntype ipv4_addr; flags interval\n"
            "elements = { 10.244.2.8/29, 192.0.2.0/24 }\n}\n"
            + chain("forward", "ip daddr @bad drop")
        ),
    ),
    "by a verdict map of a concatenation": Fault(
        f"of chain c in table inet other drops packets from {POD} to {A2}:8080, {BOTH_B}",
        table(
            chain(
                "forward",
                f"ip daddr . tcp dport vmap {{ {A1} . 8080 : accept, "
                "10.244.0.0/16 . 8000-8080 : drop }",
            )
        ),
    ),
    "in a chain that others lead to": Fault(
        f"of chain zone in table inet other rejects packets from {POD} to {BOTH_B}",
        table(
            "chain zone {\nct state new reject with icmpx admin-prohibited\n}\n"
            + chain("forward", 'ct state established accept\noifname vmap { "eth0" : goto zone }')
        ),
    ),
    "taken out of conntrack": dropped(
        "prerouting",
        f"ip daddr {ADDRESS} notrack",
        f"takes packets from {POD} to {ADDRESS}:80 out of conntrack",
        priority="raw",
    ),
    "taken out of conntrack in output": dropped(
        "output",
        f"ip daddr {ADDRESS} notrack",
        f"takes packets from {NODE} to {ADDRESS}:80 out of conntrack",
        priority="raw",
        client=SITE,
    ),
    "invalid, before conntrack": dropped(
        "prerouting",
        "ip daddr 10.96.0.0/12 ct state invalid drop",
        f"drops packets from {POD} to {ADDRESS}:80",
        priority="raw",
    ),
    "before translation": dropped(
        "prerouting",
        "ip daddr 10.96.0.0/12 drop",
        f"drops packets from {POD} to {ADDRESS}:80",
        priority="mangle",
    ),
    "node's own packets": dropped(
        "output", "tcp dport 8080 reject", f"rejects packets from {NODE} to {ALL}", client=SITE
    ),
    "node's own packets, before translation": dropped(
        "output",
        f"ip daddr {ADDRESS} drop",
        f"drops packets from {NODE} to {ADDRESS}:80",
        priority="mangle",
        client=SITE,
    ),
    "postrouting": dropped(
        "postrouting",
        'oifname "eth0" tcp dport 8080 drop',
        f"drops packets from {POD} to {BOTH_B}",
        priority="mangle",
    ),
    "replies": dropped(
        "forward",
        'iifname "eth0" ct state established,related drop',
        f"drops the replies of {BOTH_B} to {POD}",
    ),
    "replies by port": dropped(
        "prerouting",
        'iifname "eth0" tcp sport 8080 drop',
        f"drops the replies of {BOTH_B} to",
        priority="raw",
    ),
    "later packets": dropped(
        "forward",
        'iifname "cbr0" oifname "eth0" ct state established drop',
        f"drops later packets of a connection from {POD} to {BOTH_B}",
    ),
    "later packets of the node": dropped(
        "output",
        "ct state established tcp dport 8080 drop",
        f"drops later packets of a connection from {NODE} to {ALL}",
        client=SITE,
    ),
    "later packets to the node": dropped(
        "input",
        "ct state established tcp dport 9090 drop",
        f"drops later packets of a connection from {POD} to 172.30.0.11:9090",
        target=OF_NODE,
    ),
    "the first packet accepted alone": Fault(
        "the policy of chain c in table inet other drops later packets of a connection from "
        f"{POD} to {BOTH_B}",
        table(
            chain(
                "forward",
                "tcp flags & (syn|ack) == syn accept\noifname cbr0 accept",
                policy="drop",
            )
        ),
    ),
    "later packets, legacy": legacy(
        "rule 1 of chain FORWARD in table iptables-legacy filter drops later packets of a "
        f"connection from {POD} to {BOTH_B}",
        [f"iptables-legacy -I {LATER}"],
        [f"iptables-legacy -D {LATER}"],
    ),
    "the node's addresses at their own devices alone": dropped(
        "prerouting",
        "fib daddr . iif type != { local, broadcast, multicast } drop",
        f"drops packets from {POD} to {NODE_PORT}",
        priority="-150",
        target=NODE_PORT,
        source=A1,
    ),
    "no route to an address of the node": dropped(
        "prerouting",
        "fib daddr oif missing drop",
        f"drops packets from {HOST} to {NODE_PORT}",
        priority="-150",
        target=NODE_PORT,
        client="ext",
    ),
    "the route to endpoints": dropped(
        "prerouting",
        'iifname "cbr0" ip daddr 10.244.2.0/24 fib daddr oifname "eth0" drop',
        f"drops packets from {POD} to {BOTH_B}",
    ),
    "a full set": Fault(
        f"of chain c in table inet other drops packets from {POD} to {ALL}",
        table(
            "set clients {\ntype ipv4_addr; size 1; flags dynamic\nelements = { 192.0.2.1 }\n}\n"
            + chain(
                "forward",
                f"ip saddr {A1} tcp dport 8080 add @clients {{ ip saddr }} accept\n"
                "tcp dport 8080 drop",
            )
        ),
        source=A1,
    ),
    "postrouting, by the input device": dropped(
        "postrouting",
        'iifname "cbr0" oifname "eth0" drop',
        f"drops packets from {POD} to {BOTH_B}",
        priority="mangle",
    ),
    "a base chain in the table of settings": legacy(
        f"the policy of chain zz in table inet pyproxy-node drops packets from {POD} to {ALL}",
        [
            "nft add table inet pyproxy-node",
            "nft add chain inet pyproxy-node zz { type filter hook forward priority 0 ; "
            "policy drop ; }",
        ],
        ["nft delete chain inet pyproxy-node zz"],
    ),
    "a table of another mode": Fault(
        f"the policy of chain c in table inet pyproxy-ipvs drops packets from {POD} to {ALL}",
        table(chain("forward", "", policy="drop"), name="pyproxy-ipvs"),
    ),
    "bridge": Fault(
        f"of chain c in table bridge other drops packets from {POD} to {ADDRESS}:80",
        table(chain("prerouting", f"ip daddr {ADDRESS} drop", "-300"), "bridge"),
    ),
    "bridge to a pod": Fault(
        f"of chain c in table bridge other drops packets from {NODE} to {A1}:8080, {A2}:8080",
        table(chain("output", "tcp dport 8080 drop"), "bridge"),
        client=SITE,
    ),
    "netdev": Fault(
        f"of chain c in table netdev other drops packets from {HOST} to 172.30.0.11:30070",
        table(chain("ingress device eth0", "tcp dport 30070 drop"), "netdev"),
        target=NODE_PORT,
        client="ext",
    ),
    "input": Fault(
        f"of chain c in table inet other drops packets from {POD} to 172.30.0.11:9090",
        table(chain("input", "tcp dport 9090 drop")),
        target=OF_NODE,
    ),
    "input, from the node": Fault(
        f"of chain c in table ip other rejects packets from {NODE} to 172.30.0.11:9090",
        table(chain("input", "tcp dport 9090 iifname lo reject"), "ip"),
        target=OF_NODE,
        client=SITE,
    ),
    "replies of the node": Fault(
        f"of chain c in table inet other drops the replies of 172.30.0.11:9090 to {POD}",
        table(chain("output", "oifname cbr0 tcp sport 9090 drop")),
        target=OF_NODE,
    ),
    "IPv6": Fault(
        f"of chain c in table ip6 other rejects packets from {POD} to [{B1_6}]:8080",
        table(chain("forward", "ip6 daddr fd10:2::/64 tcp dport 8080 reject"), "ip6"),
        target=f"{NAMESPACE}/six",
    ),
    "legacy IPv6": legacy(
        "rule 1 of chain FORWARD in table ip6tables-legacy filter drops packets from "
        f"{POD} to [{B1_6}]:8080",
        ["ip6tables-legacy -I FORWARD -i cbr0 -d fd10:2::/64 -p tcp --dport 8080 -j DROP"],
        ["ip6tables-legacy -D FORWARD -i cbr0 -d fd10:2::/64 -p tcp --dport 8080 -j DROP"],
        target=f"{NAMESPACE}/six",
    ),
    "another translation": Fault(
        f"of chain c in table inet other translates packets from {POD} to {ADDRESS}:80 to "
        "192.0.2.9 before pyproxy does",
        table(
            chain(
                "prerouting",
                f"ip daddr {ADDRESS} tcp dport 80 dnat ip to 192.0.2.9",
                "-110",
                kind="nat",
            )
        ),
    ),
    "a redirection of the node's packets": Fault(
        f"of chain c in table inet other translates packets from {NODE} to {ADDRESS}:80 to this "
        "node before pyproxy does",
        table(
            chain("output", f"ip daddr {ADDRESS} tcp dport 80 redirect to :9", "-110", kind="nat")
        ),
        client=SITE,
    ),
    "a part of the packets": dropped(
        "forward",
        "tcp dport 8080 numgen random mod 100 < 70 drop",
        f"drops a part of packets from {POD} to {ALL}",
    ),
    "legacy forward policy": legacy(
        f"the policy of chain FORWARD in table iptables-legacy filter drops packets from {POD} to",
        ["iptables-legacy -P FORWARD DROP"],
        ["iptables-legacy -P FORWARD ACCEPT"],
    ),
    "forward policy of iptables-nft": legacy(
        f"the policy of chain FORWARD in table ip filter drops packets from {POD} to",
        ["iptables-nft -P FORWARD DROP"],
        ["iptables-nft -P FORWARD ACCEPT"],
    ),
    "legacy docker": legacy(
        "the policy of chain FORWARD in table iptables-legacy filter (docker) drops",
        [
            "iptables-legacy -N DOCKER-USER",
            "iptables-legacy -N DOCKER-ISOLATION-STAGE-1",
            "iptables-legacy -P FORWARD DROP",
            "iptables-legacy -A FORWARD -j DOCKER-USER",
            "iptables-legacy -A FORWARD -j DOCKER-ISOLATION-STAGE-1",
            f"iptables-legacy -A {ESTABLISHED}",
            "iptables-legacy -A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
        ],
        ["iptables-legacy -P FORWARD ACCEPT", "iptables-legacy -D FORWARD 1"]
        and [
            "iptables-legacy -P FORWARD ACCEPT",
            "iptables-legacy -D FORWARD -j DOCKER-USER",
            "iptables-legacy -D FORWARD -j DOCKER-ISOLATION-STAGE-1",
            f"iptables-legacy -D {ESTABLISHED}",
            "iptables-legacy -D FORWARD -i docker0 ! -o docker0 -j ACCEPT",
            "iptables-legacy -X DOCKER-USER",
            "iptables-legacy -X DOCKER-ISOLATION-STAGE-1",
        ],
    ),
    "legacy notrack": legacy(
        f"rule 1 of chain PREROUTING in table iptables-legacy raw takes packets from {POD} to "
        f"{ADDRESS}:80 out of conntrack",
        [f"iptables-legacy -t raw -I PREROUTING -d {ADDRESS} -j CT --notrack"],
        [f"iptables-legacy -t raw -D PREROUTING -d {ADDRESS} -j CT --notrack"],
    ),
    "notrack of iptables-nft": legacy(
        f"of chain PREROUTING in table ip raw takes packets from {POD} to {ADDRESS}:80 out of "
        "conntrack",
        [f"iptables-nft -t raw -I PREROUTING -d {ADDRESS} -j NOTRACK"],
        [f"iptables-nft -t raw -D PREROUTING -d {ADDRESS} -j NOTRACK"],
    ),
    "legacy multiport": legacy(
        f"rule 1 of chain FORWARD in table iptables-legacy filter rejects packets from {POD} to",
        [f"iptables-legacy -I {BY_PORTS}"],
        [f"iptables-legacy -D {BY_PORTS}"],
    ),
    "translation in the shared table": legacy(
        "of chain OUTPUT in table ip nat",
        [f"iptables-nft -t nat -I OUTPUT -d {ADDRESS} -p tcp --dport 80 -j DNAT --to 192.0.2.9"],
        [f"iptables-nft -t nat -D OUTPUT -d {ADDRESS} -p tcp --dport 80 -j DNAT --to 192.0.2.9"],
        client="",
        result="",
    ),
}

ASYMMETRIC = (f"ip route add {CLIENT} dev mgmt",)
SYMMETRIC = (f"ip route del {CLIENT} dev mgmt",)
RPFILTER = "PREROUTING -m rpfilter --invert -j DROP"

FAULTS |= {
    "before forwarding, by TTL": dropped(
        "prerouting",
        "ip ttl 64 tcp dport 80 drop",
        f"drops packets from {POD} to {ADDRESS}:80",
        priority="mangle",
    ),
    "another port without conntrack": Fault(
        f"of chain c in table inet other translates packets from {POD} to {ALL} to port 9, "
        "without conntrack",
        table(chain("postrouting", "tcp dport 8080 tcp dport set 9", "200")),
    ),
    "no route back by this device": Fault(
        f"drops packets from {HOST} to {NODE_PORT}",
        table(chain("prerouting", "fib saddr . iif oif missing drop", "raw")),
        ASYMMETRIC,
        SYMMETRIC,
        target=NODE_PORT,
        source=CLIENT,
        client="ext",
    ),
    "no route back by this device, legacy": legacy(
        f"drops packets from {HOST} to {NODE_PORT}",
        [*ASYMMETRIC, f"iptables-legacy -t raw -I {RPFILTER}"],
        [*SYMMETRIC, f"iptables-legacy -t raw -D {RPFILTER}"],
        target=NODE_PORT,
        source=CLIENT,
        client="ext",
    ),
    "firewalld": Fault(
        "of chain filter_FORWARD in table inet firewalld (firewalld) rejects packets from "
        f"{POD} to {ALL}",
        ruleset=Ruleset("firewalld", rulesets.FIREWALLD_STRICT),
    ),
    **{
        f"{name}, {program}": Fault(words, ruleset=by_iptables(name, text, program, sets), **fields)
        for program, label in (("nft", "ip"), ("legacy", "iptables-legacy"))
        for name, text, sets, words, fields in (
            (
                "docker",
                rulesets.DOCKER_STRICT,
                "",
                f"the policy of chain FORWARD in table {label} filter (docker) drops packets from "
                f"{POD} to {ALL}",
                {},
            ),
            (
                "ufw",
                rulesets.UFW_STRICT,
                "",
                f"the policy of chain FORWARD in table {label} filter (ufw) drops packets from "
                f"{POD} to {ALL}",
                {},
            ),
            (
                "kube-router",
                rulesets.KUBE_ROUTER,
                rulesets.KUBE_ROUTER_SETS_WITHOUT_CLIENTS,
                f"of chain KUBE-POD-FW-WEB in table {label} filter (kube-router's network policy) "
                f"rejects packets from {POD} to {A1}:8080",
                {"client": ""},
            ),
            (
                "Calico",
                rulesets.CALICO_POLICY,
                rulesets.CALICO_SETS,
                f"of chain cali-tw-cbr0 in table {label} filter (Calico) drops packets from {POD} "
                f"to {A1}:8080, {A2}:8080",
                {},
            ),
        )
    },
}
