"""The node's settings and the shield of its loopback addresses, while reads and writes fail."""

from __future__ import annotations

import errno
import logging
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import msgspec
import pytest

from pyproxy.agent import node_setup
from pyproxy.agent.kernel_settings import KernelSettings
from pyproxy.agent.loopback import Loopback
from pyproxy.agent.node_setup import NodeKernel, open_node_table
from pyproxy.config import Conntrack, Settings
from pyproxy.config.settings import FlowOffload, NftablesSettings, NodePorts
from pyproxy.dataplane.nft.node_table import NodeTable, Remembered
from pyproxy.errors import KernelError, RejectedError, TransientKernelError

CONF = "proc/sys/net/ipv4/conf"
ALL = f"{CONF}/all/route_localnet"
IPVS = "proc/sys/net/ipv4/vs/conntrack"
TIMEOUT = "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"
ACCOUNTING = "proc/sys/net/netfilter/nf_conntrack_acct"
SETTINGS = Settings(
    "n",
    conntrack=Conntrack(max_per_core=0, tcp_established_timeout=60, tcp_close_wait_timeout=0),
    oom_score_adj=0,
    nftables=NftablesSettings(flow_offload=FlowOffload.SERVICES),
)
LOCALHOST = NodePorts(localhost=True)
OPEN = ["1", "2", "-1", "2147483647"]


def nothing() -> None:
    """Leave the table alone."""


class MemoryTable(NodeTable):
    """A table in memory; `faults` are what happens at its calls with these numbers.

    A fault happens before the call, or `after` it, as an error of a request that was done.
    """

    def __init__(self) -> None:
        self.transactions = 1
        self.shielded = False
        self.settings: dict[str, Remembered] = {}
        self.calls = 0
        self.faults: dict[int, Callable[[], None]] = {}
        self.after = False

    @contextmanager
    def _call(self) -> Iterator[None]:
        fault = self.faults.get(self.calls, nothing)
        self.calls += 1
        if not self.after:
            fault()
        yield
        if self.after:
            fault()

    def close(self) -> None:
        """Do nothing."""

    def generation(self) -> int:
        with self._call():
            return self.transactions

    def memory(self) -> dict[str, Remembered]:
        with self._call():
            return dict(self.settings)

    def remember(self, name: str, what: Remembered) -> None:
        with self._call():
            self.transactions += self.settings.get(name) != what
            self.settings[name] = what

    def forget(self, name: str) -> None:
        with self._call():
            self.transactions += self.settings.pop(name, None) is not None

    def has_shield(self) -> bool:
        with self._call():
            return self.shielded

    def add_shield(self) -> None:
        with self._call():
            self.transactions += not self.shielded
            self.shielded = True

    def remove_shield(self) -> None:
        with self._call():
            self.transactions += self.shielded
            self.shielded = False

    def flush(self) -> None:
        """Delete everything, as another program's `nft flush ruleset`."""
        self.transactions += 1
        self.shielded = False
        self.settings.clear()


def busy() -> None:
    raise TransientKernelError("ENOBUFS", errno.ENOBUFS)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let each open of a file fail with EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def write(root: Path, path: str, value: object) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"{value}\n")


def read(root: Path, path: str) -> str:
    return (root / path).read_text().strip()


def new_root(root: Path) -> Path:
    for name in ("all", "default", "eth0", "lo"):
        write(root, f"{CONF}/{name}/route_localnet", 0)
    write(root, "proc/self/oom_score_adj", 0)
    write(root, "sys/devices/system/cpu/online", "0-1")
    write(root, TIMEOUT, 432000)
    write(root, IPVS, 1)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return new_root(tmp_path)


def loopback(root: Path, table: NodeTable | None) -> Loopback:
    return Loopback(table, KernelSettings(root, table), root)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def life(root: Path, table: MemoryTable, *, looks: int = 6) -> object:
    """Start after ipvs mode, load a module, let another program open the node; return the end."""
    table.settings["net.ipv4.vs.conntrack"] = Remembered(0, frozenset({1}))
    kernel = NodeKernel(table, root)
    kernel.apply(SETTINGS)
    kernel.prepare_loopback(SETTINGS.node_ports)
    kernel.keep(SETTINGS)
    write(root, ALL, 2)
    write(root, ACCOUNTING, 0)
    kernel.leftovers_removed()
    for _ in range(looks):
        kernel.keep(SETTINGS)
    files = [read(root, each) for each in (IPVS, TIMEOUT, ACCOUNTING)]
    # A setting may have been remembered with the value that was to be written.
    return files, table.shielded, {name: each.before for name, each in table.settings.items()}


