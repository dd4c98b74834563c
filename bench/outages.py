"""The time of one change while its API server, or one of two, is out of reach.

The agent reaches the API server by two addresses of the loopback device, as if two servers shared
one store. A table of nf_tables loses or rejects the packets of an address, so that the sockets of
both ends behave as with a real network.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from pyproxy_lab.bench import cluster
from pyproxy_lab.bench.cluster import Cluster, Order
from pyproxy_lab.bench.contestant import OURS, parse
from pyproxy_lab.bench.figures import duration, heading, row
from pyproxy_lab.bench.place import Place
from pyproxy_lab.bench.shape import FRESH_POD, PORT, cluster_ip, endpoint_slice, pod_ip
from pyproxy_lab.cluster import kubeconfig
from pyproxy_lab.modes import NFTABLES
from pyproxy_lab.namespace import LabError
from pyproxy_lab.process import Agent
from pyproxy_lab.relay import relaying

from bench.hostile import SIZE
from bench.targets import held_against
from pyproxy.dataplane.nft.readback import read_element
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nftables.schema import ENDPOINTS, TABLE
from pyproxy.model.address import Family, Protocol, parse_address
from pyproxy.netlink.nfnetlink import Nfnetlink

_SERVERS = ("127.0.0.2", "127.0.0.3")
_TABLE = "bench-outage"
_PATIENCE = 150.0
_POLL = 0.005
_AWAY = 10.0
_DATA_BYTES = 100
"""Packets longer than this carry data, and not only a handshake or an acknowledgement."""


class _Outage(msgspec.Struct, frozen=True):
    """A verdict on packets of the server in use, or of both servers if `both`.

    `limit` is the promise of docs/concepts/reliability.md in seconds. The clock starts at the
    fault, when the change is written, or, if `ends`, at the end of a fault of 10 s. With `old_only`
    the fault concerns the connections that exist; with `kill` these end, as with the server's
    process.
    """

    verdict: str
    limit: float
    both: bool = False
    ends: bool = False
    old_only: bool = False
    kill: bool = False


# A dead peer is detected by keepalives, and one that acknowledges by 80 s of silence. The next
# request then takes its own time.
_KEEPALIVE, _SILENCE, _CONNECT, _HEAD, _ELSE = 35.0, 80.0, 4.0, 8.0, 1.0
_LONGEST_BACKOFF = 30.0
_REJECT = "tcp flags & (syn | ack) == syn reject with tcp reset"
_OUTAGES: Mapping[str, _Outage] = {
    "one of two ends, and rejects connections": _Outage(_REJECT, _CONNECT, kill=True),
    "one of two loses all packets": _Outage("drop", _KEEPALIVE + _CONNECT + _ELSE),
    "one of two accepts connections, and is silent": _Outage(
        f"meta length > {_DATA_BYTES} drop", _SILENCE + _HEAD + _ELSE
    ),
    "connections are half-open, new ones work": _Outage(
        "drop", _KEEPALIVE + _ELSE, both=True, old_only=True
    ),
    "the server ends, and is back after 10 s": _Outage(
        _REJECT, _LONGEST_BACKOFF, both=True, ends=True, kill=True
    ),
}


def print_outages(place: Place) -> bool:
    """Measure and print; return whether each promise holds. Raises LabError."""
    heading(f"{SIZE}, an outage of the API server, from the fault to a change in the kernel")
    met = True
    with _serving(place) as (api, agent):
        for number, (name, outage) in enumerate(_OUTAGES.items()):
            _change(api, agent, 2 * number)
            taken = _measure(api, agent, outage, 2 * number + 1)
            row(name, duration(taken), held_against(taken, outage.limit))
            met &= taken < outage.limit
    return met


def _measure(api: Cluster, agent: Agent, outage: _Outage, change: int) -> float:
    if not outage.ends:
        with _broken(outage):
            return _change(api, agent, change)
    with _broken(outage):
        time.sleep(_AWAY)
    return _change(api, agent, change)


def _change(api: Cluster, agent: Agent, change: int) -> float:
    """Write a change; return the seconds until the kernel has it. Raises LabError."""
    pod = FRESH_POD + change
    began = api.order(Order(put=[endpoint_slice(change, [pod])])).at
    key = frontend_key(parse_address(cluster_ip(change)), Protocol.TCP, PORT)
    key += struct.pack("=I", 0)
    wanted = bytes(parse_address(pod_ip(pod)))
    with closing(Nfnetlink()) as netlink:
        while time.monotonic() < began + _PATIENCE:
            value = read_element(netlink, TABLE, ENDPOINTS.of(Family.IPV4), key).get(key)
            if isinstance(value, bytes) and value[:4] == wanted:
                return time.monotonic() - began
            agent.require_alive()
            time.sleep(_POLL)
    raise LabError(f"the change is not in the kernel after {_PATIENCE:.0f} s")


@contextmanager
def _broken(outage: _Outage) -> Iterator[None]:
    # The agent stays with the server that an earlier outage made it use.
    connections = _connections()
    servers = ", ".join(_SERVERS if outage.both else sorted({host for _, host in connections}))
    ports = ", ".join(port for port, _ in connections)
    lines = [f"table ip {_TABLE} {{"]
    for hook, mine, theirs in (("output", "daddr", "sport"), ("input", "saddr", "dport")):
        match = f"tcp {theirs} {{ {ports} }}" if outage.old_only else "meta l4proto tcp"
        lines += [
            f"chain {hook} {{",
            f"type filter hook {hook} priority 0",
            f"ip {mine} {{ {servers} }} {match} {outage.verdict}",
            "}",
        ]
    _nft("\n".join([*lines, "}"]))
    try:
        if outage.kill:
            for server in _SERVERS:
                subprocess.run(["ss", "-K", "dst", server], capture_output=True, check=True)
        yield
    finally:
        _nft(f"delete table ip {_TABLE}")


def _connections() -> Sequence[tuple[str, str]]:
    """Return the agent's connections, each as its local port and the server's address."""
    command = ["ss", "-Htn", "state", "established"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    pairs = [line.split()[-2:] for line in found.stdout.splitlines()]
    return [
        (mine.rpartition(":")[2], peer.rpartition(":")[0])
        for mine, peer in pairs
        if peer.startswith(_SERVERS)
    ]


def _nft(text: str) -> None:
    done = subprocess.run(["nft", text], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"nft {text}: {done.stderr}")


@contextmanager
def _serving(place: Place) -> Iterator[tuple[Cluster, Agent]]:
    """Run the API server, a relay on each address, and the agent. Raises LabError."""
    with tempfile.TemporaryDirectory(prefix="pyproxy-bench-") as name, cluster.running(SIZE) as api:
        url = urlsplit(api.url)
        target = (url.hostname or "", url.port or 0)
        listeners = [socket.create_server((address, 0)) for address in _SERVERS]
        with relaying(listeners[0], target), relaying(listeners[1], target):
            places = [each.getsockname() for each in listeners]
            masters = ",".join(f"http://{host}:{port}" for host, port in places)
            folder = Path(name)
            config = folder / "kubeconfig"
            config.write_bytes(msgspec.json.encode(kubeconfig(api.url, "")))
            ours = parse(OURS, NFTABLES)
            ours = msgspec.structs.replace(ours, command=(*ours.command, "--master", masters))
            with ours.serving(place.node, config, folder / "log") as agent:
                with suppress(LabError):
                    _change(api, agent, len(_OUTAGES) * 2)
                yield api, agent
