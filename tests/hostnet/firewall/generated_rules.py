"""Rules drawn at random, in the syntax of nft and of iptables-restore."""

from __future__ import annotations

from random import Random

from tests.hostnet.firewall.real_packets import Datagram

V4 = ("10.9.0.1", "10.9.0.2", "10.9.1.1")
V6 = ("fd09::1", "fd09::2", "fd09:1::1")
PORTS = (2000, 2001, 3000)
# None of these is a destination, so that no datagram is the reply to another one.
SOURCE_PORTS = (1999, 2500, 4001)
MARKS = (0, 1, 0x4001)
VERDICTS = ("accept", "drop", "return")


def draw_datagram(random: Random) -> Datagram:
    """Draw a datagram of either family."""
    addresses = random.choice((V4, V6))
    return Datagram(
        random.choice(addresses),
        random.choice(addresses),
        random.choice(SOURCE_PORTS),
        random.choice(PORTS),
        random.choice(MARKS),
    )


def _nft_matches(random: Random, six: bool) -> list[str]:
    ip, address = ("ip6", random.choice(V6)) if six else ("ip", random.choice(V4))
    network, other = ("fd09::/64", "fd09:1::/120") if six else ("10.9.0.0/24", "10.9.1.0/25")
    version, suffix = ("6", "6") if six else ("4", "4")
    port, mark = random.choice(PORTS), random.choice(MARKS)
    mask, masked = ("ffff::ff", "fd09::1") if six else ("255.255.0.255", "10.9.0.1")
    negated = random.choice(("", "!= "))
    return [
        f"{ip} saddr {negated}{address}",
        f"{ip} daddr {negated}{network}",
        f"{ip} saddr {negated}{{ {address}, {other} }}",
        f"{ip} saddr {negated}@some{suffix}",
        f"{ip} version {negated}{version}",
        f"{ip} saddr . udp dport {negated}{{ {address} . {port}, {other} . 2000-2001 }}",
        f"{ip} saddr . udp dport {negated}{{ {address} . {port} }}",
        f"{ip} daddr . meta mark {negated}{{ {address} . {mark} }}",
        f"ct original {ip} saddr {address}",
        f"udp dport {negated}{port}",
        f"udp dport {negated}{port}-3999",
        f"udp sport {random.choice(('<', '<=', '>', '>='))} {port}",
        f"udp dport {negated}{{ {port}, 2500-4000 }}",
        f"meta mark {negated}{mark}",
        f"meta mark and 0x4000 {random.choice(('== 0', '!= 0', '== 0x4000'))}",
        f'iifname {negated}"{random.choice(("lo", "l*", "eth0"))}"',
        f'iifname {negated}{{ "l*", "eth0", "wlan*" }}',
        f'iifname . udp dport {negated}{{ "lo" . {port} }}',
        f"iif {negated}lo",
        f"{ip} daddr & {mask} {random.choice(('==', '!='))} {masked}",
        f"udp dport {negated}{port} counter",
        f'oifname "{random.choice(("lo", "eth0"))}"',
        f"meta l4proto {negated}udp",
        f"ct state {random.choice(('new', 'established,related', 'invalid', '!= new'))}",
        "ct direction original",
        "ct status snat",
        f"meta l4proto udp ct original proto-dst {port}",
        f"fib daddr type {random.choice(('local', 'unicast', '{ local, broadcast }'))}",
        f"fib daddr . iif type {negated}local",
        f"fib saddr . iif type {negated}local",
        f"fib daddr oif {random.choice(('missing', 'exists'))}",
        f"fib daddr oifname {negated}lo",
        "meta pkttype host",
        f"@th,16,16 {port}",
    ]


def _nft_rule(random: Random, chains: tuple[str, ...]) -> str:
    six = random.random() < 0.5
    matches = random.sample(_nft_matches(random, six), random.choice((0, 1, 1, 2, 2, 3)))
    ends = [*VERDICTS, *(f"{word} {chain}" for chain in chains for word in ("jump", "goto"))]
    a, b = random.choice(ends), random.choice(ends)
    ip, pairs = ("ip6", "fd09::1 . 2000") if six else ("ip", "10.9.0.1 . 2000")
    ranges = "fd09:1::/64 . 2001-3000" if six else "10.9.1.0/24 . 2001-3000"
    statements = [
        *ends,
        "counter",
        "log",
        "reject",
        f"meta mark set {random.choice(MARKS)}",
        "meta mark set meta mark or 0x4000",
        "meta mark set meta mark and 0x1",
        "meta mark set udp dport map { 2000 : 0x4000, 3000 : 1 }",
        f"udp dport vmap {{ 2000 : {a}, 3000 : {b} }}",
        f"udp dport vmap {{ 2000-2500 : {a}, 3000 : {b} }}",
        f"{ip} saddr . udp dport vmap {{ {pairs} : {a}, {ranges} : {b} }}",
        f"ct state vmap {{ invalid : {a}, new : {b} }}",
        "ct mark set 0",
    ]
    return " ".join([*matches, random.choice(statements)])