UNDISTURBED = (
    ["0", "60", "1"],
    True,
    {
        "net.netfilter.nf_conntrack_tcp_timeout_established": 432000,
        "net.netfilter.nf_conntrack_acct": 0,
    },
)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("errors", [1, 3])
def test_no_passing_error_of_the_table_loses_a_setting_or_the_shield(
    tmp_path: Path, errors: int, after: bool
) -> None:
    quiet = MemoryTable()
    assert life(new_root(tmp_path / "quiet"), quiet) == UNDISTURBED
    for at in range(quiet.calls):
        table = MemoryTable()
        table.after = after
        table.faults = dict.fromkeys(range(at, at + errors), busy)
        assert life(new_root(tmp_path / str(at)), table) == UNDISTURBED, at


def test_no_flush_goes_unseen_between_two_requests(tmp_path: Path) -> None:
    quiet = MemoryTable()
    assert life(new_root(tmp_path / "quiet"), quiet) == UNDISTURBED
    seen = 0
    for at in range(quiet.calls):
        table = MemoryTable()
        table.faults = {at: table.flush}
        root = new_root(tmp_path / str(at))
        end = life(root, table)
        # Before the first read of the table, a flush leaves nothing to restore or to keep.
        if read(root, IPVS) == "0":
            seen += 1
            assert end == UNDISTURBED, at
        else:
            assert table.shielded, at
    assert seen > quiet.calls // 2


def test_an_idle_look_reads_the_number_of_transactions_alone(root: Path) -> None:
    table = MemoryTable()
    kernel = NodeKernel(table, root)
    kernel.prepare_loopback(SETTINGS.node_ports)
    write(root, ALL, 1)
    for _ in range(3):
        kernel.keep(Settings("n"))
    before = table.calls
    kernel.keep(Settings("n"))
    assert table.calls == before + 1


def test_a_lasting_error_is_logged_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = MemoryTable()
    kernel = NodeKernel(table, root)
    kernel.apply(SETTINGS)
    kernel.leftovers_removed()
    write(root, ACCOUNTING, 0)
    table.faults = dict.fromkeys(range(table.calls, 1000), busy)
    caplog.clear()
    for _ in range(3):
        kernel.keep(SETTINGS)
    assert warnings(caplog) == [
        "cannot set net.netfilter.nf_conntrack_acct: ENOBUFS",
        "cannot restore settings that other modes needed: ENOBUFS",
        "cannot write table inet pyproxy-node again: ENOBUFS",
    ]


