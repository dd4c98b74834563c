"""Rules of nft that iptables does not know: iptables-nft-save then omits the whole table."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import Changes, StateDiff
from pyproxy.dataplane.iptables import base_rules
from pyproxy.dataplane.iptables.base_rules import IptablesOptions
from pyproxy.dataplane.iptables.counters import IptablesCounters
from pyproxy.dataplane.iptables.kernel_trace import IptablesTracer
from pyproxy.dataplane.packets import Packet
from pyproxy.model.address import Family, Port, Protocol, parse_address
from pyproxy.model.flavour import Flavour
from pyproxy.takeover import kernel
from pyproxy.xtables import kube_names
from pyproxy.xtables.programs import Programs, detect_flavour
from pyproxy.xtables.saved import HOOKS, UNREAD
from tests.dataplane.iptables.programming import (
    NODE,
    Texts,
    desired,
    held,
    program,
    programming,
    run,
)
from tests.dataplane.iptables.test_dataplane import invalid
from tests.dataplane.nftables.test_dataplane import numbered
from tests.takeover.scenes import IPTABLES

pytestmark = pytest.mark.kernel

Native = tuple[str, str, str]

NATIVE = {
    "masquerade": ("nat", "POSTROUTING", "oifname eth0 masquerade"),
    "snat": ("nat", "POSTROUTING", "oifname eth0 snat to 192.0.2.1"),
    "ct mark": ("nat", "PREROUTING", "ct mark 5 counter accept"),
    "reject": ("filter", "INPUT", "tcp dport 9 reject"),
    "fib": ("filter", "FORWARD", "fib saddr . iif oif missing drop"),
    "ct state": ("mangle", "PREROUTING", "ct state established meta mark set 7"),
}


@pytest.fixture(params=NATIVE)
def native(request: pytest.FixtureRequest) -> Native:
    """A table, a chain, and a rule that iptables does not know."""
    return NATIVE[str(request.param)]


def add(namespace: Namespace, table: str, chain: str, rule: str) -> None:
    """Add a rule by nft, to a chain that iptables-nft creates at its first rule."""
    for operation in ("-A", "-D"):
        run(namespace, "iptables-nft", "-t", table, operation, chain, "-j", "ACCEPT")
    run(namespace, "nft", f"add rule ip {table} {chain} {rule}")


def output(namespace: Namespace, *command: str) -> str:
    return namespace.call(
        lambda: subprocess.run(command, text=True, capture_output=True, check=True).stdout
    )


def kube_lines(namespace: Namespace) -> list[str]:
    """The lines of nft's listing that name one of pyproxy's chains."""
    listing = output(namespace, "nft", "list", "ruleset").splitlines()
    return [line for line in listing if kube_names.PREFIX in line]


def test_an_idle_table_is_as_desired_and_changes_are_written(
    namespace: Namespace, native: Native
) -> None:
    routings = [numbered(each) for each in range(30)]
    with programming(namespace, Flavour.NFT) as dataplane:
        program(namespace, dataplane, routings)
        add(namespace, *native)
        for _ in range(2):
            plan = program(namespace, dataplane, routings)
            assert not plan, str(plan)
        assert namespace.call(lambda: dataplane.compare(routings[3], NODE)) == StateDiff(
            kind="rule"
        )
        # One change from memory, and one from a read-back, which a rejected Service ends.
        routings[4] = numbered(4, 5)
        plan = dataplane.plan(Changes({routings[4].name: routings[4]}))
        assert namespace.call(partial(dataplane.commit, plan)) == ()
        routings.pop(7)
        wanted = [*routings, invalid(numbered(40))]
        plan = namespace.call(lambda: dataplane.plan_full(wanted, NODE))
        (failure,) = namespace.call(partial(dataplane.commit, plan))
        assert failure.name == wanted[-1].name
        assert read(namespace) == desired(routings, NODE, Family.IPV4)


def read(namespace: Namespace) -> Texts:
    """Return the kernel's rules, without those that iptables does not know."""
    known = {
        place: [text for text in texts if not text.startswith(UNREAD)]
        for place, texts in held(namespace, Flavour.NFT).items()
    }
    return {place: texts for place, texts in known.items() if texts or place[1] not in HOOKS}


def test_cleanup_leaves_the_native_rule_alone(namespace: Namespace, native: Native) -> None:
    add(namespace, *native)
    before = output(namespace, "nft", "list", "ruleset")
    with programming(namespace, Flavour.NFT) as dataplane:
        program(namespace, dataplane, [numbered(1), numbered(2)])
        assert kube_lines(namespace)
        namespace.call(dataplane.cleanup)
        assert not kube_lines(namespace)
        program(namespace, dataplane, [numbered(1)])
    # The same by `pyproxy cleanup`, as another mode starts it.
    namespace.run([sys.executable, "-m", "pyproxy", "cleanup"])
    assert not kube_lines(namespace)
    after = output(namespace, "nft", "list", "ruleset")
    assert rules(before) == rules(after)


def rules(listing: str) -> list[str]:
    """The rules of a listing by nft, without its tables and chains."""
    lines = listing.splitlines()
    return [line for line in lines if line.startswith("\t\t") and " hook " not in line]


