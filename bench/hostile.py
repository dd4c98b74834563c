"""The latency of one change while others attack: from the API server's write to the kernel.

One agent serves a cluster. Changes come at a constant rate, whether or not earlier ones are done,
first alone and then during each attack by turns. The kernel is asked for the changed element, since
a listener of nf_tables' notifications would slow large commits.
"""

from __future__ import annotations

import http.client
import itertools
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import msgspec
from pyproxy_lab.bench import usage
from pyproxy_lab.bench.contestant import OURS, parse
from pyproxy_lab.bench.figures import Spread, duration, heading, mebibytes
from pyproxy_lab.bench.place import CLIENT_ADDRESS, Place
from pyproxy_lab.bench.shape import FRESH_POD, NODE_ADDRESS, PORT, Size, cluster_ip, pod_ip
from pyproxy_lab.cluster import kubeconfig
from pyproxy_lab.modes import NFTABLES
from pyproxy_lab.namespace import LabError
from pyproxy_lab.process import Agent, pipes

from bench import hostile_server
from bench.best_effort import Group, best_effort
from bench.hostile_objects import ATTACKS as OBJECTS
from bench.hostile_objects import FIRST
from bench.hostile_server import BOMB, ENDLESS, VICTIMS, Order, Server
from pyproxy.dataplane.nft.readback import read_element
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nftables.schema import ENDPOINTS, TABLE
from pyproxy.errors import PyproxyError, UsageError
from pyproxy.inspect.client import Client
from pyproxy.inspect.queries import STATUS, NoArgs
from pyproxy.model.address import Family, Protocol, parse_address
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import get_generation, read_generation

SIZE = Size(10_000, 10)
LIMIT = 0.25
"""Seconds that the p99 of a change must stay below in any attack."""

FACTOR = 4.0
"""How many times the p99 alone it must stay below, but for the giant object."""

_RATE = 30.0
_ALONE_SHARE = 4
"""How much shorter than an attack the time without one is, before each."""

_LEAD = 0.2
_QUIET = 1.0
"""Seconds without a sync after which the agent has nothing left to do."""

_POLL = 0.001
_HEALTH_POLL = 0.02
_PATIENCE = 90.0
_PROBE_PERIOD = 0.06
_PROBE_LIMIT = 1.0
_GIANT = "giant-service"
_PAGE_PORT, _HEALTH_PORT = 10_300, 10_256
_MORE_ADDRESSES = ("172.30.0.21", "172.30.0.22", "172.30.0.23")

_CLIENTS: Mapping[str, Sequence[str]] = {
    "idle-connections": (NODE_ADDRESS, str(_HEALTH_PORT)),
    "page-readers": (NODE_ADDRESS, str(_PAGE_PORT)),
    "askers": (),
    "affinity-fill": (cluster_ip(FIRST), "53"),
}
_ON_NODE = {"page-readers", "askers"}
"""Attacks by clients that are no pods; all others have the CPU weight of a BestEffort pod."""

NAMES = (*sorted({*OBJECTS, *_CLIENTS}), ENDLESS, BOMB)


class Probes:
    """A context manager: inside it /livez is asked for from the node, again and again."""

    def __init__(self) -> None:
        self.asked = self.answered = 0
        self._end = threading.Event()
        # Each probe has a thread, as kubelet's have: a late one does not delay the next.
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="probes")

    def __enter__(self) -> Probes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._end.wait(_PROBE_PERIOD):
            self.asked += 1
            self._threads.append(threading.Thread(target=self._ask))
            self._threads[-1].start()

    def _ask(self) -> None:
        began = time.monotonic()
        if _responds("/livez"):
            self.answered += time.monotonic() - began < _PROBE_LIMIT


def _responds(path: str) -> bool:
    """Return whether the health port returns 200 for a path, within a second."""
    try:
        with closing(
            http.client.HTTPConnection(NODE_ADDRESS, _HEALTH_PORT, timeout=_PROBE_LIMIT)
        ) as connection:
            connection.request("GET", path)
            return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False


