"""The change of a table, from the last commit or a read-back, and its iptables-restore text."""

from __future__ import annotations

import pytest

from pyproxy.dataplane.iptables.plan import Growth, diff_chains, diff_saved
from pyproxy.dataplane.iptables.rules import DROP, RETURN, Jump, Rule
from pyproxy.xtables.saved import UNREAD, SavedTable

DROPS, RETURNS = (Rule(target=DROP),), (Rule(target=RETURN),)
JUMP = Rule(target=Jump("KUBE-SERVICES"))


def test_only_chains_that_differ_are_written() -> None:
    before = {"KUBE-SVC-A": DROPS, "KUBE-SVC-B": DROPS, "KUBE-SVC-C": DROPS}
    after = {"KUBE-SVC-A": DROPS, "KUBE-SVC-B": (*DROPS, *RETURNS), "KUBE-SVC-D": RETURNS}
    change = diff_chains(before, after)
    assert change.chains == {"KUBE-SVC-B": (*DROPS, *RETURNS), "KUBE-SVC-D": RETURNS}
    assert change.deleted == ("KUBE-SVC-C",)
    assert change.growth == Growth(rules=1, chains=0)
    assert change.growth.entries == 1
    assert not diff_chains(after, after)


def test_chains_are_declared_in_descending_order_and_jumps_keep_theirs() -> None:
    jumps = (("PREROUTING", JUMP), ("PREROUTING", Rule(target=Jump("KUBE-FORWARD"))))
    change = diff_saved(SavedTable({}), {"KUBE-SVC-A": DROPS, "KUBE-SVC-B": ()}, jumps)
    assert list(change.lines()) == [
        ":KUBE-SVC-B - [0:0]",
        ":KUBE-SVC-A - [0:0]",
        "-A KUBE-SVC-A -j DROP",
        "-I PREROUTING -j KUBE-FORWARD",
        "-I PREROUTING -j KUBE-SERVICES",
    ]


def test_unwanted_chains_and_stray_jumps_are_removed_from_a_read_back() -> None:
    saved = SavedTable(
        {
            "PREROUTING": ["-j FOREIGN", "-j KUBE-SERVICES", "-s 10.0.0.0/8 -j KUBE-SERVICES"],
            "FOREIGN": ["-j KUBE-SVC-B", "-j KUBE-MARK-MASQ"],
            "KUBE-SERVICES": ["-j DROP"],
            "KUBE-SVC-A": ["-j DROP"],
            "KUBE-SVC-B": ["-j DROP"],
            "KUBE-MARK-MASQ": ["-j DROP"],
            "KUBE-FIREWALL": ["-j DROP"],
        },
        {"PREROUTING": "ACCEPT"},
    )
    change = diff_saved(saved, {"KUBE-SERVICES": DROPS}, (("PREROUTING", JUMP),))
    assert change.deleted == ("KUBE-SVC-A",)
    # FOREIGN jumps to two chains: one is emptied, and others masquerade through the other.
    assert change.chains == {"KUBE-SVC-B": ()}
    assert change.stray_jumps == (("PREROUTING", "-s 10.0.0.0/8 -j KUBE-SERVICES"),)
    assert change.jumps == ()
    assert change.growth == Growth(rules=-3, chains=-1)


@pytest.mark.parametrize(
    ("texts", "strays"),
    [
        (["-s 192.0.2.7/32 -j KUBE-MARK-MASQ", "-j KUBE-SERVICES"], []),
        (["-j KUBE-SERVICES", "-j FOREIGN", "-j KUBE-SERVICES"], ["-j KUBE-SERVICES"]),
        (["-j KUBE-SERVICES"] * 4, ["-j KUBE-SERVICES"] * 3),
        (["-j KUBE-NODEPORTS"] * 2 + ["-j KUBE-SERVICES"], ["-j KUBE-NODEPORTS"] * 2),
        ([f"{UNREAD}-j KUBE-SERVICES", "-j KUBE-SERVICES", UNREAD, f"{UNREAD}-j DROP"], []),
        (["-j KUBE-SERVICES", '-m comment --comment "a -j KUBE-SERVICES" -j DROP'], []),
    ],
)
def test_jumps_of_other_programs_stay_and_one_of_each_of_ours(
    texts: list[str], strays: list[str]
) -> None:
    saved = SavedTable(
        {"PREROUTING": texts, "KUBE-SERVICES": ["-j DROP"]}, {"PREROUTING": "ACCEPT"}
    )
    change = diff_saved(saved, {"KUBE-SERVICES": DROPS}, (("PREROUTING", JUMP),))
    assert [text for _, text in change.stray_jumps] == strays
    assert change.jumps == ()
    assert change.growth == Growth(rules=-len(strays))


@pytest.mark.parametrize("text", ["-s 192.0.2.7/32 -j KUBE-SVC-B", f"{UNREAD}-j KUBE-SVC-B"])
def test_an_unwanted_chain_that_a_built_in_chain_jumps_to_is_emptied(text: str) -> None:
    saved = SavedTable(
        {"PREROUTING": ["-j KUBE-SERVICES", text], "KUBE-SVC-B": ["-j DROP"]},
        {"PREROUTING": "ACCEPT"},
    )
    change = diff_saved(saved, {}, (("PREROUTING", JUMP),))
    assert not change.deleted
    assert change.chains == {"KUBE-SVC-B": ()}
    assert not change.stray_jumps
