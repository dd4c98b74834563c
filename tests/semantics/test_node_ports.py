"""On which addresses of the node, and from where, node ports answer: `--nodeport-addresses`."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.network import Network

from tests.waiting import PATIENCE, RESPONSE_TIMEOUT

from .proxied import Proxied, endpoint_slice, proxied, service

pytestmark = pytest.mark.packets

PORT = 30080
PORTS = (
    {"name": "tcp", "port": 80, "nodePort": PORT},
    {"name": "udp", "port": 80, "nodePort": PORT, "protocol": "UDP"},
)
SLICE_PORTS = ({"name": "tcp", "port": 8080}, {"name": "udp", "port": 8080, "protocol": "UDP"})
WEB = (
    service("web", "10.96.0.1", "fd00:10:96::1", ports=PORTS, type="NodePort"),
    endpoint_slice("web", "a1", "b1", ports=SLICE_PORTS),
    endpoint_slice("web", "a1", "b1", ports=SLICE_PORTS, family="IPv6"),
)

Clients = dict[str, tuple[str, ...]]
PRIMARY: Clients = {"172.30.0.11": ("ext", "a2", "na"), "fd30::11": ("ext", "a2", "na")}
GATEWAYS: Clients = {"10.244.1.1": ("ext", "a2", "na"), "fd10:1::1": ("ext", "a2", "na")}
LOOPBACK: Clients = {"127.0.0.1": ("na",)}
LOOPBACK6: Clients = {"::1": ("na",)}
EVERY = PRIMARY | GATEWAYS | LOOPBACK | LOOPBACK6
CASES: dict[str, Clients] = {
    "primary": PRIMARY,
    "localhost": LOOPBACK,
    "all": PRIMARY | GATEWAYS,
    "primary,localhost": PRIMARY | LOOPBACK,
    "172.30.0.0/24,fd10:1::/64": {"172.30.0.11": PRIMARY["172.30.0.11"], "fd10:1::1": ("a2",)},
    "127.0.0.0/8,::1/128": LOOPBACK,
}


def target(address: str, protocol: str, port: int = PORT) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port}/{protocol}"


@pytest.mark.parametrize("flag", CASES)
def test_node_ports_are_on_the_chosen_addresses_alone(
    mode: LabMode, network: Network, tmp_path: Path, flag: str
) -> None:
    network.namespace("na").sysctl({"ipv4/conf/all/route_localnet": 0})
    with proxied(
        mode, network, tmp_path / "x", f"--nodeport-addresses={flag}", objects=WEB
    ) as node:
        for address, clients in EVERY.items():
            for who in clients:
                for protocol in ("tcp", "udp"):
                    to = target(address, protocol)
                    if address in CASES[flag]:
                        node.reaches(who, to, "a1", "b1", tries=24)
                    else:
                        node.is_refused(who, to)
        if "::1" in flag or "localhost" in flag:
            node.logs("node ports do not serve on ::1")


@pytest.mark.modes("iptables-legacy", "iptables-nft")
@pytest.mark.parametrize("loopback", [True, False])
def test_iptables_mode_has_node_ports_on_loopback_unless_a_flag_disables_it(
    mode: LabMode, network: Network, tmp_path: Path, loopback: bool
) -> None:
    flag = f"--iptables-localhost-nodeports={str(loopback).lower()}"
    with proxied(mode, network, tmp_path / "x", flag, objects=WEB) as node:
        node.reaches("ext", target("172.30.0.11", "tcp"), "a1", "b1", tries=24)
        if loopback:
            node.reaches("na", target("127.0.0.1", "tcp"), "a1", "b1", tries=24)
        else:
            node.is_refused("na", target("127.0.0.1", "tcp"))


def test_loopback_follows_policies_and_affinity(
    mode: LabMode, network: Network, tmp_path: Path
) -> None:
    """The node itself uses the whole cluster, whatever the policy, and its own host's pods too."""
    web = service(
        "web",
        "10.96.0.1",
        ports=PORTS,
        type="NodePort",
        externalTrafficPolicy="Local",
        sessionAffinity="ClientIP",
    )
    flag = "--nodeport-addresses=localhost"
    with proxied(mode, network, tmp_path / "x", flag, objects=(web, WEB[1])) as node:
        for protocol in ("tcp", "udp"):
            pod = node.single_pod("na", target("127.0.0.1", protocol))
            seen = node.once("na", target("127.0.0.1", protocol), tries=8, timeout=RESPONSE_TIMEOUT)
            assert seen.reached == {pod: 8}
        host_ports = [port | {"port": 9090} for port in SLICE_PORTS]
        for host in ("ha", "hb"):
            node.apply(endpoint_slice("web", host, ports=host_ports))
            for protocol in ("tcp", "udp"):
                node.reaches("na", target("127.0.0.1", protocol), host)


@pytest.fixture
def everywhere(mode: LabMode, network: Network, tmp_path: Path) -> Iterator[Proxied]:
    with proxied(mode, network, tmp_path / "x", "--nodeport-addresses=all", objects=WEB) as node:
        yield node