class Kernel:
    """Finds when the kernel has the changed endpoint of each victim."""

    def __init__(self) -> None:
        self._netlink = Nfnetlink()
        self._set = ENDPOINTS.of(Family.IPV4)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def times(self, order: Order, late: Callable[[], float]) -> list[float]:
        """Return for each pod of an order when its victim had it, or a later one.

        Raises LabError if one is missing at the time that `late` returns.
        """
        at = [0.0] * len(order.pods)
        numbers = {_packed(pod): number for number, pod in enumerate(order.pods)}
        open_: dict[int, list[int]] = {}
        following, generation = 0, -1
        while open_ or following < len(order.pods):
            now = time.monotonic()
            while following < len(order.pods) and order.begin + following / order.rate <= now:
                open_.setdefault(order.victims + following % VICTIMS, []).append(following)
                following += 1
            current = read_generation(self._netlink.get(get_generation()))
            if current != generation:
                self._look(open_, numbers, at)
                generation = current
            if now > late():
                raise LabError(f"{sum(map(len, open_.values()))} changes are not in the kernel")
            time.sleep(_POLL)
        return at

    def _look(
        self, open_: dict[int, list[int]], numbers: Mapping[bytes, int], at: list[float]
    ) -> None:
        for victim in list(open_):
            key = frontend_key(parse_address(cluster_ip(victim)), Protocol.TCP, PORT)
            key += struct.pack("=I", 0)
            value = read_element(self._netlink, TABLE, self._set, key).get(key)
            found = numbers.get(value[:4], -1) if isinstance(value, bytes) else -1
            now = time.monotonic()
            for number in open_[victim]:
                if number <= found:
                    at[number] = now
            open_[victim] = [number for number in open_[victim] if number > found]
            if not open_[victim]:
                del open_[victim]


class Hostile:
    """One agent, its API server, and the changes that are timed."""

    def __init__(
        self, place: Place, size: Size, server: Server, socket: Path, agent: Agent, pods: Group
    ) -> None:
        self._place = place
        self.pods = pods
        self._size = size
        self._server = server
        self._socket = socket
        self._agent = agent
        self._client = Client(str(socket))
        self._fresh: Iterator[int] = itertools.count(FRESH_POD)

    def settle(self) -> None:
        """Wait until the agent has programmed everything, and writes no more. Raises LabError."""
        deadline = time.monotonic() + _PATIENCE
        before = -1
        while (syncs := self._syncs()) <= 0 or syncs != before:
            self._agent.require_alive()
            if time.monotonic() > deadline:
                raise LabError(f"the agent has not programmed all within {_PATIENCE:.0f} s")
            before = syncs
            time.sleep(_QUIET)

    def _syncs(self) -> int:
        """Return the number of syncs, 0 while changes are pending."""
        try:
            status = self._client.query(STATUS, NoArgs())
        except PyproxyError:  # not listening yet, or busy
            return 0
        return 0 if status.pending else status.syncs

    def latencies(self, seconds: float, attack: str = "") -> tuple[list[float], Probes, int]:
        """Return each change's seconds, the probes, and the attack's edits or requests."""
        count = int(seconds * _RATE)
        pods = list(itertools.islice(self._fresh, count))
        with ExitStack() as stack:
            done = stack.enter_context(self._clients(attack))
            order = Order(time.monotonic() + _LEAD, _RATE, pods, self._size.services, attack)
            with Probes() as probes, closing(Kernel()) as kernel:
                self._server.begin(order)
                ends = order.begin + seconds + _PATIENCE
                at = kernel.times(order, lambda: ends)
                written = self._server.finish()
        self._agent.require_alive()
        taken = [end - begin for begin, end in zip(written.at, at, strict=True)]
        return taken, probes, sum(done) + written.edits

    def stop(self) -> float:
        """End the agent by SIGTERM; return the seconds until it has ended."""
        began = time.monotonic()
        self._agent.stop()
        return time.monotonic() - began

    def start(self) -> float:
        """Start the agent; return the seconds until /healthz returns 200. Raises LabError."""
        began = time.monotonic()
        self._agent.start()
        while not _responds("/healthz"):
            self._agent.require_alive()
            if time.monotonic() - began > _PATIENCE:
                raise LabError(f"the agent is not healthy after {_PATIENCE:.0f} s")
            time.sleep(_HEALTH_POLL)
        return time.monotonic() - began

    def peak(self) -> int:
        """Return the most memory that the agent has had resident, in bytes."""
        return usage.memory(self._agent.pid, "VmHWM")

    @contextmanager
    def _clients(self, attack: str) -> Iterator[list[int]]:
        """Run an attack's clients, if it has any; afterwards the list has what they count."""
        done: list[int] = []
        words = (str(self._socket),) if attack == "askers" else _CLIENTS.get(attack)
        if words is None:
            yield done
            return
        where = self._place.node if attack in _ON_NODE else self._place.client
        command = [sys.executable, "-m", "bench.hostile_clients", attack, *words]
        with where.start(command, stdin=subprocess.PIPE, output=subprocess.PIPE) as process:
            if attack not in _ON_NODE:
                self.pods.add(process.pid)
            stdin, stdout = pipes(process)
            if stdout.readline() != b"ready\n":
                raise LabError(f"the attack {attack} has not started")
            try:
                yield done
            finally:
                stdin.close()
                done.append(int(stdout.readline() or 0))


