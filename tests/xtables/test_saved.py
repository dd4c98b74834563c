"""iptables-save's output, parsed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.xtables.saved import parse, parse_counters, target
from tests.takeover.scenes import IPTABLES


def test_all_of_kube_proxys_rules_are_parsed() -> None:
    tables = parse(IPTABLES)
    assert tables.keys() == {"mangle", "filter", "nat"}
    rules = [text for table in tables.values() for texts in table.chains.values() for text in texts]
    assert len(rules) == IPTABLES.count("\n-A ")
    assert tables["nat"].chains["KUBE-MARK-MASQ"] == ["-j MARK --set-xmark 0x4000/0x4000"]
    assert tables["mangle"].chains == {"KUBE-PROXY-CANARY": []}


def test_built_in_chains_are_those_with_a_policy() -> None:
    saved = "*nat\n:PREROUTING ACCEPT [1:2]\n:KUBE-X - [0:0]\n-A PREROUTING\nCOMMIT\n"
    (nat,) = parse(saved).values()
    assert nat.policies == {"PREROUTING": "ACCEPT"}
    assert nat.chains == {"PREROUTING": [""], "KUBE-X": []}


# Ends of lines to str.splitlines or to a file in text mode, and others; iptables ends one at \n.
COMMENTS = st.text(
    st.characters(codec="utf-8", exclude_characters='"\\\n\0')
    | st.sampled_from("\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r")
)


@given(COMMENTS)
def test_a_comment_may_have_any_character_but_the_end_of_a_line(comment: str) -> None:
    rule = f'-m comment --comment "{comment}" -j KUBE-X'
    saved = f"*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-X - [0:0]\n-A PREROUTING {rule}\nCOMMIT\n"
    assert parse(saved)["nat"].chains == {"PREROUTING": [rule], "KUBE-X": []}
    assert target(rule) == "KUBE-X"
    counted = f"[7:420] -A PREROUTING {rule}\n"
    assert parse_counters(counted) == {"PREROUTING": [(7, rule)]}


def test_counters_are_packets_and_not_bytes() -> None:
    saved = (
        "*nat\n:PREROUTING ACCEPT [1:60]\n:KUBE-X - [0:0]\n[12:720] -A PREROUTING -j KUBE-X\n"
        "[3:180] -A KUBE-X -p tcp -j DNAT --to-destination 10.244.1.11:8080\n[0:0] -A KUBE-X\n"
        "COMMIT\n"
    )
    assert parse_counters(saved) == {
        "PREROUTING": [(12, "-j KUBE-X")],
        "KUBE-X": [(3, "-p tcp -j DNAT --to-destination 10.244.1.11:8080"), (0, "")],
    }


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("-d 10.96.0.1/32 -j KUBE-X", "KUBE-X"),
        ("-g KUBE-X", "KUBE-X"),
        ('-m comment --comment "a -j KUBE-Y b" -j KUBE-X', "KUBE-X"),
        ('-m comment --comment "a \\" -j KUBE-Y" -g KUBE-X', "KUBE-X"),
        ('-m comment --comment "nothing more"', ""),
        ("-m comment --comment -j -j KUBE-X", "KUBE-X"),
        ('-m comment --comment "a\\\\" -j KUBE-X', "KUBE-X"),
        ("", ""),
    ],
)
def test_the_target_of_a_rule_is_found(text: str, wanted: str) -> None:
    assert target(text) == wanted
