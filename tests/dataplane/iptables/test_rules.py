"""The text of rules, field by field and target by target."""

from __future__ import annotations

import pytest

from pyproxy.dataplane.iptables.rules import (
    CERTAIN,
    COMMENT_LIMIT,
    DROP,
    MASQUERADE,
    RETURN,
    Jump,
    Rule,
    Seen,
    SetMark,
    Translate,
    chance,
    cleaned,
)
from pyproxy.model.address import (
    Family,
    Mark,
    Port,
    Protocol,
    backend,
    parse_address,
    parse_network,
)

TO = Translate(backend(parse_address("10.244.1.11"), Port(8080)))
TO6 = Translate(backend(parse_address("fd10:1::11"), Port(8080)))
BIT = Mark(1 << 14)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Rule(target=DROP), "-j DROP"),
        (Rule(target=MASQUERADE), "-j MASQUERADE --random-fully"),
        (Rule(target=Jump("KUBE-X")), "-j KUBE-X"),
        (Rule(target=Jump("KUBE-X", returns=False)), "-g KUBE-X"),
        (Rule(target=SetMark(BIT)), "-j MARK --set-xmark 0x4000/0x4000"),
        (Rule(target=SetMark(BIT, on=False)), "-j MARK --set-xmark 0x4000/0x0"),
        (Rule(marked=BIT, target=RETURN), "-m mark --mark 0x4000/0x4000 -j RETURN"),
        (Rule(marked=BIT, not_marked=True, target=RETURN),
         "-m mark ! --mark 0x4000/0x4000 -j RETURN"),
        (Rule(protocol=Protocol.TCP, target=TO),
         "-p tcp -j DNAT --to-destination 10.244.1.11:8080"),
        (Rule(protocol=Protocol.UDP, share=chance(1, 3), target=TO6),
         "-p udp -m statistic --mode random --probability 0.33333333349 "
         "-j DNAT --to-destination [fd10:1::11]:8080"),
        (Rule(source=parse_network("10.0.0.0/8"), not_source=True,
              destination=parse_network("10.96.0.1/32"), target=DROP),
         "! -s 10.0.0.0/8 -d 10.96.0.1/32 -j DROP"),
        (Rule(source=parse_network("0.0.0.0/0"), target=DROP), "-j DROP"),
        (Rule(interface="veth+", target=DROP), "-i veth+ -j DROP"),
        (Rule(interface="cni0", not_interface=True, target=DROP), "! -i cni0 -j DROP"),
        (Rule(destination=parse_network("fd96::1/128"), protocol=Protocol.SCTP, ports=(80, 80),
              comment="shop/web:http", target=DROP),
         '-d fd96::1/128 -p sctp -m comment --comment "shop/web:http" -m sctp --dport 80 -j DROP'),
        (Rule(protocol=Protocol.TCP, ports=(80, 95), target=DROP),
         "-p tcp -m tcp --dport 80:95 -j DROP"),
        (Rule(from_here=True, target=DROP), "-m addrtype --src-type LOCAL -j DROP"),
        (Rule(to_here=True, target=DROP), "-m addrtype --dst-type LOCAL -j DROP"),
        (Rule(states="NEW", untranslated=True, comment="why", target=DROP),
         "-m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -m comment --comment why "
         "-j DROP"),
        (Rule(states="NEW", not_states=True, target=DROP), "-m conntrack ! --ctstate NEW -j DROP"),
        (Rule(seen=Seen("KUBE-SEP-X", Family.IPV4, 60), target=Jump("KUBE-SEP-X")),
         "-m recent --rcheck --seconds 60 --reap --name KUBE-SEP-X --mask 255.255.255.255 "
         "--rsource -j KUBE-SEP-X"),
        (Rule(seen=Seen("KUBE-SEP-X", Family.IPV6), target=DROP),
         "-m recent --set --name KUBE-SEP-X "
         "--mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -j DROP"),
        (Rule(states="INVALID", counter="dropped", target=DROP),
         "-m conntrack --ctstate INVALID -m nfacct --nfacct-name  dropped -j DROP"),
    ],
)  # fmt: skip
def test_a_rule_has_the_text_that_iptables_save_prints(rule: Rule, text: str) -> None:
    assert rule.text == text


@pytest.mark.parametrize(
    ("text", "comment"),
    [
        ("shop/web:http", "shop/web:http"),
        ('x" -j ACCEPT\n-A INPUT', "x? -j ACCEPT?-A INPUT"),
        ("ünïcode\\", "?n?code?"),
        ("x" * 300, "x" * COMMENT_LIMIT),
    ],
)
def test_a_comment_is_cut_and_cleaned(text: str, comment: str) -> None:
    assert cleaned(text) == comment


def test_a_probability_is_in_the_kernels_units() -> None:
    assert chance(3, 3) == 0
    assert chance(1, 2) == CERTAIN // 2
