"""The removal of kube-proxy's chains and jumps from iptables-save's output, as a value."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.xtables.kube_names import MARK_MASQUERADE, is_owned
from pyproxy.xtables.removal import TableRemoval, plan_removal
from pyproxy.xtables.saved import parse
from tests.takeover.scenes import IPTABLES

BUILT_IN = "".join(
    f":{chain} ACCEPT [0:0]\n"
    for chain in ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
)
# iptables-save prints the built-in chains, which the recording leaves out.
SAVED = parse(re.sub(r"(?m)^\*(\w+)\n", rf"*\1\n{BUILT_IN}", IPTABLES))


def removal_from(*lines: str, table: str = "nat") -> TableRemoval:
    text = [f"*{table}", ":PREROUTING ACCEPT [0:0]", ":INPUT DROP [7:9]", *lines, "COMMIT"]
    return plan_removal(table, parse("\n".join(text))[table])


def test_all_that_kube_proxy_wrote_is_removed() -> None:
    found = {name: plan_removal(name, table) for name, table in SAVED.items()}
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
    assert set(found["nat"].chains) == nat.chains.keys() - nat.policies.keys()
    assert {name: len(each.jumps) for name, each in found.items()} == {
        "mangle": 0,
        "filter": 9,
        "nat": 3,
    }
    assert not any(each.emptied for each in found.values())


def test_jumps_and_chains_are_removed_in_one_transaction() -> None:
    found = removal_from(
        ":KUBE-SERVICES - [3:4]",
        '-A PREROUTING -m comment --comment "a \\"b\\" -j X" -j KUBE-SERVICES',
        "-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-ABC",
        ":KUBE-SVC-ABC - [0:0]",
    )
    assert found.script() == [
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
def test_rules_of_other_programs_stay(rule: str) -> None:
    assert not removal_from(":FOREIGN - [0:0]", rule)


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
def test_chains_of_kubelet_and_of_other_programs_stay(table: str, chain: str) -> None:
    assert not is_owned(table, chain)
    assert not removal_from(f":{chain} - [0:0]", f"-A INPUT -j {chain}", table=table)


def test_a_chain_that_others_jump_to_is_emptied_and_stays() -> None:
    found = removal_from(
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


def test_a_chain_that_was_emptied_is_not_found_again() -> None:
    assert not removal_from(
        ":FOREIGN - [0:0]", ":KUBE-SERVICES - [0:0]", "-A FOREIGN -j KUBE-SERVICES"
    )


def test_the_chain_that_other_programs_masquerade_through_keeps_its_rule() -> None:
    mark = f"-A {MARK_MASQUERADE} -j MARK --set-xmark 0x4000/0x4000"
    chains = [":FOREIGN - [0:0]", f":{MARK_MASQUERADE} - [0:0]", mark]
    assert removal_from(*chains) == TableRemoval("nat", chains=(MARK_MASQUERADE,))
    assert not removal_from(*chains, f"-A FOREIGN -p tcp -j {MARK_MASQUERADE}")
    assert not removal_from(*chains, f"-A PREROUTING -s 192.0.2.1/32 -j {MARK_MASQUERADE}")


def test_a_chain_with_policy_drop_is_named() -> None:
    jumps = ["-A INPUT -j KUBE-NODEPORTS", "-A PREROUTING -j KUBE-NODEPORTS"]
    found = removal_from(":KUBE-NODEPORTS - [0:0]", *jumps, table="filter")
    assert found.closed == ("INPUT",)
    assert found.jumps == tuple((chain, "-j KUBE-NODEPORTS") for chain in ("PREROUTING", "INPUT"))


@given(st.text(st.characters(codec="utf-8", exclude_characters='"\\', exclude_categories=["C"])))
def test_a_comment_neither_hides_nor_adds_a_target(comment: str) -> None:
    rule = f'-A PREROUTING -m comment --comment "{comment}" -j KUBE-SERVICES'
    assert len(removal_from(":KUBE-SERVICES - [0:0]", rule).jumps) == 1