@pytest.mark.parametrize(
    ("address", "how"),
    [
        ("172.30.0.55", "addr {} 172.30.0.55/24 dev eth0"),
        ("fd30::55", "addr {} fd30::55/64 dev eth0 nodad"),
        # As on interfaces that a cloud's agent sets up.
        ("172.30.0.56", "addr {} 172.30.0.56/32 dev eth0 scope link"),
        # Agents of load balancers add such routes for the addresses of these.
        ("203.0.113.7", "route {} local 203.0.113.7 dev eth0"),
        ("fd77::7", "route {} local fd77::7 dev eth0"),
        ("203.0.113.17", "route {} local 203.0.113.16/30 dev lo"),
    ],
)
def test_node_ports_follow_added_and_removed_addresses(
    everywhere: Proxied, address: str, how: str
) -> None:
    here, client = everywhere.network.namespace("na"), everywhere.network.namespace("ext")
    to = target(address, "tcp")
    gateway = "fd30::11" if ":" in address else "172.30.0.11"
    client.ip([f"route replace {address} via {gateway}"])
    assert not everywhere.once("ext", to, timeout=0.1).reached
    here.ip([how.format("add")])
    everywhere.reaches("ext", to, "a1", "b1", tries=24)
    here.ip([how.format("del").removesuffix(" nodad")])
    deadline = time.monotonic() + PATIENCE
    while has_node_ports(address, everywhere.listing()):
        assert time.monotonic() < deadline, f"node ports are on {address} for ever"
        time.sleep(0.1)
    client.ip([f"route del {address}"])


@pytest.mark.modes("iptables-legacy", "iptables-nft")
@pytest.mark.parametrize(
    ("network_of", "address"), [("10.77.0.0/16", "10.77.200.1"), ("fd77::/64", "fd77::a:1")]
)
def test_iptables_mode_has_node_ports_on_all_of_a_large_local_network(
    everywhere: Proxied, network_of: str, address: str
) -> None:
    here, client = everywhere.network.namespace("na"), everywhere.network.namespace("ext")
    gateway = "fd30::11" if ":" in address else "172.30.0.11"
    client.ip([f"route replace {address} via {gateway}"])
    here.ip([f"route add local {network_of} dev lo"])
    for protocol in ("tcp", "udp"):
        everywhere.reaches("ext", target(address, protocol), "a1", "b1", tries=24)
        everywhere.reaches("na", target(address, protocol), "a1", "b1", tries=24)
    here.ip([f"route del local {network_of} dev lo"])
    assert not everywhere.once("ext", target(address, "tcp"), timeout=0.1).reached
    client.ip([f"route del {address}"])


@pytest.mark.modes("nftables")
def test_a_large_local_network_is_left_out_and_named(everywhere: Proxied) -> None:
    here = everywhere.network.namespace("na")
    here.ip(["route add local 10.77.0.0/16 dev lo"])
    try:
        everywhere.logs("configuration problem local_network_left_out")
        everywhere.logs("local routes to 10.77.0.0/16, which are more than 1024")
        everywhere.is_refused("na", target("10.77.200.1", "tcp"))
    finally:
        here.ip(["route del local 10.77.0.0/16 dev lo"])
    everywhere.logs("configuration problem local_network_left_out is solved")


def test_link_local_addresses_have_no_node_ports(everywhere: Proxied) -> None:
    here = everywhere.network.namespace("na")
    here.ip(["addr add 169.254.7.7/32 dev eth0"])
    try:
        everywhere.is_refused("na", target("169.254.7.7", "tcp"))
        everywhere.is_refused("na", target("127.0.0.1", "tcp"))
    finally:
        here.ip(["addr del 169.254.7.7/32 dev eth0"])


def has_node_ports(address: str, listing: str) -> bool:
    """Return whether an address is among those of our frontends, or of our rules."""
    return bool(re.search(rf"(?<![\w:.]){re.escape(address)}(?![\w:.])", listing))


def test_loopback_addresses_cannot_be_reached_from_other_hosts(
    mode: LabMode, network: Network, tmp_path: Path
) -> None:
    """The sysctl that lets node ports answer on 127.0.0.1 would open all that listens there."""
    here, neighbour = network.namespace("na"), network.namespace("ext")
    here.sysctl({"ipv4/conf/all/route_localnet": 0})
    neighbour.sysctl({"ipv4/conf/all/route_localnet": 1})
    local = [f"route del table local local {what} dev lo" for what in ("127.0.0.0/8", "127.0.0.1")]
    neighbour.ip([*local, "route add 127.0.0.0/8 via 172.30.0.11"])
    with here.call(lambda: bound("127.0.0.1", 9300)) as listener:
        flag = "--nodeport-addresses=localhost"
        with proxied(mode, network, tmp_path / "x", flag, objects=WEB) as node:
            node.reaches("na", "127.0.0.1:9090", "ha")
            assert not receives(listener, neighbour)
        # The sysctl is still 1: table inet pyproxy-node protects the node without the mode's rules.
        assert not receives(listener, neighbour)
        here.run(["nft", "delete", "table", "inet", "pyproxy-node"])
        assert receives(listener, neighbour)
    neighbour.ip(["route del 127.0.0.0/8", "addr del 127.0.0.1/8 dev lo"])
    neighbour.ip(["addr add 127.0.0.1/8 dev lo"])


def bound(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind((address, port))
    listener.settimeout(0.3)
    return listener


def receives(listener: socket.socket, sender: Namespace) -> bool:
    with sender.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as talker:
        talker.sendto(b"!", listener.getsockname())
    try:
        return bool(listener.recv(10))
    except TimeoutError:
        return False
