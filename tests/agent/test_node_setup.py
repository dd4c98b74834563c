"""The kernel's settings: what is wanted, and what becomes of it in a folder and in a kernel."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec
import pytest
from pyproxy_lab.network import Network

from pyproxy.agent import node_setup
from pyproxy.agent.kernel_settings import RESTORABLE, table_name
from pyproxy.agent.node_setup import NodeKernel, load_modules, of_mode, open_node_table, wanted
from pyproxy.config import Conntrack, IptablesSettings, IpvsSettings, ProxyMode, Settings
from pyproxy.config.settings import FlowOffload, NftablesSettings
from pyproxy.dataplane import modes
from pyproxy.model.flavour import Flavour

NETFILTER = "net.netfilter.nf_conntrack_"
HASH_SIZE = "/sys/module/nf_conntrack/parameters/hashsize"
DEFAULT = Conntrack()
LEAVE = Conntrack(max_per_core=0, tcp_established_timeout=0, tcp_close_wait_timeout=0)


def settings(conntrack: Conntrack = DEFAULT, oom_score_adj: int = -999) -> Settings:
    return Settings("n", conntrack=conntrack, oom_score_adj=oom_score_adj)


@pytest.mark.parametrize(
    ("conntrack", "cores", "expected"),
    [
        (
            Conntrack(),
            2,
            {
                "max": 131072,
                HASH_SIZE: 32768,
                "tcp_timeout_established": 86400,
                "tcp_timeout_close_wait": 3600,
            },
        ),
        (
            Conntrack(tcp_established_timeout=0, tcp_close_wait_timeout=0),
            8,
            {"max": 262144, HASH_SIZE: 65536},
        ),
        (LEAVE, 8, {}),
        (
            Conntrack(
                max_per_core=0,
                tcp_established_timeout=0.25,
                tcp_close_wait_timeout=61.9,
                tcp_be_liberal=True,
                udp_timeout=30,
                udp_stream_timeout=180,
            ),
            1,
            {
                "tcp_timeout_established": 1,
                "tcp_timeout_close_wait": 61,
                "udp_timeout": 30,
                "udp_timeout_stream": 180,
                "tcp_be_liberal": 1,
            },
        ),
    ],
)
def test_what_is_wanted(conntrack: Conntrack, cores: int, expected: dict[str, int]) -> None:
    found = {
        each.name.removeprefix(NETFILTER): each.value for each in wanted(settings(conntrack), cores)
    }
    assert found == expected | {"/proc/self/oom_score_adj": -999}


def test_flow_offload_counts_packets_and_keeps_half_closed_connections_for_longer() -> None:
    offloading = msgspec.structs.replace(
        settings(LEAVE), nftables=NftablesSettings(flow_offload=FlowOffload.SERVICES)
    )
    found = [each for each in wanted(offloading, 1) if each not in wanted(settings(LEAVE), 1)]
    timeout, accounting = found
    assert timeout.name == "net.netfilter.nf_flowtable_tcp_timeout"
    assert (timeout.value, timeout.is_met_by(120), timeout.is_met_by(3600)) == (120, True, True)
    assert not timeout.is_met_by(30)
    assert (accounting.name, accounting.value) == ("net.netfilter.nf_conntrack_acct", 1)
    # `cleanup` restores them, and a kernel without flowtables is named by the dataplane alone.
    assert all(table_name(each) in RESTORABLE and each.optional for each in found)


IPVS = {
    "net.ipv4.vs.conntrack": 1,
    "net.ipv4.vs.conn_reuse_mode": 1,
    "net.ipv4.vs.expire_nodest_conn": 1,
    "net.ipv4.vs.expire_quiescent_template": 1,
    "net.ipv4.ip_forward": 1,
}
STRICT = {"net.ipv4.conf.all.arp_ignore": 1, "net.ipv4.conf.all.arp_announce": 2}


@pytest.mark.parametrize(
    ("mode", "strict_arp", "expected"),
    [
        (ProxyMode.NFTABLES, False, {}),
        (ProxyMode.IPTABLES, False, {}),
        (ProxyMode.IPVS, False, IPVS),
        (ProxyMode.IPVS, True, IPVS | STRICT),
    ],
)
def test_what_a_mode_cannot_do_without(
    mode: ProxyMode, strict_arp: bool, expected: dict[str, int]
) -> None:
    given = Settings("n", mode, conntrack=LEAVE, ipvs=IpvsSettings(strict_arp=strict_arp))
    assert {each.name: each.value for each in of_mode(given)} == expected
    assert set(of_mode(given)) <= set(wanted(given, 1))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        f"proc/sys/net/netfilter/nf_conntrack_{name}": value
        for name, value in {
            "max": 65536,
            "tcp_timeout_established": 432000,
            "tcp_timeout_close_wait": 60,
            "udp_timeout": 30,
            "udp_timeout_stream": 120,
            "tcp_be_liberal": 0,
        }.items()
    }
    files |= {"sys/module/nf_conntrack/parameters/hashsize": 16384, "proc/self/oom_score_adj": 0}
    for path, value in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{value}\n")
    online = tmp_path / "sys/devices/system/cpu/online"
    online.parent.mkdir(parents=True)
    online.write_text("0-3,6\n")
    return tmp_path


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def value(root: Path, name: str) -> int:
    return int((root / "proc/sys/net/netfilter" / f"nf_conntrack_{name}").read_text())


def test_it_is_made_once_and_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pyproxy"):
        NodeKernel(None, root).apply(settings())
    assert value(root, "max") == 5 * 32768
    assert int((root / HASH_SIZE[1:]).read_text()) == 5 * 32768 // 4
    assert value(root, "tcp_timeout_established") == 86400
    assert value(root, "udp_timeout") == 30
    assert (root / "proc/self/oom_score_adj").read_text() == "-999"
    assert f"set {NETFILTER}max to 163840" in caplog.messages
    assert len(caplog.messages) == 5
    caplog.clear()
    with caplog.at_level(logging.INFO, "pyproxy"):
        NodeKernel(None, root).apply(settings())
    assert caplog.messages == []


def test_cores_are_counted_where_nobody_lists_them(root: Path) -> None:
    assert NodeKernel(None, root).cores() == 5
    (root / "sys/devices/system/cpu/online").unlink()
    assert NodeKernel(None, root).cores() >= 1


def test_a_larger_table_stays_and_a_longer_timeout_does_not(root: Path) -> None:
    NodeKernel(None, root).apply(settings(Conntrack(max_per_core=1, min=1)))
    assert value(root, "max") == 65536
    assert value(root, "tcp_timeout_established") == 86400


def test_a_missing_module_is_one_warning_with_its_name(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (root / "proc/sys/net/netfilter").iterdir():
        path.unlink()
    (root / HASH_SIZE[1:]).unlink()
    NodeKernel(None, root).apply(settings())
    assert warnings(caplog) == [
        f"cannot set {NETFILTER}max, {HASH_SIZE}, "
        f"{NETFILTER}tcp_timeout_established, {NETFILTER}tcp_timeout_close_wait: "
        "no such file: load the kernel module nf_conntrack before the start"
    ]
    assert (root / "proc/self/oom_score_adj").read_text() == "-999"


def test_what_the_machine_forbids_is_one_warning(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A folder in a file's place is what root cannot write either.
    for path in (root / "proc/self/oom_score_adj", root / HASH_SIZE[1:]):
        path.unlink()
        path.mkdir()
    NodeKernel(None, root).apply(settings())
    assert warnings(caplog) == [
        f"cannot set {HASH_SIZE} to 40960: EISDIR; "
        "/proc/self/oom_score_adj to -999: EISDIR; set them on the node if needed"
    ]
    assert value(root, "max") == 163840


IN_IPVS = Settings("n", ProxyMode.IPVS, conntrack=LEAVE, oom_score_adj=0)


@pytest.fixture
def ipvs(root: Path) -> Path:
    vs = root / "proc/sys/net/ipv4/vs"
    vs.mkdir(parents=True)
    for name in IPVS:
        (root / "proc/sys" / name.replace(".", "/")).write_text("0\n")
    return vs


def test_what_a_mode_needs_is_put_right_again(
    root: Path, ipvs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine = NodeKernel(None, root)
    machine.apply(IN_IPVS)
    (ipvs / "conntrack").write_text("0\n")
    with caplog.at_level(logging.INFO, "pyproxy"):
        machine.keep(IN_IPVS)
        machine.keep(IN_IPVS)
    assert (ipvs / "conntrack").read_text() == "1"
    assert caplog.messages == ["set net.ipv4.vs.conntrack to 1"]


def test_what_cannot_be_is_told_once_until_it_is_right(
    root: Path, ipvs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine = NodeKernel(None, root)
    (ipvs / "conntrack").unlink()
    machine.apply(IN_IPVS)
    assert warnings(caplog) == [
        "cannot set net.ipv4.vs.conntrack: no such file: "
        "load the kernel module ip_vs before the start"
    ]
    caplog.clear()
    machine.keep(IN_IPVS)
    assert warnings(caplog) == []
    (ipvs / "conntrack").write_text("1\n")
    machine.keep(IN_IPVS)
    (ipvs / "conntrack").unlink()
    machine.keep(IN_IPVS)
    machine.keep(IN_IPVS)
    assert warnings(caplog) == [
        "cannot set net.ipv4.vs.conntrack to 1, which ipvs mode needs: ENOENT"
    ]


def test_an_optional_setting_is_written_once_its_module_is_loaded(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    offloading = Settings(
        "n",
        conntrack=LEAVE,
        oom_score_adj=0,
        nftables=NftablesSettings(flow_offload=FlowOffload.SERVICES),
    )
    machine = NodeKernel(None, root)
    machine.apply(offloading)
    machine.keep(offloading)
    accounting = root / "proc/sys/net/netfilter/nf_conntrack_acct"
    accounting.write_text("0\n")
    machine.keep(offloading)
    assert accounting.read_text() == "1"
    # It is not one that a mode needs: who writes it later may.
    accounting.write_text("0\n")
    machine.keep(offloading)
    assert accounting.read_text() == "0\n"
    assert warnings(caplog) == []


@pytest.mark.kernel
def test_a_kernel_takes_them(network: Network) -> None:
    conntrack = Conntrack(
        max_per_core=0,
        tcp_established_timeout=7200,
        tcp_close_wait_timeout=61,
        tcp_be_liberal=True,
        udp_timeout=31,
        udp_stream_timeout=121,
    )
    own = int(Path("/proc/self/oom_score_adj").read_text())

    def apply() -> dict[str, int]:
        NodeKernel(open_node_table()).apply(settings(conntrack, own))
        return {
            path.name.removeprefix("nf_conntrack_"): int(path.read_text())
            for path in Path("/proc/sys/net/netfilter").glob("nf_conntrack_*")
        }

    found = network.namespace("nb").call(apply)
    assert found["tcp_timeout_established"] == 7200
    assert found["tcp_timeout_close_wait"] == 61
    assert found["tcp_be_liberal"] == 1
    assert found["udp_timeout"] == 31
    assert found["udp_timeout_stream"] == 121


@pytest.mark.kernel
def test_a_namespace_forbids_the_size_of_the_table(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    limit = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    more = Conntrack(max_per_core=2 * limit, min=0)
    network.namespace("nb").call(lambda: NodeKernel(open_node_table()).apply(settings(more, own)))
    (line,) = warnings(caplog)
    assert f"{NETFILTER}max to {2 * limit * (os.cpu_count() or 1)}" in line


LEGACY = Settings("n", ProxyMode.IPTABLES, iptables=IptablesSettings(flavour=Flavour.LEGACY))
IN_IPVS_MH = Settings("n", ProxyMode.IPVS, ipvs=IpvsSettings(scheduler="mh"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings("n"), ()),
        (Settings("n", ProxyMode.IPTABLES), ()),
        (LEGACY, ("ip_tables", "ip6_tables")),
        (IN_IPVS_MH, ("nf_conntrack", "dummy", "ip_vs", "ip_vs_mh")),
    ],
)
def test_what_a_mode_needs(settings: Settings, expected: tuple[str, ...]) -> None:
    assert modes.of(settings.mode).modules(settings) == expected


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A modprobe that writes down what it is asked for, and can do nothing of it."""
    words, program = tmp_path / "words", tmp_path / "modprobe"
    program.write_text(f'#!/bin/sh\necho "$@" >>{words}\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return words


@pytest.mark.parametrize(
    ("loaded", "settings", "expected"),
    [
        (True, Settings("n"), ""),
        (False, Settings("n"), "nf_conntrack"),
        (True, LEGACY, "ip_tables ip6_tables"),
        (False, LEGACY, "ip_tables ip6_tables nf_conntrack"),
        (False, IN_IPVS_MH, "nf_conntrack dummy ip_vs ip_vs_mh"),
    ],
)
def test_conntrack_is_loaded_once_for_its_limits(
    loaded: bool,
    settings: Settings,
    expected: str,
    asked: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_setup, "CONNTRACK_LIMIT", asked.parent if loaded else asked)
    load_modules(settings)
    words = asked.read_text() if asked.exists() else ""
    assert words == (f"--all --quiet {expected}\n" if expected else "")


def test_a_machine_may_have_no_modprobe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(node_setup, "CONNTRACK_LIMIT", tmp_path)
    with caplog.at_level("DEBUG"):
        load_modules(LEGACY)
    assert caplog.messages == [
        "cannot load kernel modules ip_tables, ip6_tables: modprobe is not on PATH"
    ]
