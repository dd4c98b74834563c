"""The agent as a process: how it starts, ends, waits and gives up; with packets."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing

import pytest
from aiohttp import web
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.topology import API_ADDRESS

from pyproxy import cli
from pyproxy.netlink import nftables
from tests.agent.live import Stage, addresses, ask, endpoint_slice, service
from tests.waiting import PATIENCE

pytestmark = pytest.mark.packets

WEB = "10.96.7.1"


def load_web(server: ApiServer, *pods: str) -> None:
    server.load([service("web", WEB, node_port=30080), endpoint_slice("web", addresses(*pods))])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_leaves_the_rules_in_place(stage: Stage, number: int) -> None:
    with stage.server() as server, stage.agent(server.url) as agent:
        load_web(server, "a1", "b1")
        stage.until_served(agent, server, "the Service in the kernel")
        with closing(stage.connect("a2", WEB)) as held:
            before, pod = stage.kernel(), ask(held)
            agent.signal(number)
            assert agent.ends() == 0
            assert stage.kernel() == before
            assert ask(held) == pod
        assert stage.probe(f"{WEB}:80").reached.keys() == {"a1", "b1"}
        assert stage.probe("172.30.0.11:30080", who="ext").reached.keys() == {"a1", "b1"}


def test_started_again_it_changes_nothing(stage: Stage) -> None:
    with stage.server() as server:
        load_web(server, "a1", "b1")
        with stage.agent(server.url) as first:
            first.does(lambda: stage.health() == 200, "the first commit")
            first.signal(signal.SIGTERM)
            assert first.ends() == 0
        listing = stage.nft("-s", "list", "ruleset")
        with closing(stage.connect("a2", WEB)) as held, stage.commits() as commits:
            pod = ask(held)
            with stage.agent(server.url) as second:
                second.does(lambda: stage.health() == 200, "the first look at the kernel")
                assert commits.count() == 0
                assert stage.metrics()["pyproxy_dataplane_messages_total"] == 0
            assert commits.count() == 0
            assert ask(held) == pod
        assert stage.nft("-s", "list", "ruleset") == listing


def test_started_again_it_knows_what_there_is(stage: Stage) -> None:
    with stage.server() as server:
        load_web(server, "a1", "b1", "b2")
        for pods in (("a1", "b2"), ("b2",), ()):
            with stage.agent(server.url) as agent:
                agent.does(lambda: stage.health() == 200, "the first look at the kernel")
                server.load([endpoint_slice("web", addresses(*pods))])
                stage.until_served(agent, server, "fewer endpoints in the kernel")
                assert stage.probe(f"{WEB}:80", who="a2").reached.keys() == set(pods)


class Hanging:
    """A middleware that, once told to, lets requests in and never answers."""

    def __init__(self) -> None:
        self.hangs = False
        self.waiting = threading.Semaphore(0)

    @property
    def middleware(self) -> Callable[..., Awaitable[web.StreamResponse]]:
        @web.middleware
        async def hang(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            if self.hangs:
                self.waiting.release()
                await asyncio.Event().wait()
            return await handler(request)

        return hang


def test_it_ends_in_time_while_the_api_server_hangs(stage: Stage) -> None:
    hanging = Hanging()
    with stage.server(middlewares=[hanging.middleware]) as server:
        load_web(server, "b1")
        with stage.agent(server.url) as agent:
            stage.until_served(agent, server, "the Service in the kernel")
            hanging.hangs = True
            server.close_watches()
            assert all(hanging.waiting.acquire(timeout=PATIENCE) for _ in range(3))
            agent.signal(signal.SIGTERM)
            assert agent.ends() == 0
    assert stage.probe(f"{WEB}:80", tries=4).reached == {"b1": 4}


def test_it_ends_in_time_before_the_api_server_has_said_a_word(stage: Stage) -> None:
    with closing(stage.network.listen()) as mute:
        port = mute.getsockname()[1]
        mute.settimeout(PATIENCE)
        with stage.agent(f"http://{API_ADDRESS}:{port}") as agent, ExitStack() as taken:
            for _ in range(3):
                connection = taken.enter_context(closing(mute.accept()[0]))
                connection.settimeout(PATIENCE)
                assert connection.recv(4096)
            agent.signal(signal.SIGTERM)
            assert agent.ends() == 0


def test_cleanup_removes_what_is_ours_and_nothing_else(stage: Stage) -> None:
    foreign = "table inet other { set s { type ipv4_addr; elements = { 10.96.7.1 } }; }"
    stage.here.run(["nft", "-f", "-"], text=foreign)
    theirs = stage.nft("list", "table", "inet", "other")
    with stage.server() as server, stage.agent(server.url) as agent:
        load_web(server, "a1")
        stage.until_served(agent, server, "the Service in the kernel")
    assert "table inet pyproxy" in stage.tables()
    for _ in range(2):
        done = stage.run("cleanup")
        assert (done.returncode, done.stderr) == (0, "")
        assert stage.tables() == ["table inet other"]
    assert stage.nft("list", "table", "inet", "other") == theirs
    assert stage.probe(f"{WEB}:80", timeout=0.6).dropped


def test_it_waits_for_an_api_server_that_is_not_there_yet(stage: Stage) -> None:
    with closing(stage.network.listen()) as place:
        port = place.getsockname()[1]
    with stage.agent(f"http://{API_ADDRESS}:{port}") as agent:
        agent.does(lambda: "API server is unreachable" in agent.said(), "a word that it waits")
        assert stage.health() == 503
        assert "table inet pyproxy" not in stage.tables()
        with stage.server(port) as server:
            load_web(server, "a1", "b1")
            agent.does(lambda: stage.health() == 200, "health after the first commit")
            stage.until_served(agent, server, "the Service in the kernel")
            assert stage.probe(f"{WEB}:80", who="a2").reached.keys() == {"a1", "b1"}
            agent.does(
                lambda: "API server is reachable again" in agent.said(), "a word that it is back"
            )
            assert agent.said().count("API server is unreachable") == 1
            agent.require_alive()


WITHOUT_NET_ADMIN = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")


@pytest.mark.parametrize(
    ("before", "flags", "says"),
    [
        ((), ("--no-such-flag",), "--no-such-flag"),
        ((), ("--proxy-mode", "userspace"), "--proxy-mode"),
        ((), ("--min-sync-period", "soon"), "--min-sync-period"),
        ((), ("--kubeconfig", "/nowhere/kubeconfig"), "/nowhere/kubeconfig"),
        ((), ("--kubeconfig", "/proc"), "/proc"),
        ((), ("--kubeconfig", "/proc/self/cmdline"), "/proc/self/cmdline"),
        ((), ("--manifests", "/nowhere/manifests"), "/nowhere/manifests"),
        (WITHOUT_NET_ADMIN, ("--manifests", "/tmp"), "CAP_NET_ADMIN"),
    ],
)
def test_what_a_person_must_put_right_is_one_line_and_status_2(
    stage: Stage, before: tuple[str, ...], flags: tuple[str, ...], says: str
) -> None:
    command = [*before, sys.executable, "-m", "pyproxy", "run", *flags]
    done = stage.here.run(command, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("pyproxy: ")
    assert says in line
    assert stage.tables() == []


def test_cleanup_without_the_right_is_one_line_and_status_2(stage: Stage) -> None:
    command = [*WITHOUT_NET_ADMIN, sys.executable, "-m", "pyproxy", "cleanup"]
    done = stage.here.run(command, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "CAP_NET_ADMIN" in line


def test_a_kernel_without_nf_tables_is_one_line_and_status_2(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # No machine of ours lacks nf_tables. This kernel lacks nfnetlink's subsystem 13, and says of
    # it what another says of nf_tables.
    monkeypatch.setattr(nftables, "SUBSYSTEM", 13)
    assert stage.here.call(lambda: cli.main(["run", "--manifests", "/tmp"])) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("pyproxy: this kernel has no nf_tables")


def test_a_kernel_without_nfnetlink_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_such_protocol(*_: int) -> socket.socket:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    # This kernel has nfnetlink, so the error of one without it is simulated.
    monkeypatch.setattr("pyproxy.netlink.sockets.socket.socket", no_such_protocol)
    assert cli.main(["run", "--manifests", "/tmp"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("pyproxy: this kernel has no nf_tables")
