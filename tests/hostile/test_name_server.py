"""A name server that never responds: the agent starts without it."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from pyproxy_lab.network import Network

from tests.agent.live import SITE, Stage, endpoint_slice, service

pytestmark = pytest.mark.kernel

NAME_SERVER = "127.0.0.53"
CONFIGURATION = Path("/etc/netns")
"""`ip netns exec` mounts the files below it, in a folder of each namespace, over those of /etc."""

PAGE_PORT = 10260


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Network() as network:
        yield Stage(network, tmp_path)


def bound() -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    found.bind((NAME_SERVER, 53))
    found.setblocking(False)
    return found


@contextmanager
def silent_name_server(stage: Stage) -> Iterator[socket.socket]:
    """Be the only name server of the node, and never respond."""
    folder = CONFIGURATION / stage.here.name
    folder.mkdir(parents=True)
    try:
        (folder / "resolv.conf").write_text(f"nameserver {NAME_SERVER}\n")
        with closing(stage.here.call(bound)) as server:
            yield server
    finally:
        shutil.rmtree(folder)


def received(server: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(server.recv(512))
        except BlockingIOError:
            return found


def test_the_start_with_the_page_asks_no_name_server(stage: Stage) -> None:
    address = next(iter(stage.network.topology.site(SITE).addresses))
    with silent_name_server(stage) as names, stage.server() as server:
        server.load([service("web", "10.96.0.10"), endpoint_slice("web", ["10.244.1.11"])])
        with stage.agent(server.url, f"--ui-bind-address={address}:{PAGE_PORT}") as agent:
            agent.does(lambda: stage.health() == 200, "the first commit")
            # The page's port is open too, which is what asked.
            with closing(stage.here.call(lambda: _connected(address))):
                assert received(names) == []
            assert f"serving the page on http://{address}:{PAGE_PORT}/" in agent.said()
            # This server does receive the queries of programs on the node.
            lookup = stage.here.start(["getent", "hosts", "example.org"])
            agent.does(lambda: received(names), "a query that some other program sends")
            lookup.kill()
            lookup.wait()


def _connected(address: str) -> socket.socket:
    return socket.create_connection((address, PAGE_PORT), 10.0)
