"""Finding and removing leftovers on a real kernel, kind by kind."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.errors import KernelError
from pyproxy.model.address import Family
from pyproxy.takeover import kernel
from pyproxy.takeover.leftovers import Failure, Leftovers

from .scenes import (
    COUNTERS,
    FLAVOURS,
    MODES,
    PROGRAMS,
    leave,
    make_foreign,
    state,
    without_firewall,
)

pytestmark = pytest.mark.kernel

CLEANUP = (sys.executable, "-m", "pyproxy", "cleanup")


def find(here: Namespace) -> Leftovers:
    return here.call(kernel.find)


def remove(here: Namespace) -> tuple[Failure, ...]:
    return here.call(lambda: kernel.remove(kernel.find()))


def test_in_an_empty_namespace_nothing_is_found_or_created(here: Namespace) -> None:
    assert find(here) == Leftovers()
    assert not here.run(["nft", "list", "tables"]).stdout
    assert not remove(here)


@pytest.mark.parametrize("mode", MODES)
def test_all_leftovers_of_a_mode_are_removed_and_nothing_else(here: Namespace, mode: str) -> None:
    make_foreign(here)
    before = without_firewall(state(here))
    assert not find(here)
    for _ in range(2):
        leave(here, mode)
        found = find(here)
        assert set(found.tables) == (set(Family) if mode == "nftables" else set())
        assert {each.program.flavour.value for each in found.iptables} <= {
            mode.removeprefix("iptables-")
        }
        assert set(found.counters) == (set(COUNTERS) if mode != "nftables" else set())
        assert str(found)
        assert not remove(here)
        assert without_firewall(state(here)) == before
        assert not find(here)


def test_leftovers_of_all_modes_at_once_are_removed(here: Namespace) -> None:
    for mode in MODES:
        leave(here, mode)
    assert len(find(here).iptables) == len(FLAVOURS) * len(PROGRAMS) * 3
    assert not remove(here)
    assert not find(here)


def make_sets(here: Namespace) -> None:
    here.run(["ipset", "create", "KUBE-CLUSTER-IP", "hash:ip,port"])
    here.run(["ipset", "create", "KUBE-6-CLUSTER-IP", "hash:ip,port", "family", "inet6"])
    here.run(["ipset", "create", "KUBE-NODE-PORT-TCP", "bitmap:port", "range", "0-65535"])
    here.run(["ipset", "add", "KUBE-NODE-PORT-TCP", "30777"])


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_sets_and_the_device_of_ipvs_mode_are_removed(here: Namespace, flavour: str) -> None:
    """This kernel may lack dummy devices, so a bridge has the name instead."""
    make_foreign(here)
    before = state(here)
    make_sets(here)
    here.ip(["link add kube-ipvs0 type bridge", "addr add 10.96.0.1/32 dev kube-ipvs0"])
    rules = """
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODE-PORT - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
-A KUBE-NODE-PORT -p tcp -m set --match-set KUBE-NODE-PORT-TCP dst -j ACCEPT
COMMIT
*filter
:KUBE-IPVS-FILTER - [0:0]
-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
COMMIT
"""
    here.run([f"iptables-{flavour}-restore", "--wait", "--noflush"], text=rules)
    found = find(here)
    assert found.links == ("kube-ipvs0",)
    assert (
        str(found)
        == f"iptables-{flavour}: 2 jumps and 3 chains; network device kube-ipvs0; 3 ipsets"
    )
    assert len(list(found.lines())) == 2 + 3 + 1 + 3
    assert found.sets == ("KUBE-6-CLUSTER-IP", "KUBE-CLUSTER-IP", "KUBE-NODE-PORT-TCP")
    assert not remove(here)
    assert state(here) == before


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_objects_in_use_by_other_programs_stay_with_an_error(here: Namespace, flavour: str) -> None:
    make_sets(here)
    leave(here, f"iptables-{flavour}")
    iptables = f"iptables-{flavour}"
    mark = ["-t", "nat", "-A", "PREROUTING", "-s", "192.0.2.1", "-j", "KUBE-MARK-MASQ"]
    here.run([iptables, "--wait", *mark])
    here.run([iptables, "--wait", "-N", "FOREIGN"])
    here.run([iptables, "--wait", "-A", "FOREIGN", "-j", "KUBE-SERVICES"])
    uses = ["-m", "set", "--match-set", "KUBE-CLUSTER-IP", "dst,dst", "-j", "DROP"]
    here.run([iptables, "--wait", "-A", "FOREIGN", *uses])
    failures = remove(here)
    assert [failure.what for failure in failures] == ["ipset KUBE-CLUSTER-IP"]
    saved = here.run([f"{iptables}-save"]).stdout
    assert "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000" in saved
    assert "-A FOREIGN -j KUBE-SERVICES" in saved
    assert "-A KUBE-SERVICES" not in saved
    assert find(here) == Leftovers(sets=("KUBE-CLUSTER-IP",))


def test_an_error_in_reading_one_kind_hides_no_other(here: Namespace) -> None:
    for mode in MODES:
        leave(here, mode)
    without = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"]
    done = here.run([*without, *CLEANUP, "--takeover"], check=False)
    assert done.returncode == 2
    for program in PROGRAMS:
        assert f"rules of {program}-legacy" in done.stderr
    assert "CAP_NET_RAW" in done.stderr.splitlines()[-1]
    found = find(here)
    assert not found.tables
    assert {str(each.program) for each in found.iptables} == {f"{p}-legacy" for p in PROGRAMS}
    here.run([*CLEANUP, "--takeover"])
    assert not find(here)


def test_without_iptables_the_rest_is_removed_with_a_warning(
    here: Namespace, tmp_path: Path
) -> None:
    leave(here, "nftables")
    leave(here, "iptables-legacy")
    here.run(["ip6tables-legacy", "--wait", "-t", "nat", "-L"])
    nft = shutil.which("nft")
    assert nft is not None
    (tmp_path / "nft").symlink_to(nft)
    path = f"PATH={tmp_path}"
    done = here.run(["/usr/bin/env", path, *CLEANUP, "--takeover"], check=False)
    # The counters are in use, so there must be rules that were not found.
    assert done.returncode == 1
    assert set(find(here).counters) == set(COUNTERS)
    assert not find(here).tables
    for program in ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"):
        assert f"{program}-save is not on PATH" in done.stderr


def test_cleanup_removes_kube_proxys_table_only_with_the_flag_takeover(here: Namespace) -> None:
    leave(here, "nftables")
    here.run(["nft", "add table inet pyproxy"])
    for _ in range(2):
        here.run(CLEANUP)
        tables = here.run(["nft", "list", "tables"]).stdout.splitlines()
        assert tables == ["table ip kube-proxy", "table ip6 kube-proxy"]
    here.run(["nft", "add table inet pyproxy"])
    for _ in range(2):
        here.run([*CLEANUP, "--takeover"])
        assert not here.run(["nft", "list", "tables"]).stdout


def test_what_could_not_be_removed_is_not_among_the_removed() -> None:
    found = Leftovers(tables=(Family.IPV4, Family.IPV6), sets=("KUBE-A", "KUBE-B"), links=("x",))
    failures = [
        Failure("ipset KUBE-A", KernelError("EBUSY", 16)),
        Failure("network device x", KernelError("EBUSY", 16)),
    ]
    assert list(found.without(failures).lines()) == [
        "nftables table ip kube-proxy",
        "nftables table ip6 kube-proxy",
        "ipset KUBE-B",
    ]
