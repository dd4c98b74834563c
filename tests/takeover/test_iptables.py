"""What of iptables-save's output is kube-proxy's, and the text that takes it out."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.takeover.iptables import Rule, TableRemoval, parse, removal
from pyproxy.takeover.names import MARK_CHAIN, SETS, owns_chain

from .scenes import IPTABLES

BUILT_IN = "".join(
    f":{chain} ACCEPT [0:0]\n"
    for chain in ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
)
SAVED = {
    # The recording leaves them out, iptables-save never does.
    table.name: table
    for table in parse(re.sub(r"(?m)^\*(\w+)\n", rf"*\1\n{BUILT_IN}", IPTABLES))
}


def one(*lines: str, table: str = "nat") -> TableRemoval:
    text = [f"*{table}", ":PREROUTING ACCEPT [0:0]", ":INPUT DROP [7:9]", *lines, "COMMIT"]
    (saved,) = parse("\n".join(text))
    return removal(saved)


def test_the_recorded_tables_are_read_whole() -> None:
    assert list(SAVED) == ["mangle", "filter", "nat"]
    assert {name: len(table.rules) for name, table in SAVED.items()} == {
        "mangle": 0,
        "filter": 19,
        "nat": 40,
    }


def test_what_kube_proxy_recorded_is_what_goes() -> None:
    found = {name: removal(table) for name, table in SAVED.items()}
    assert found["mangle"].chains == ("KUBE-PROXY-CANARY",)
    assert found["filter"].chains == (
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-FORWARD",
        "KUBE-NODEPORTS",
        "KUBE-PROXY-CANARY",
        "KUBE-PROXY-FIREWALL",
        "KUBE-SERVICES",
    )
    nat = SAVED["nat"]
    assert set(found["nat"].chains) == nat.chains - nat.policies.keys()
    assert {name: len(each.jumps) for name, each in found.items()} == {
        "mangle": 0,
        "filter": 9,
        "nat": 3,
    }
    assert not any(each.emptied for each in found.values())


def test_the_script_takes_out_jumps_and_chains_in_one_transaction() -> None:
    found = one(
        ":KUBE-SERVICES - [3:4]",
        '-A PREROUTING -m comment --comment "a \\"b\\" -j X" -j KUBE-SERVICES',
        "-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-ABC",
        ":KUBE-SVC-ABC - [0:0]",
    )
    assert found.script().splitlines() == [
        "*nat",
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-SVC-ABC - [0:0]",
        '-D PREROUTING -m comment --comment "a \\"b\\" -j X" -j KUBE-SERVICES',
        "-X KUBE-SERVICES",
        "-X KUBE-SVC-ABC",
        "COMMIT",
    ]


@pytest.mark.parametrize(
    "rule",
    [
        "-A PREROUTING -j FOREIGN",
        '-A PREROUTING -m comment --comment "-j KUBE-SERVICES" -j FOREIGN',
        "-A PREROUTING -m comment --comment -j -j FOREIGN",
        "-A PREROUTING -m set --match-set KUBE-SERVICES src -j RETURN",
        "-A PREROUTING",
        "-A PREROUTING -p tcp",
    ],
)
def test_rules_of_others_are_let_be(rule: str) -> None:
    assert not one(":FOREIGN - [0:0]", rule)


@pytest.mark.parametrize(
    ("table", "chain"),
    [
        ("nat", "KUBE-FIREWALL"),
        ("filter", "KUBE-FIREWALL"),
        ("nat", "KUBE-MARK-DROP"),
        ("nat", "KUBE-KUBELET-CANARY"),
        ("mangle", "KUBE-IPTABLES-HINT"),
        ("filter", "KUBE-SVC-ABC"),
        ("mangle", "KUBE-SERVICES"),
        ("raw", "KUBE-SERVICES"),
        ("nat", "KUBE-SERVICES-2"),
        ("nat", "KUBE-ROUTER-SERVICES"),
    ],
)
def test_chains_of_kubelet_and_of_others_are_let_be(table: str, chain: str) -> None:
    assert not owns_chain(table, chain)
    assert not one(f":{chain} - [0:0]", f"-A INPUT -j {chain}", table=table)


def test_a_chain_that_others_jump_to_is_emptied_and_stays() -> None:
    found = one(
        ":FOREIGN - [0:0]",
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-SVC-A - [0:0]",
        "-A FOREIGN -g KUBE-SERVICES",
        "-A PREROUTING -j KUBE-SVC-A",
        "-A KUBE-SERVICES -j KUBE-SVC-A",
    )
    assert found == TableRemoval("nat", emptied=("KUBE-SERVICES",))
    script = found.script()
    assert ":KUBE-SERVICES - [0:0]" in script
    assert "-X KUBE-SERVICES" not in script


def test_what_was_emptied_is_no_leftover() -> None:
    assert not one(":FOREIGN - [0:0]", ":KUBE-SERVICES - [0:0]", "-A FOREIGN -j KUBE-SERVICES")


def test_the_chain_that_marks_for_others_keeps_its_rule() -> None:
    mark = f"-A {MARK_CHAIN} -j MARK --set-xmark 0x4000/0x4000"
    chains = [":FOREIGN - [0:0]", f":{MARK_CHAIN} - [0:0]", mark]
    assert one(*chains) == TableRemoval("nat", chains=(MARK_CHAIN,))
    assert not one(*chains, f"-A FOREIGN -p tcp -j {MARK_CHAIN}")
    assert not one(*chains, f"-A PREROUTING -s 192.0.2.1/32 -j {MARK_CHAIN}")


def test_a_chain_that_drops_by_policy_is_named() -> None:
    jumps = ["-A INPUT -j KUBE-NODEPORTS", "-A PREROUTING -j KUBE-NODEPORTS"]
    found = one(":KUBE-NODEPORTS - [0:0]", *jumps, table="filter")
    assert found.closed == ("INPUT",)
    assert found.jumps == tuple(
        Rule(chain, "-j KUBE-NODEPORTS", "KUBE-NODEPORTS") for chain in ("INPUT", "PREROUTING")
    )


@given(st.text(st.characters(codec="utf-8", exclude_characters='"\\', exclude_categories=["C"])))
def test_a_comment_never_hides_or_makes_a_target(comment: str) -> None:
    if comment.splitlines() != [comment]:
        return
    rule = f'-A PREROUTING -m comment --comment "{comment}" -j KUBE-SERVICES'
    assert len(one(":KUBE-SERVICES - [0:0]", rule).jumps) == 1


def test_sets_have_names_that_ipset_takes() -> None:
    assert all(len(name) <= 31 for name in SETS)
    assert {"KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "KUBE-6-LOAD-BALANCER-SOURCE-CID"} <= SETS