def draw_nft_ruleset(random: Random) -> str:
    """Draw a table with the base chain `c` at the hook input, and two others."""
    text = """flush ruleset
        table inet t {
        set some4 { type ipv4_addr; flags interval; elements = { 10.9.0.0/31, 10.9.1.0-10.9.1.9 } }
        set some6 { type ipv6_addr; elements = { fd09::1, fd09:1::1 } }
    """
    for name, targets in (("b", ()), ("a", ("b",)), ("c", ("a", "b"))):
        rules = [_nft_rule(random, targets) for _ in range(random.randint(1, 5))]
        hook = f"type filter hook input priority 0; policy {random.choice(VERDICTS[:2])};"
        text += "\n".join([f"chain {name} {{", hook if name == "c" else "", *rules, "}\n"])
    return text + "}\n"


def _xt_matches(random: Random, six: bool) -> list[str]:
    addresses = V6 if six else V4
    network = "fd09::/64" if six else "10.9.0.0/24"
    low, high = addresses[:2]
    port, mark = random.choice(PORTS), random.choice(MARKS)
    negated = random.choice(("", "! "))
    states = random.choice(("NEW", "NEW,ESTABLISHED", "INVALID", "RELATED,ESTABLISHED", "DNAT"))
    name = random.choice(("lo", "l+", "eth0"))
    return [
        f"{negated}-s {random.choice(addresses)}",
        f"{negated}-d {network}",
        f"{negated}-i {name}",
        f"-p udp -m udp {negated}--dport {port}",
        f"-p udp -m udp {negated}--dport {port}:3999 --sport 1000:3000",
        "-p tcp -m tcp --dport 2000 --syn",
        f"-p udp -m multiport {negated}--dports {port},2500:4000",
        f"-p udp -m multiport --sports {random.choice(SOURCE_PORTS)}",
        f"{negated}-p tcp",
        f"-m mark {negated}--mark {mark}",
        f"-m mark {negated}--mark 0x4000/0x4000",
        f"-m conntrack {negated}--ctstate {states}",
        f"-m conntrack --ctorigdst {random.choice(addresses)} --ctdir ORIGINAL",
        f"-m conntrack {negated}--ctorigdstport {port}",
        f"-m state --state {random.choice(('NEW', 'INVALID', 'ESTABLISHED'))}",
        f"-m addrtype {negated}--dst-type {random.choice(('LOCAL', 'UNICAST'))}",
        f"-m iprange {negated}--src-range {low}-{high}",
        "-m comment --comment text",
        f"-m pkttype {negated}--pkt-type unicast",
        "-m physdev --physdev-in eth0",
        "-m statistic --mode random --probability 1.0",
        "-m policy --dir in --pol none",
        f"-m connmark {negated}--mark 0",
        f"-m set {negated}--match-set net{'6' if six else '4'} {random.choice(('src', 'dst'))}",
        f"-m set {negated}--match-set pair{'6' if six else '4'} src,dst",
        "-m set --match-set ports dst",
        f"-m set --match-set device{'6' if six else '4'} dst,src",
    ]


def _xt_rule(random: Random, six: bool, chain: str, chains: tuple[str, ...]) -> str:
    matches: list[str] = []
    for match in random.sample(_xt_matches(random, six), random.choice((0, 1, 1, 2, 2, 3))):
        # iptables takes each option and each match of a rule once.
        words = {word for word in match.split() if word.startswith("-") or word.isalpha()}
        if not any(words & set(other.split()) - {"-m"} for other in matches):
            matches.append(match)
    targets = ["ACCEPT", "DROP", "RETURN", "REJECT", "LOG"]
    ends = [f"-j {target}" for target in targets]
    ends += [f"{word} {target}" for target in chains for word in ("-j", "-g", "-j")]
    return " ".join(["-A", chain, *matches, random.choice(ends)])


def draw_xt_ruleset(random: Random, six: bool) -> str:
    """Draw a table filter with rules in INPUT and two other chains."""
    lines = ["*filter", f":INPUT {random.choice(('ACCEPT', 'DROP'))}", ":A -", ":B -"]
    for chain, targets in (("B", ()), ("A", ("B",)), ("INPUT", ("A", "B"))):
        lines += [_xt_rule(random, six, chain, targets) for _ in range(random.randint(1, 5))]
    return "\n".join([*lines, "COMMIT\n"])


IP_SETS = """create net4 hash:net
create net6 hash:net family inet6
create pair4 hash:ip,port
create pair6 hash:ip,port family inet6
create ports bitmap:port range 0-9999
create device4 hash:net,iface
create device6 hash:net,iface family inet6
add net4 10.9.0.0/24
add net4 10.9.0.2/32 nomatch
add net6 fd09::/64
add pair4 10.9.0.1,udp:2000
add pair4 10.9.1.1,tcp:3000
add pair6 fd09::1,udp:2000
add ports 3000
add device4 10.9.0.0/24,lo
add device6 fd09:1::/64,lo
"""
"""Sets that the rules of iptables match, for `ipset restore`."""