def test_a_refused_write_ends_the_restoring(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = MemoryTable()
    kernel = NodeKernel(table, root)
    kernel.apply(SETTINGS)
    for name in ("conn_reuse_mode", "conntrack"):
        table.settings[f"net.ipv4.vs.{name}"] = Remembered(0, frozenset({1}))
        # Root may write every file of a folder, and no folder.
        (root / f"proc/sys/net/ipv4/vs/{name}").unlink(missing_ok=True)
        (root / f"proc/sys/net/ipv4/vs/{name}").mkdir()
    kernel.leftovers_removed()
    table.faults[table.calls + 2] = busy
    for _ in range(4):
        kernel.keep(SETTINGS)
    both = "net.ipv4.vs.conn_reuse_mode to 0: EISDIR; net.ipv4.vs.conntrack to 0: EISDIR"
    assert [each.partition("; set them")[0] for each in warnings(caplog)[-2:]] == [
        "cannot restore settings that other modes needed: ENOBUFS",
        f"cannot restore {both}",
    ]


@pytest.mark.parametrize("entry", ["all", "eth0"])
@pytest.mark.parametrize("value", OPEN)
def test_every_value_but_0_opens_an_interface(root: Path, entry: str, value: str) -> None:
    write(root, f"{CONF}/{entry}/route_localnet", value)
    table = MemoryTable()
    mine = loopback(root, table)
    assert mine.was_opened()
    assert mine.shield_if_open()
    mine.shield_while_open()
    assert table.shielded
    mine.remove_shield(keep_if_open=True)
    assert table.shielded
    write(root, f"{CONF}/{entry}/route_localnet", 0)
    mine.shield_while_open()
    assert not table.shielded


@pytest.mark.parametrize("value", OPEN)
@pytest.mark.parametrize("has_table", [False, True])
def test_an_open_node_is_not_opened_again(
    root: Path, value: str, has_table: bool, caplog: pytest.LogCaptureFixture
) -> None:
    write(root, ALL, value)
    table = MemoryTable() if has_table else None
    loopback(root, table).open()
    assert read(root, ALL) == value
    assert warnings(caplog) == []
    if table is not None:
        assert (table.shielded, table.settings) == (True, {})


def test_a_closed_node_is_opened_behind_the_shield(root: Path) -> None:
    table = MemoryTable()
    loopback(root, table).open()
    assert (read(root, ALL), table.shielded) == ("1", True)
    assert table.settings == {
        "net.ipv4.conf.all.route_localnet": Remembered(0, frozenset({1})),
    }


def test_a_kernel_without_the_sysctl_needs_no_shield(tmp_path: Path) -> None:
    table = MemoryTable()
    table.shielded = True
    mine = loopback(tmp_path, table)
    assert not mine.was_opened()
    mine.shield_while_open()
    assert not table.shielded


def start(mine: NodeKernel) -> None:
    mine.prepare_loopback(SETTINGS.node_ports)


def begin_cleanup(mine: NodeKernel) -> None:
    mine.shield_loopback()


def clean_up(mine: NodeKernel) -> None:
    assert not mine.restore()


def look(mine: NodeKernel) -> None:
    mine.keep(SETTINGS)


@pytest.mark.parametrize("action", [start, begin_cleanup, clean_up, look])
@pytest.mark.parametrize("value", [0, 1])
def test_the_shield_stays_while_the_sysctl_cannot_be_read(
    root: Path, action: Callable[[NodeKernel], None], value: int
) -> None:
    write(root, ALL, value)
    table = MemoryTable()
    table.shielded = True
    kernel = NodeKernel(table, root)
    with no_descriptors():
        action(kernel)
    assert table.shielded


@pytest.mark.parametrize("action", [start, begin_cleanup])
def test_the_shield_is_put_up_while_the_sysctl_cannot_be_read(
    root: Path, action: Callable[[NodeKernel], None]
) -> None:
    table = MemoryTable()
    kernel = NodeKernel(table, root)
    with no_descriptors():
        action(kernel)
    assert table.shielded


def test_a_sysctl_that_cannot_be_read_for_a_while_is_read_later(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = MemoryTable()
    kernel = NodeKernel(table, root)
    start(kernel)
    look(kernel)
    write(root, f"{CONF}/eth0/route_localnet", 1)
    caplog.clear()
    with no_descriptors():
        look(kernel)
        look(kernel)
    assert [each for each in warnings(caplog) if "localnet" in each] == [
        "cannot read net.ipv4.conf.*.route_localnet: EMFILE"
    ]
    assert not table.shielded
    look(kernel)
    assert table.shielded


def crowded(root: Path) -> Path:
    for number in range(40):
        write(root, f"{CONF}/veth{number}/route_localnet", 0)
    write(root, f"{CONF}/lo/route_localnet", 1)
    return root / CONF


def test_an_interface_that_another_program_opened_is_found_in_a_few_looks(root: Path) -> None:
    folder = crowded(root)
    mine = loopback(root, None)
    assert not any(mine.was_opened() for _ in range(6))
    (folder / "veth39/route_localnet").write_text("1")
    # 43 entries take two looks, and one round may have begun.
    assert [mine.was_opened() for _ in range(6)].count(True) == 1


@pytest.mark.parametrize("opened", ["default", "veth0", "veth39", "veth9"])
def test_an_interface_that_cannot_be_read_hides_no_other(root: Path, opened: str) -> None:
    folder = crowded(root)
    (folder / "veth17/route_localnet").unlink()
    (folder / "veth17/route_localnet").mkdir()
    mine = loopback(root, None)
    (folder / opened / "route_localnet").write_text("2")

    def found() -> bool:
        with suppress(IsADirectoryError):
            return mine.was_opened()
        return False

    assert [found() for _ in range(6)].count(True) == 1


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (TransientKernelError("EBUSY", errno.EBUSY), True),
        (RejectedError("EINVAL", errno.EINVAL), False),
    ],
)
def test_a_busy_kernel_is_not_one_without_nf_tables(
    error: KernelError, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    table = MemoryTable()
    table.faults[0] = fail
    monkeypatch.setattr(node_setup, "NodeTable", lambda: table)
    assert (open_node_table() is table) == kept


def test_files_that_cannot_be_opened_for_a_while_lose_no_setting(tmp_path: Path) -> None:
    for at in range(3):
        root, table = new_root(tmp_path / str(at)), MemoryTable()
        table.settings["net.ipv4.vs.conntrack"] = Remembered(0, frozenset({1}))
        kernel = NodeKernel(table, root)
        for step in range(4):
            with no_descriptors() if step == at else nullcontext():
                if step == 0:
                    kernel.apply(SETTINGS)
                    kernel.leftovers_removed()
                else:
                    look(kernel)
        assert (read(root, TIMEOUT), read(root, IPVS)) == ("60", "0"), at


def test_a_setting_that_the_table_could_not_remember_is_written_later(root: Path) -> None:
    table = MemoryTable()
    kernel = NodeKernel(table, root)
    table.faults[0] = busy
    plain = msgspec.structs.replace(SETTINGS, nftables=NftablesSettings())
    kernel.apply(plain)
    assert read(root, TIMEOUT) == "432000"
    kernel.keep(plain)
    assert read(root, TIMEOUT) == "60"
