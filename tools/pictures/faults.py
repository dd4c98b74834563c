"""The faults of a recording: each breaks one node in a way that fires alerts, until the end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import msgspec
from pyproxy_lab.client import SERVICES, ApiClient, JsonObject, collection
from pyproxy_lab.namespace import NETNS_FOLDER, Namespace
from pyproxy_lab.topology import API_ADDRESS, OUTSIDE, numbered_site

NAMESPACE = "shop"
NFT_WRAPPER = """\
#!/bin/sh
if [ -e "{folder}/broken-$(ip netns identify $$)" ]; then
    echo 'Error: could not load the library libnftables.so.1' >&2
    exit 127
fi
exec {nft} "$@"
"""
"""A program for PATH in place of nft: it fails in a namespace that has a file `broken-NAME`."""

_FLOWS_PER_SOCKET = 55_000
_SOCKETS = 4
_FIRST_PORT = 2_000
_BATCH = 400
_HOURS = "7200"


class Stage(msgspec.Struct, frozen=True):
    """A lab of the process `pid`, the API of its cluster, and a folder for files of the faults."""

    pid: int
    api: ApiClient
    folder: Path
    ended: Event

    def namespace(self, name: str) -> Namespace:
        """Return the network namespace of a node, such as `na`, or of another member."""
        (path,) = NETNS_FOLDER.glob(f"lab{self.pid}-*-{name}")
        return Namespace(path.name)

    def agent(self, node: str) -> int:
        """Return the process of a node's agent. Raises LookupError."""
        listed = self.namespace(node).run(["ip", "netns", "pids", self.namespace(node).name])
        for pid in map(int, listed.stdout.split()):
            words = _command_line(pid)
            if b"run" in words and b"--hostname-override" in words:
                return pid
        raise LookupError(f"no agent runs on {node}")

    def every(self, seconds: float, action: Callable[[], None]) -> None:
        """Repeat an action in a thread until the recording ends."""

        def repeat() -> None:
            while not self.ended.wait(seconds):
                action()

        Thread(target=repeat, daemon=True).start()


def _command_line(pid: int) -> list[bytes]:
    """Return the words of a process's command, none if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


class Fault(msgspec.Struct, frozen=True):
    """A fault that begins in a minute of the recording, on a node or, without one, everywhere."""

    minute: int
    node: str
    begin: Callable[[Stage, str], None]


def service(name: str, **spec: object) -> JsonObject:
    """Return a Service with one port, and further fields of its spec."""
    port = {"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"type": "ClusterIP", "ports": [port], **spec},
    }


def _another_program_removes_elements(stage: Stage, node: str) -> None:
    flush = ["nft", "flush", "set", "inet", "pyproxy", "cluster-ips4"]

    def remove() -> None:
        stage.namespace(node).run(flush, check=False)

    stage.every(60.0, remove)


def _two_services_claim_one_address(stage: Stage, _: str) -> None:
    for name in ("checkout", "checkout-copy"):
        claim = service(name, externalIPs=["203.0.113.80"])
        stage.api.ensure(collection(NAMESPACE, SERVICES), claim)


def _nft_is_broken_and_the_table_removed(stage: Stage, node: str) -> None:
    namespace = stage.namespace(node)
    (stage.folder / f"broken-{namespace.name}").touch()
    namespace.run(["nft", "delete", "table", "inet", "pyproxy"])


def _packets_to_the_api_server_are_dropped(stage: Stage, node: str) -> None:
    rules = f"""
        add table ip broken-firewall
        add chain ip broken-firewall out {{ type filter hook output priority 0; }}
        add rule ip broken-firewall out ip daddr {API_ADDRESS} drop
    """
    stage.namespace(node).run(["nft", "-f", "-"], text=rules)


def _a_client_opens_many_flows(stage: Stage, node: str) -> None:
    """Send a datagram to each port of a node, from several sockets, and let conntrack keep them."""
    stage.namespace(node).run(["sysctl", "-qw", f"net.netfilter.nf_conntrack_udp_timeout={_HOURS}"])
    address = next(
        site.addresses.ipv4 for site in map(numbered_site, range(1, 27)) if site.name == node
    )
    flows = (
        (number, _FIRST_PORT + port)
        for number in range(_SOCKETS)
        for port in range(_FLOWS_PER_SOCKET)
    )

    def socket_outside() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    sockets = [stage.namespace(OUTSIDE).call(socket_outside) for _ in range(_SOCKETS)]

    def send() -> None:
        for number, port in (next(flows, (-1, 0)) for _ in range(_BATCH)):
            if number >= 0:
                sockets[number].sendto(b"", (address, port))

    stage.every(0.3, send)


def _the_agent_hangs(stage: Stage, node: str) -> None:
    os.kill(stage.agent(node), signal.SIGSTOP)


FAULTS = (
    Fault(4, "nb", _another_program_removes_elements),
    Fault(5, "", _two_services_claim_one_address),
    Fault(10, "nd", _nft_is_broken_and_the_table_removed),
    Fault(14, "nc", _packets_to_the_api_server_are_dropped),
    Fault(16, "nb", _a_client_opens_many_flows),
    Fault(29, "ne", _the_agent_hangs),
)
MINUTES = 38
"""The longest alert waits for 30 minutes, and its fault begins in the fourth."""

NODES = 5
