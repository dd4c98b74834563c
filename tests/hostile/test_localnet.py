"""A neighbour on the link asks for the node's 127.0.0.1, and claims to be it (CVE-2020-8558)."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.network import Network

from tests.semantics.proxied import Proxied, proxied, service
from tests.waiting import until

pytestmark = [pytest.mark.packets, pytest.mark.modes("nftables", "iptables-legacy", "ipvs")]

SYSCTL = "ipv4/conf/all/route_localnet"
NODE = "172.30.0.11"
NEIGHBOUR = "172.30.0.99"
PORT = 9300
TABLE = "pyproxy-node"
LOCALHOST = "--nodeport-addresses=localhost"
ELSEWHERE = "--nodeport-addresses=primary"
WEB = (service("web", "10.96.0.1", ports=[{"port": 80, "nodePort": 30080}], type="NodePort"),)
NOTHING = (False, False)
# The kernel takes any integer, and each but 0 is on.
OPEN = (1, 2, -1)


class Attack:
    """A neighbour that sends to 127.0.0.1, and from 127.0.0.1, all the time."""

    def __init__(self, node: Namespace, neighbour: Namespace) -> None:
        self._private = node.call(lambda: _bound("127.0.0.1"))
        self._public = node.call(lambda: _bound(NODE))
        self._sender = neighbour.call(_raw)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._sent = 0

    def __enter__(self) -> Attack:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for each in (self._private, self._public, self._sender):
            each.close()

    def arrived(self) -> tuple[bool, bool]:
        """Return whether packets to 127.0.0.1, and from it, came in since the last call."""
        rounds = self._sent + 5
        until(lambda: self._sent >= rounds, "more packets")
        return _drain(self._private, NEIGHBOUR), _drain(self._public, "127.0.0.1")

    def _run(self) -> None:
        while not self._ended.wait(0.002):
            self._sender.sendto(_packet(NEIGHBOUR, "127.0.0.1"), ("127.0.0.1", 0))
            self._sender.sendto(_packet("127.0.0.1", NODE), (NODE, 0))
            self._sent += 1


def _bound(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, PORT))
    made.setblocking(False)
    return made


def _raw() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


def _packet(source: str, destination: str) -> bytes:
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack(">BBHHHBBH", 0x45, 0, 29, 0, 0, 64, socket.IPPROTO_UDP, 0)
    return head + ends + struct.pack(">HHHH", PORT, PORT, 9, 0) + b"!"


def _drain(listener: socket.socket, source: str) -> bool:
    found = False
    while True:
        try:
            _, sender = listener.recvfrom(16)
        except BlockingIOError:
            return found
        found |= sender[0] == source


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


@pytest.fixture
def node(network: Network) -> Namespace:
    here = network.namespace("na")
    here.run(["nft", "delete", "table", "inet", TABLE], check=False)
    # Without accept_local the kernel itself drops packets that claim to come from 127.0.0.1.
    here.sysctl({SYSCTL: 0, "ipv4/conf/all/accept_local": 1})
    return here


@pytest.fixture
def attack(network: Network, node: Namespace) -> Iterator[Attack]:
    neighbour = network.namespace("ext")
    neighbour.sysctl({SYSCTL: 1})
    local = [f"route del table local local {what} dev lo" for what in ("127.0.0.0/8", "127.0.0.1")]
    neighbour.ip([*local, f"route add 127.0.0.0/8 via {NODE}"])
    try:
        with Attack(node, neighbour) as attack:
            yield attack
    finally:
        neighbour.ip(["route del 127.0.0.0/8", "addr del 127.0.0.1/8 dev lo"])
        neighbour.ip(["addr add 127.0.0.1/8 dev lo"])
        neighbour.sysctl({SYSCTL: 0})


@contextmanager
def serving(mode: LabMode, network: Network, folder: Path, *flags: str) -> Iterator[Proxied]:
    """Run an agent, and delete its mode's rules at the end, but nothing else."""
    with proxied(mode, network, folder, *flags, objects=WEB) as agent:
        yield agent