def _packed(pod: int) -> bytes:
    return bytes(parse_address(pod_ip(pod)))


def chosen(names: Sequence[str]) -> Sequence[str]:
    """Return the attacks of these names, all without any. Raises UsageError."""
    for name in names:
        if name not in NAMES:
            raise UsageError(f"--hostile {name}: name one of {', '.join(NAMES)}")
    return names or NAMES


def print_hostile(place: Place, names: Sequence[str], size: Size, seconds: float) -> bool:
    """Measure each attack for so many seconds; return whether all limits are met.

    Raises LabError, UsageError.
    """
    names = chosen(names)
    place.node.ip([f"addr add {address}/24 dev pods" for address in _MORE_ADDRESSES])
    place.node.ip([f"route add 100.64.0.0/10 via {CLIENT_ADDRESS} dev client onlink"])
    with serving(place, size) as hostile:
        hostile.settle()
        heading(f"{size}, {_RATE:g} changes a second, API write to kernel, alone and attacked")
        alone, probes, _ = hostile.latencies(seconds)
        print(_line("alone", Spread(alone), probes), flush=True)
        met = True
        for name in names:
            hostile.settle()
            again, _, _ = hostile.latencies(seconds / _ALONE_SHARE)
            alone += again
            found, probes, count = hostile.latencies(seconds, name)
            spread, base = Spread(found), Spread(alone).p99
            limit = LIMIT if name == _GIANT else min(LIMIT, FACTOR * base)
            good = spread.p99 < limit and probes.answered == probes.asked
            verdict = f"{spread.p99 / base:5.1f} x alone, {'within' if good else 'BEYOND'} limits"
            print(_line(name, spread, probes), verdict, f"({count:,})", flush=True)
            met &= good
        print(f"  the agent's memory at its peak: {mebibytes(hostile.peak())}")
        print(f"  limits: p99 below {duration(LIMIT)}, and below {FACTOR:g} x the p99 alone in all")
        print("  but the giant Service; each probe of /livez answered within a second")
        print(f"  the CPU weight of attackers that are pods: {hostile.pods.weight}")
        return met


def _line(name: str, spread: Spread, probes: Probes) -> str:
    figures = (spread.median, spread.p99, spread.worst)
    times = " ".join(f"{duration(each):>10}" for each in figures)
    return f"  {name:<22} {times}  /livez {probes.answered} of {probes.asked} "


@contextmanager
def serving(place: Place, size: Size) -> Iterator[Hostile]:
    """Run the API server and the agent on the node. Raises LabError."""
    with (
        tempfile.TemporaryDirectory(prefix="pyproxy-bench-") as name,
        best_effort() as pods,
        hostile_server.running(size) as server,
    ):
        folder = Path(name)
        config, socket = folder / "kubeconfig", folder / "socket"
        config.write_bytes(msgspec.json.encode(kubeconfig(server.url, "")))
        ours = parse(OURS, NFTABLES)
        flags = (
            *("--inspect-socket", str(socket)),
            *("--ui-bind-address", f"{NODE_ADDRESS}:{_PAGE_PORT}"),
        )
        contestant = msgspec.structs.replace(ours, command=(*ours.command, *flags))
        with contestant.serving(place.node, config, folder / "log") as agent:
            yield Hostile(place, size, server, socket, agent, pods)
