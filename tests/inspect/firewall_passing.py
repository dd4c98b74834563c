"""Rules of other programs that stop no packet, and those that `explain` cannot decide."""

from __future__ import annotations

from tests.inspect.firewall_faults import (
    A1,
    ADDRESS,
    ALL,
    BOTH_B,
    CLIENT,
    HOST,
    NODE,
    NODE_PORT,
    POD,
    Fault,
    chain,
    dropped,
    legacy,
    table,
)
from tests.inspect.node import SITE

UNDECIDED: dict[str, Fault] = {
    "unknown match": legacy(
        "it is undecided whether rule 1 of chain FORWARD in table iptables-legacy filter drops "
        f"packets from {POD} to {ALL}: pyproxy cannot evaluate match u32",
        ['iptables-legacy -I FORWARD -m u32 --u32 "0&0xFFFF=0x0:0x10" -j DROP'],
        ['iptables-legacy -D FORWARD -m u32 --u32 "0&0xFFFF=0x0:0x10" -j DROP'],
        result="undecided",
    ),
    "some clients": dropped(
        "prerouting",
        "ip saddr { 203.0.113.1, 203.0.113.9 } drop",
        f"drops packets from {HOST} to 172.30.0.11:30070, depending on the client's address",
        result="undecided",
        target=NODE_PORT,
        priority="mangle",
    ),
    "a rate of each client": Fault(
        f"of chain c in table inet other drops packets from {POD} to {ALL}, depending on a rate "
        "limit",
        table(
            "set clients {\ntype ipv4_addr; size 1000; flags dynamic, timeout; timeout 1m\n}\n"
            + chain(
                "forward",
                "ct state new update @clients { ip saddr limit rate over 50/second } drop",
            )
        ),
        result="undecided",
    ),
    "a port of the bridge": Fault(
        f"of chain c in table netdev other drops packets from {POD} to {ADDRESS}:80, depending on "
        "the port of the bridge",
        table(chain("ingress device v-a1", "ip daddr 10.96.0.0/12 drop"), "netdev"),
        result="undecided",
    ),
    "a packet's length": dropped(
        "forward",
        "meta length > 1400 drop",
        f"drops packets from {POD} to {ALL}, depending on the packet's length",
        result="undecided",
    ),
    "a rate": dropped(
        "forward",
        "ct state new limit rate over 50/second drop",
        f"drops packets from {POD} to {ALL}, depending on a rate limit",
        result="undecided",
    ),
    "pyproxy's mark cleared": dropped(
        "forward",
        "meta mark set 0",
        f"passes packets from {HOST} to {ALL} on without the mark 0x4000, so that they keep the "
        "client's address",
        target=NODE_PORT,
        source=CLIENT,
        client="ext",
        result="undecided",
    ),
    "a limit of connections": dropped(
        "forward",
        "ct state new ct count over 0 drop",
        f"drops packets from {POD} to {ALL}, depending on a limit of connections",
        result="undecided",
    ),
    "the sending process": dropped(
        "output",
        "meta skuid 0 tcp dport 8080 drop",
        f"drops packets from {NODE} to {ALL}, depending on the sending process",
        result="undecided",
    ),
    "the TTL of a client": dropped(
        "prerouting",
        "iifname eth0 tcp dport 30070 ip ttl 64 drop",
        f"drops packets from {HOST} to 172.30.0.11:30070, depending on the sender's TTL",
        result="undecided",
        target=NODE_PORT,
        priority="mangle",
    ),
    "a TTL that ends on the way": dropped(
        "prerouting",
        f"ip daddr {ADDRESS} ip ttl set 1",
        f"passes packets from {POD} to {ADDRESS}:80 on with TTL 1",
        result="undecided",
        priority="mangle",
    ),
    "a TTL of iptables that ends on the way": legacy(
        f"passes packets from {POD} to {ADDRESS}:80 on with TTL 1",
        [f"iptables-legacy -t mangle -I PREROUTING -d {ADDRESS} -j TTL --ttl-set 1"],
        [f"iptables-legacy -t mangle -D PREROUTING -d {ADDRESS} -j TTL --ttl-set 1"],
        result="undecided",
    ),
    "another zone of conntrack": dropped(
        "prerouting",
        'iifname "cbr0" ct zone set 5',
        f"passes packets from {POD} to {ADDRESS}:80 to a conntrack zone",
        result="undecided",
        priority="raw",
    ),
    "another zone by iptables": legacy(
        f"passes packets from {POD} to {ADDRESS}:80 to a conntrack zone",
        ["iptables-legacy -t raw -I PREROUTING -i cbr0 -j CT --zone 7"],
        ["iptables-legacy -t raw -D PREROUTING -i cbr0 -j CT --zone 7"],
        result="undecided",
    ),
    "another source": Fault(
        f"passes packets from {POD} to {BOTH_B} on with the source 192.0.2.77, which is no "
        "address of this node",
        table(
            chain(
                "postrouting",
                'oifname "eth0" ip saddr 10.244.0.0/16 snat ip to 192.0.2.77',
                "90",
                kind="nat",
            )
        ),
        result="undecided",
    ),
    "another source by iptables": legacy(
        f"passes packets from {POD} to {BOTH_B} on with the source 192.0.2.77, which is no "
        "address of this node",
        ["iptables-nft -t nat -I POSTROUTING -s 10.244.0.0/16 -o eth0 -j SNAT --to 192.0.2.77"],
        ["iptables-nft -t nat -D POSTROUTING -s 10.244.0.0/16 -o eth0 -j SNAT --to 192.0.2.77"],
        result="undecided",
    ),
    "a loopback source": Fault(
        f"passes packets from {POD} to {BOTH_B} on with the source 127.0.0.1, which no other host "
        "replies to",
        table(
            chain(
                "postrouting",
                'oifname "eth0" ip saddr 10.244.0.0/16 snat ip to 127.0.0.1',
                "90",
                kind="nat",
            )
        ),
        result="undecided",
    ),
    "a set that may be full": Fault(
        f"of chain c in table inet other drops packets from {POD} to {ALL}, depending on whether a "
        "set is full",
        table(
            "set clients {\ntype ipv4_addr; size 1; flags dynamic, timeout; timeout 1h\n"
            "elements = { 192.0.2.1 }\n}\n"
            + chain(
                "forward", "tcp dport 8080 add @clients { ip saddr } accept\ntcp dport 8080 drop"
            )
        ),
        result="undecided",
    ),
    "another source without conntrack": dropped(
        "prerouting",
        f"ip saddr {A1} ip saddr set 192.0.2.9",
        f"passes packets from {POD} to {ADDRESS}:80 on with another source address",
        result="undecided",
        priority="raw",
        source=A1,
    ),
}