def is_open(here: Namespace) -> bool:
    return here.run(["sysctl", "-n", "net.ipv4.conf.all.route_localnet"]).stdout.strip() != "0"


def cleanup(here: Namespace) -> str:
    return here.run([sys.executable, "-m", "pyproxy", "cleanup"]).stderr


def tables(here: Namespace) -> list[str]:
    return here.run(["nft", "list", "tables", "inet"]).stdout.splitlines()


def listed(node: Namespace) -> list[str]:
    found = node.run(["nft", "list", "table", "inet", TABLE], check=False).stdout
    return sorted(found.splitlines())


@pytest.mark.modes("nftables")
@pytest.mark.parametrize("value", OPEN)
def test_the_attack_works_on_an_open_node(
    mode: LabMode, node: Namespace, attack: Attack, value: int
) -> None:
    node.sysctl({SYSCTL: value})
    until(lambda: attack.arrived() == (True, True), "both packets arrive")


def test_no_packet_arrives_in_any_state(
    mode: LabMode, network: Network, node: Namespace, attack: Attack, tmp_path: Path
) -> None:
    with serving(mode, network, tmp_path / "1", LOCALHOST) as agent:
        assert is_open(node) == (mode.name != "ipvs")
        os.kill(agent.agent.pid, signal.SIGKILL)
    # The mode's rules are gone now, and what protects the node is not.
    assert is_open(node) == (mode.name != "ipvs")
    assert attack.arrived() == NOTHING
    with serving(mode, network, tmp_path / "2", ELSEWHERE):
        assert not is_open(node)
        assert "loopback-shield" not in "".join(listed(node))
    with serving(mode, network, tmp_path / "3", LOCALHOST) as agent:
        agent.agent.stop()
        said = cleanup(node)
        assert not is_open(node)
        assert tables(node) == []
    assert attack.arrived() == NOTHING
    if mode.name != "ipvs":
        assert "restored net.ipv4.conf.all.route_localnet to 0" in said


@pytest.mark.modes("nftables")
@pytest.mark.parametrize("value", OPEN)
@pytest.mark.parametrize("node_ports", [ELSEWHERE, LOCALHOST])
def test_a_node_that_another_program_opened_is_shielded(
    mode: LabMode,
    network: Network,
    node: Namespace,
    attack: Attack,
    tmp_path: Path,
    *,
    value: int,
    node_ports: str,
) -> None:
    node.sysctl({SYSCTL: value})
    with serving(mode, network, tmp_path / "1", node_ports) as agent:
        agent.logs("route_localnet is not 0, and pyproxy did not set it")
        attack.arrived()
        agent.agent.stop()
        said = cleanup(node)
        assert is_open(node)
        assert attack.arrived() == NOTHING
        assert "route_localnet is not 0: table inet pyproxy-node stays" in said
        node.sysctl({SYSCTL: 0})
        cleanup(node)
        assert tables(node) == []


@pytest.mark.modes("nftables")
@pytest.mark.parametrize(("entry", "value"), [("all", 1), ("all", 2), ("eth0", -1)])
def test_another_program_opens_the_node_or_flushes_the_shield(
    mode: LabMode,
    network: Network,
    node: Namespace,
    attack: Attack,
    tmp_path: Path,
    *,
    entry: str,
    value: int,
) -> None:
    sysctl = f"ipv4/conf/{entry}/route_localnet"
    with serving(mode, network, tmp_path / "1", ELSEWHERE):
        node.sysctl({sysctl: value})
        until(lambda: "loopback-shield" in "".join(listed(node)), "the shield is up")
        before = listed(node)
        node.run(["nft", "flush", "ruleset"])
        until(lambda: listed(node) == before, "the table is back")
        node.run(["nft", "flush", "chain", "inet", TABLE, "loopback-shield"])
        until(lambda: listed(node) == before, "the shield's rules are back")
        attack.arrived()
        assert attack.arrived() == NOTHING
    node.sysctl({sysctl: 0})
