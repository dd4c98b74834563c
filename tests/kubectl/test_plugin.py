"""The plugin as a program: kubectl, arguments, imports, threads, and names of groups."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pyproxy.kubectl import report
from pyproxy.kubectl.agents import Agent
from pyproxy.kubectl.command import COMMANDS
from pyproxy.kubectl.fan_out import Progress, Slots, in_threads
from tests.kubectl.plugin import Terminal, run, simulated
from tests.waiting import PATIENCE

BESIDE = Path(sys.executable).parent
AGENTS = [Agent(f"node-{number}", None) for number in range(100)]


def test_kubectl_finds_the_plugin(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    with simulated(tmp_path, ["node-1"]) as nodes:
        done = subprocess.run(
            ["kubectl", "pyproxy", "status"],
            env={
                "PATH": f"{BESIDE}:{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "KUBECONFIG": str(nodes.path),
            },
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 of 1 node healthy" in done.stdout


def test_a_closed_pipe_ends_the_plugin_in_silence(tmp_path: Path) -> None:
    with simulated(tmp_path, [f"node-{number}" for number in range(300)]) as nodes:
        command = f"{sys.executable} -m pyproxy.kubectl status --kubeconfig {nodes.path} | head -1"
        done = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.stdout.split()[0], done.stderr) == ("NODE", "")


# These names are missing on macOS.
LINUX_ONLY = """
import socket, sys
for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT", "AF_NETLINK"):
    delattr(socket, name)
import pyproxy.kubectl.main
from pyproxy.kubectl.command import COMMANDS
for entry in COMMANDS.values():
    entry.load()
print([name for name in sys.modules if name.split(".")[0] == "pyroute2"
       or name.startswith("pyproxy.agent")])
"""


def test_the_plugin_imports_nothing_that_needs_linux() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LINUX_ONLY], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_help_lists_the_commands() -> None:
    assert all(f"  {name} " in run("--help").out for name in COMMANDS)
    assert run().status == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("stauts",), "'stauts' is not a command: use one of status"),
        (("status", "--tiemout", "1"), "unknown argument '--tiemout'"),
        (("status", "--parallel", "0"), "--parallel: '0' is not a number from 1 to 512"),
        (("status", "--timeout", "0"), "--timeout: '0' is not between"),
        (("trace", "--to", "10.96.0.20:80"), "--node"),
        (("services", "a/b/c"), "a/b/c"),
        (("check", "--max-nodes", "0"), "--max-nodes: '0' is not a number from 1 to 50"),
    ],
)
def test_wrong_arguments_are_one_line(words: tuple[str, ...], message: str) -> None:
    found = run(*words)
    assert (found.status, found.out) == (2, "")
    (line,) = found.err.splitlines()
    assert message in line


def test_an_api_server_that_does_not_respond_has_its_own_status(tmp_path: Path) -> None:
    with simulated(tmp_path, ["node-1"]) as nodes:
        pass
    found = nodes.run("status")
    assert (found.status, found.out) == (3, "")
    assert len(found.err.splitlines()) == 1


def test_results_come_from_a_bounded_number_of_threads() -> None:
    used: set[int] = set()

    def name(agent: Agent) -> str:
        used.add(threading.get_ident())
        return agent.node

    assert sorted(in_threads(name, AGENTS, Slots(7, 7))) == sorted(agent.node for agent in AGENTS)
    assert len(used) <= 7


def test_slow_calls_do_not_keep_others_waiting() -> None:
    """Ten calls hang, with five slots: all others end before the first of them."""
    ended = threading.Event()
    fast: list[str] = []

    def call(agent: Agent) -> str:
        if int(agent.node.removeprefix("node-")) < 10:
            assert ended.wait(PATIENCE)
            return ""
        fast.append(agent.node)
        if len(fast) == 90:
            ended.set()
        return agent.node

    found = list(in_threads(call, AGENTS, Slots(5, 20, patience=lambda: 0.05)))
    assert (len(found), len(fast)) == (100, 90)


def test_calls_are_bounded_until_they_are_slow() -> None:
    lock, active, most = threading.Lock(), [0], [0]

    def call(agent: Agent) -> None:
        with lock:
            active[0] += 1
            most[0] = max(most[0], active[0])
        threading.Event().wait(0.005)
        with lock:
            active[0] -= 1

    list(in_threads(call, AGENTS, Slots(5, 20, patience=lambda: 60.0)))
    assert most[0] <= 5


def test_the_first_exception_ends_all_work() -> None:
    called: list[str] = []

    def fail(agent: Agent) -> str:
        called.append(agent.node)
        raise ValueError(agent.node)

    with pytest.raises(ValueError, match="node-"):
        list(in_threads(fail, AGENTS, Slots(2, 2)))
    assert len(called) < len(AGENTS)


@pytest.mark.parametrize(("file", "shows"), [(Terminal(), True), (io.StringIO(), False)])
def test_progress_is_for_terminals(file: io.StringIO, shows: bool) -> None:
    times = iter([0.0, 0.01, 0.02, 5.0])
    progress = Progress(4, file, lambda: next(times))
    for _ in range(4):
        progress.add()
    progress.clear()
    expected = "".join(f"\r\x1b[Kasked {number} of 4 nodes" for number in (1, 4)) + "\r\x1b[K"
    assert file.getvalue() == (expected if shows else "")


@pytest.mark.parametrize(
    ("text", "node", "common"),
    [
        ("on this node (node-1)", "node-1", "on this node (NODE)"),
        ("node-10 and node-1.example", "node-1", "node-10 and node-1.example"),
        ("no byte for 12.5 s", "n", "no byte for N s"),
        ("no route to 10.244.3.0/24", "n", "no route to 10.244.3.0/24"),
    ],
)
def test_texts_of_different_nodes_become_equal(text: str, node: str, common: str) -> None:
    assert report.without_node(text, node) == common


@pytest.mark.parametrize(
    ("nodes", "total", "text"),
    [
        (("a",), 1, "a"),
        (("a", "b"), 2, "all 2 nodes"),
        (("a", "b"), 5, "a, b"),
        (("a", "b", "c", "d"), 1000, "4 nodes"),
    ],
)
def test_groups_have_names(nodes: tuple[str, ...], total: int, text: str) -> None:
    assert report.nodes_text(nodes, total) == text


def test_documents_escape_what_a_terminal_acts_on() -> None:
    assert report.escaped('{"a": "\x9b\U000e0001é"}\n') == ('{"a": "\\u009b\\udb40\\udc01é"}\n')
