"""Kernel settings: remembered in the kernel, restored, and left alone if they are another's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.agent.kernel_settings import RESTORABLE, KernelSettings, table_name
from pyproxy.agent.node_setup import NodeKernel, open_node_table, wanted
from pyproxy.config import Conntrack, IpvsSettings, ProxyMode, Settings
from pyproxy.dataplane.mode import KernelSetting
from pyproxy.dataplane.nft.node_table import NodeTable, Remembered
from tests.namespaces import empty_namespace

pytestmark = pytest.mark.kernel

NAME = "net.ipv4.vs.conntrack"
PATH = PurePath("proc/sys/net/ipv4/vs/conntrack")


@pytest.fixture(scope="module")
def here() -> Iterator[Namespace]:
    with empty_namespace("settings") as made:
        made.ip(["link set lo up"])
        yield made


@pytest.fixture
def table(here: Namespace) -> Iterator[NodeTable]:
    here.run(["nft", "flush", "ruleset"])
    made = here.call(NodeTable)
    yield made
    made.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / PATH).parent.mkdir(parents=True)
    (tmp_path / PATH).write_text("0\n")
    return tmp_path


@pytest.fixture
def made(root: Path, table: NodeTable) -> KernelSettings:
    return KernelSettings(root, table)


def wanting(value: int) -> KernelSetting:
    return KernelSetting(PATH, value)


def held(root: Path) -> int:
    return int((root / PATH).read_text())


@pytest.mark.parametrize("before", [0, 2, -1])
def test_the_value_before_the_first_write_is_restored(
    made: KernelSettings, root: Path, table: NodeTable, before: int
) -> None:
    (root / PATH).write_text(f"{before}\n")
    for value in (1, 5, 7):
        made.make(wanting(value))
    assert table.memory() == {NAME: Remembered(before, frozenset({7}))}
    # A later process, after an upgrade.
    assert not KernelSettings(root, table).restore(NAME)
    assert held(root) == before
    assert not table.exists()


def test_a_value_of_another_program_stays(
    made: KernelSettings, root: Path, table: NodeTable, caplog: pytest.LogCaptureFixture
) -> None:
    made.make(wanting(1))
    (root / PATH).write_text("3\n")
    with caplog.at_level(logging.INFO):
        assert not made.restore(NAME)
    assert held(root) == 3
    assert caplog.messages == [f"{NAME} is 3, which pyproxy did not set: left as it is"]
    assert not table.exists()


def test_a_value_that_another_program_wrote_meanwhile_is_the_one_to_restore(
    made: KernelSettings, root: Path
) -> None:
    made.make(wanting(1))
    (root / PATH).write_text("3\n")
    made.make(wanting(1))
    assert not made.restore(NAME)
    assert held(root) == 3


def test_a_setting_that_was_right_is_not_ours(made: KernelSettings, table: NodeTable) -> None:
    made.make(wanting(0))
    assert not table.exists()


def test_a_setting_that_goes_back_by_itself_is_forgotten(
    made: KernelSettings, table: NodeTable
) -> None:
    made.make(wanting(1))
    made.make(wanting(0))
    assert not table.exists()


class CrashError(Exception):
    """The end of the process."""


def crashing(table: NodeTable, at: int) -> NodeTable:
    """Return a table whose process ends at its call of `remember` with that number."""

    class Crashing(NodeTable):
        calls = 0

        def remember(self, name: str, what: Remembered) -> None:
            self.calls += 1
            if self.calls > at:
                raise CrashError
            table.remember(name, what)

        def memory(self) -> dict[str, Remembered]:
            return table.memory()

    return Crashing()


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("earlier", [(), (1,)])
def test_no_crash_loses_the_first_value(
    here: Namespace, root: Path, table: NodeTable, at: int, earlier: tuple[int, ...]
) -> None:
    for value in earlier:
        KernelSettings(root, table).make(wanting(value))
    with pytest.raises(CrashError):
        KernelSettings(root, here.call(lambda: crashing(table, at))).make(wanting(5))
    for turn in range(2):
        if turn:
            KernelSettings(root, table).make(wanting(5))
        assert not KernelSettings(root, table).restore(NAME)
        assert held(root) == 0
        assert not table.exists()


def test_a_read_only_setting_is_not_remembered(
    made: KernelSettings, root: Path, table: NodeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(OSError, match="Read-only"):
        made.make(wanting(1))
    assert not table.exists()


def test_the_nodes_own_files_are_written_where_they_are_mounted(
    made: KernelSettings, root: Path, table: NodeTable
) -> None:
    node = root / "host" / PATH
    node.parent.mkdir(parents=True)
    made.make(wanting(1))
    assert held(root) == 1, "an empty folder is no mount"
    # On a node this is the same file twice, of which one is read-only.
    node.write_text("1\n")
    assert not made.restore(NAME)
    assert (node.read_text(), held(root)) == ("0", 1)
    assert not table.exists()


@pytest.mark.parametrize(
    "name", ["net/../../etc/passwd", "kernel.panic", "net.ipv4..x", "etc/passwd", "net.A"]
)
def test_a_foreign_name_in_the_table_leads_to_no_file(
    made: KernelSettings, table: NodeTable, tmp_path: Path, name: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    table.remember(name, Remembered(1, frozenset({2})))
    assert not made.restore(name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sysctl_that_pyproxy_never_writes_is_not_restored(
    made: KernelSettings, root: Path, table: NodeTable
) -> None:
    other = root / "proc/sys/net/ipv4/tcp_syncookies"
    other.write_text("1\n")
    table.remember("net.ipv4.tcp_syncookies", Remembered(0, frozenset({1})))
    assert not made.restore("net.ipv4.tcp_syncookies")
    assert other.read_text() == "1\n"


@pytest.mark.parametrize("mode", ProxyMode)
def test_all_settings_that_a_mode_writes_can_be_restored(mode: ProxyMode) -> None:
    conntrack = Conntrack(udp_timeout=30, udp_stream_timeout=30, tcp_be_liberal=True)
    settings = Settings("n", mode, conntrack=conntrack, ipvs=IpvsSettings(strict_arp=True))
    written = {table_name(each): each.path for each in wanted(settings, 1)}
    del written["proc/self/oom_score_adj"]
    assert {name: RESTORABLE.get(name) for name in written} == written


def test_both_nft_commands_list_and_load_the_table(here: Namespace, table: NodeTable) -> None:
    table.add_shield()
    table.remember(NAME, Remembered(0, frozenset({1})))
    table.remember("net.ipv4.ip_forward", Remembered(-1, frozenset({1})))
    table.remember("sys/module/nf_conntrack/parameters/hashsize", Remembered(8, frozenset({16})))
    listed = here.run(["nft", "list", "ruleset"]).stdout
    assert f"chain {NAME}.was-0.set-1" in listed
    assert "chain net.ipv4.ip_forward.was--1.set-1" in listed
    assert 'iifname != "lo" ip daddr 127.0.0.0/8 drop' in listed
    here.run(["nft", "flush", "ruleset"])
    here.run(["nft", "-f", "-"], text=listed)
    assert here.run(["nft", "list", "ruleset"]).stdout == listed
    assert table.has_shield()


@pytest.mark.parametrize(
    "command",
    [
        "flush chain inet pyproxy-node loopback-shield",
        "insert rule inet pyproxy-node loopback-shield accept",
        "flush ruleset",
        "add table inet pyproxy-node { flags dormant; }",
    ],
)
def test_a_changed_shield_is_written_again(here: Namespace, table: NodeTable, command: str) -> None:
    table.add_shield()
    whole = table.generation()
    table.add_shield()
    assert table.generation() == whole
    here.run(["nft", *command.split()])
    assert not table.has_shield()
    table.add_shield()
    assert table.has_shield()


@pytest.mark.parametrize("hook", ["", "{ type filter hook output priority raw; }"])
def test_a_shield_without_its_hook_is_written_again(
    here: Namespace, table: NodeTable, hook: str
) -> None:
    table.add_shield()
    before = here.run(["nft", "list", "ruleset"]).stdout
    chain = "chain inet pyproxy-node loopback-shield"
    source, destination = (
        f'iifname != "lo" ip {end} 127.0.0.0/8 drop' for end in ("saddr", "daddr")
    )
    here.run(
        ["nft", "-f", "-"],
        text=f"delete {chain}\nadd {chain} {hook}\n"
        f"add rule{chain[5:]} {source}\nadd rule{chain[5:]} {destination}\n",
    )
    assert not table.has_shield()
    table.add_shield()
    assert here.run(["nft", "list", "ruleset"]).stdout == before


IPVS = Settings(
    "n",
    ProxyMode.IPVS,
    conntrack=Conntrack(max_per_core=0, tcp_close_wait_timeout=0),
    ipvs=IpvsSettings(strict_arp=True),
    oom_score_adj=0,
)
NFTABLES = Settings("n", conntrack=IPVS.conntrack, oom_score_adj=0)
SYSCTLS = (
    "net/netfilter/nf_conntrack_tcp_timeout_established",
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/arp_ignore",
    "net/ipv4/conf/all/arp_announce",
    "net/ipv4/conf/all/route_localnet",
)


def values(here: Namespace) -> list[int]:
    def read() -> list[int]:
        return [int(Path("/proc/sys", each).read_text()) for each in SYSCTLS]

    return here.call(read)


def test_a_kernel_s_settings_follow_the_mode_and_the_cleanup(
    here: Namespace, table: NodeTable
) -> None:
    before = values(here)

    def run(settings: Settings, then: Callable[[NodeKernel], object]) -> None:
        def visit() -> None:
            kernel = NodeKernel(open_node_table())
            kernel.apply(settings)
            kernel.prepare_loopback(settings.node_ports)
            then(kernel)
            kernel.close()

        here.call(visit)

    run(IPVS, lambda _: None)
    assert values(here) == [86400, 1, 1, 2, before[-1]]

    def settle(kernel: NodeKernel) -> None:
        kernel.keep(NFTABLES)
        assert values(here)[2:4] == [1, 2], "the other mode's rules may still serve"
        kernel.leftovers_removed()
        kernel.keep(NFTABLES)

    # CNI plugins rely on ip_forward without setting it, so that a change of mode leaves it.
    run(NFTABLES, settle)
    assert values(here) == [86400, 1, *before[2:]]
    run(NFTABLES, lambda kernel: kernel.restore())
    assert values(here) == before
    assert not table.exists()