def test_takeover_removes_kube_proxys_rules(namespace: Namespace, native: Native) -> None:
    for counter in kube_names.COUNTERS:
        namespace.run(["nfacct", "add", counter])
    run(namespace, "iptables-nft-restore", text=IPTABLES)
    add(namespace, *native)
    found = namespace.call(kernel.find)
    assert {each.removal.table for each in found.iptables} == {"nat", "filter", "mangle"}
    assert not namespace.call(lambda: kernel.remove(found))
    left = {chain for line in kube_lines(namespace) for chain in line.split() if "KUBE" in chain}
    assert left <= {"KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT"}


def test_repeated_jumps_are_reduced_to_one(namespace: Namespace, flavour: Flavour) -> None:
    routings = [numbered(1)]
    with programming(namespace, flavour) as dataplane:
        program(namespace, dataplane, routings)
        wanted = held(namespace, flavour)
        for table, hook, rule in base_rules.jumps(IptablesOptions()):
            for _ in range(3):
                lines = (f"*{table}", f"-I {hook} {rule.text}", "COMMIT")
                namespace.call(partial(Programs(Family.IPV4, flavour).restore, lines))
        assert len(held(namespace, flavour)["nat", "OUTPUT"]) == 4
        program(namespace, dataplane, routings)
        found = held(namespace, flavour)
        assert {place: sorted(texts) for place, texts in found.items()} == {
            place: sorted(texts) for place, texts in wanted.items()
        }
        assert not program(namespace, dataplane, routings)


def test_a_native_jump_to_a_chain_of_pyproxys_stays(namespace: Namespace) -> None:
    routings = [numbered(1)]
    jumps = [
        f"ip nat PREROUTING ct mark {number} jump {chain}"
        for number, chain in enumerate((kube_names.MARK_MASQUERADE, kube_names.SERVICES), 1)
    ]
    with programming(namespace, Flavour.NFT) as dataplane:
        program(namespace, dataplane, routings)
        for jump in jumps:
            run(namespace, "nft", f"add rule {jump}")
        assert not program(namespace, dataplane, routings)
        namespace.call(dataplane.cleanup)
        namespace.call(dataplane.cleanup)
        assert held(namespace, Flavour.NFT) == {
            ("nat", "PREROUTING"): [
                f"{UNREAD}-j {kube_names.MARK_MASQUERADE}",
                f"{UNREAD}-j {kube_names.SERVICES}",
            ],
            ("nat", kube_names.MARK_MASQUERADE): ["-j MARK --set-xmark 0x4000/0x4000"],
            ("nat", kube_names.SERVICES): [],
        }
        program(namespace, dataplane, routings)


def test_trace_and_counters_read_the_table(namespace: Namespace) -> None:
    packet = Packet(
        parse_address("10.128.0.9"), parse_address("10.96.0.7"), Protocol.TCP, Port(80), "eth0"
    )

    def selected() -> list[tuple[str, int]]:
        totals = IptablesCounters(Flavour.NFT).services()
        return sorted((of.service, count) for of, count in totals.since(None).items())

    with programming(namespace, Flavour.NFT) as dataplane:
        program(namespace, dataplane, [numbered(each) for each in range(9)])
        chain = next(
            chain
            for (table, chain), texts in held(namespace, Flavour.NFT).items()
            if table == "nat" and any("shop/s7" in text for text in texts)
        )
        texts = held(namespace, Flavour.NFT)["nat", chain]
        counted = [f"[{place}:60] -A {chain} {text}" for place, text in enumerate(texts, 1)]
        restored = "\n".join(("*nat", f":{chain} - [0:0]", *counted, "COMMIT", ""))
        run(namespace, "iptables-nft-restore", "--noflush", "--counters", text=restored)
        before = namespace.call(selected)
        assert any(count for _, count in before)
        run(namespace, "nft", "add rule ip nat PREROUTING ct mark 5 jump KUBE-MARK-MASQ")
        run(namespace, "nft", "add rule ip nat POSTROUTING masquerade")
        assert namespace.call(selected) == before
        traced = namespace.call(lambda: IptablesTracer(lambda: (), Flavour.NFT).trace(packet))
        assert len(traced.verdicts()) == 3


def test_kubelets_chains_and_rules_are_seen_in_such_a_table(namespace: Namespace) -> None:
    run(namespace, "iptables-legacy", "--wait", "-A", "INPUT", "-j", "ACCEPT")
    run(namespace, "iptables-nft", "-t", "mangle", "-A", "PREROUTING", "-j", "ACCEPT")
    run(namespace, "iptables-nft", "-t", "mangle", "-A", "PREROUTING", "-j", "ACCEPT")
    run(namespace, "nft", "add rule ip mangle PREROUTING ct mark 5 accept")
    assert namespace.call(detect_flavour) is Flavour.NFT
    run(namespace, "nft", "flush chain ip mangle PREROUTING")
    assert namespace.call(detect_flavour) is Flavour.LEGACY
    run(namespace, "iptables-nft", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
    run(namespace, "nft", "add rule ip mangle PREROUTING ct mark 5 accept")
    assert namespace.call(detect_flavour) is Flavour.NFT