BY_MARK = (
    "ip route add blackhole default table 70",
    "ip rule add fwmark 0x99/0x99 lookup 70 pref 70",
)
NOT_BY_MARK = ("ip rule del pref 70", "ip route flush table 70")

PASSING: dict[str, Fault] = {
    "a filter chain's mark, behind the translation": dropped(
        "output",
        "ip daddr 10.244.0.0/16 meta mark set meta mark or 0x99",
        "",
        iptables=BY_MARK,
        undo=NOT_BY_MARK,
        client=SITE,
    ),
    "another translation of the source first": Fault(
        "",
        table(
            "chain first {\ntype nat hook postrouting priority 80;\n"
            'oifname "eth0" ip daddr 10.244.2.0/24 masquerade\n}\n'
            + chain(
                "postrouting",
                'oifname "eth0" ip daddr 10.244.2.0/24 snat ip to 192.0.2.77',
                "90",
                kind="nat",
            )
        ),
    ),
    "behind pyproxy's masquerading": Fault(
        "",
        table(
            chain(
                "postrouting",
                "tcp dport 8080 snat ip to 192.0.2.77",
                "110",
                kind="nat",
            )
        ),
        target=NODE_PORT,
        source=CLIENT,
        client="ext",
    ),
    "a host model of the node's own device": dropped(
        "prerouting",
        "iifname eth0 fib daddr . iif type != { local, broadcast, multicast } drop",
        "",
        priority="-150",
        target=NODE_PORT,
        source=CLIENT,
        client="ext",
    ),
    "the route to the endpoint": dropped(
        "prerouting",
        f'ip saddr {A1} ip daddr 10.244.2.0/24 fib daddr oifname != "eth0" drop',
        "",
        source=A1,
    ),
    "a set that is not full": Fault(
        "",
        table(
            "set clients {\ntype ipv4_addr; size 100; flags dynamic\n}\n"
            + chain(
                "forward", "tcp dport 8080 add @clients { ip saddr } accept\ntcp dport 8080 drop"
            )
        ),
    ),
    "a table of ARP": Fault(
        "",
        table(
            "chain c {\ntype filter hook input priority 0; policy drop;\n"
            "arp operation { 1, 2 } accept\n}",
            "arp",
        ),
    ),
    "postrouting, of other input devices": dropped(
        "postrouting",
        f'oifname "eth0" ip saddr {A1} iifname != "cbr0" drop',
        "",
        priority="mangle",
        source=A1,
    ),
    "later packets accepted": Fault(
        "",
        table(
            chain(
                "forward",
                "ct state vmap { established : accept, new : accept }",
                policy="drop",
            )
        ),
    ),
}
