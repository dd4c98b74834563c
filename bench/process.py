"""The agent as a process, seen from outside: /proc, its metrics, and what the kernel tells."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from bench.figures import Spread
from bench.objects import NODE_NAME, POD_NETWORK, PORT, Size, cluster_ip, endpoint_slice, slice_path
from pyproxy.lab.client import ApiClient
from pyproxy.lab.cluster import kubeconfig
from pyproxy.lab.namespace import LabError

PATIENCE = 60.0
METRICS = "http://127.0.0.1:10249/metrics"

_FULL_SYNC = "kubeproxy_sync_full_proxy_rules_duration_seconds_sum"

_PYPROXY = (sys.executable, "-m", "pyproxy")
_TRY = 0.02
_NETLINK_NETFILTER = 12
_GROUP_NFTABLES = 7
_NEW_GENERATION = 10 << 8 | 15
_TICKS = os.sysconf("SC_CLK_TCK")


class Start(msgspec.Struct, frozen=True):
    """One start: seconds, seconds, seconds, bytes.

    `first_answer` is from the start of the process to the first connection to a Service's address
    that a pod took. `first_sync` is what the agent says of its first sync: it begins when the
    agent's thread has heard that all lists are whole, and ends with the kernel's acknowledgement.
    `cpu` is what the process has used by then, and `peak` is the most memory it has had resident.
    """

    first_answer: float
    first_sync: float
    cpu: float
    peak: int


class Observed(msgspec.Struct, frozen=True):
    """A start, and the changes that followed; times in seconds, memory in bytes.

    `written` are, for each change, the time from the request to the API to the kernel's word that
    a transaction was committed; `read_to_kernel` is the agent's mean of the part that is its own.
    `steady` is the memory that is resident once the changes are done.
    """

    start: Start
    written: Spread
    read_to_kernel: float
    change_cpu: float
    steady: int


def observe(url: str, size: Size, changes: int, folder: Path) -> Observed:
    """Start the agent, wait until it serves, change slices one at a time, end it, clean up."""
    path = folder / "kubeconfig"
    path.write_bytes(msgspec.json.encode(kubeconfig(url, "")))
    began = time.perf_counter()
    with _agent(path, folder / "agent.log") as agent:
        answered = _first_answer(agent) - began
        _await_first_sync(agent)
        at_first, first_cpu = _metrics(), _cpu(agent.pid)
        written = _change(ApiClient(url), size, changes)
        at_last, last_cpu = _metrics(), _cpu(agent.pid)
        memory = _memory(agent.pid)
    return Observed(
        start=Start(answered, at_first[_FULL_SYNC], first_cpu, memory["VmHWM"]),
        written=Spread(written),
        read_to_kernel=_grown(at_first, at_last, "_sum") / _grown(at_first, at_last, "_count"),
        change_cpu=(last_cpu - first_cpu) / changes,
        steady=memory["VmRSS"],
    )


def _grown(before: dict[str, float], after: dict[str, float], part: str) -> float:
    metric = f"pyproxy_change_to_kernel_seconds{part}"
    return after[metric] - before[metric]


@contextmanager
def _agent(kubeconfig_path: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        *_PYPROXY,
        "run",
        *("--hostname-override", NODE_NAME),
        *("--cluster-cidr", POD_NETWORK),
        *("--kubeconfig", str(kubeconfig_path)),
    ]
    with log.open("wb") as output:
        agent = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield agent
        if agent.poll() is not None:
            raise LabError(f"the agent has ended: {log.read_text().splitlines()[-3:]}")
    finally:
        agent.terminate()
        agent.wait(PATIENCE)
        # The next one is to find an empty kernel.
        subprocess.run([*_PYPROXY, "cleanup"], check=True)


def _first_answer(agent: subprocess.Popen[bytes]) -> float:
    deadline = time.perf_counter() + PATIENCE
    while time.perf_counter() < deadline and agent.poll() is None:
        try:
            with closing(socket.create_connection((cluster_ip(0), PORT), _TRY)):
                return time.perf_counter()
        except OSError:
            continue
    raise LabError("the agent has not served anything")


def _await_first_sync(agent: subprocess.Popen[bytes]) -> None:
    # Its measures are taken after the commit that has just been felt.
    deadline = time.perf_counter() + PATIENCE
    while time.perf_counter() < deadline and agent.poll() is None:
        if _metrics().get("kubeproxy_sync_full_proxy_rules_duration_seconds_count"):
            return
        time.sleep(_TRY)
    raise LabError("the agent's first sync has not ended")


def _change(client: ApiClient, size: Size, changes: int) -> list[float]:
    seconds = []
    with closing(_commits()) as commits:
        for number in range(changes):
            which = number // 2 % size.services
            now = endpoint_slice(which, size.endpoints)["endpoints"][
                : -1 if number % 2 == 0 else None
            ]
            began = time.perf_counter()
            commits_at = _patched(client, slice_path(which), {"endpoints": now}, commits)
            seconds.append(commits_at - began)
    return seconds


def _patched(
    client: ApiClient, path: str, changes: dict[str, Any], commits: socket.socket
) -> float:
    client.patch(path, changes)
    deadline = time.perf_counter() + PATIENCE
    while time.perf_counter() < deadline:
        ready, _, _ = select.select([commits], [], [], 1.0)
        if ready and _ends_commit(commits.recv(1 << 18)):
            return time.perf_counter()
    raise LabError(f"the kernel has not been told of a change of {path}")


def _commits() -> socket.socket:
    """Open a socket on which the kernel tells of every change of nf_tables."""
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    listener.bind((0, 1 << (_GROUP_NFTABLES - 1)))
    return listener


def _ends_commit(data: bytes) -> bool:
    offset = 0
    while offset + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        if kind == _NEW_GENERATION:
            return True
        offset += (length + 3) & ~3
    return False


def _metrics() -> dict[str, float]:
    """Read the agent's metrics; of those by family, IPv4's."""
    try:
        with urllib.request.urlopen(METRICS, timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels in ({}, {"ip_family": "IPv4"})
    }


def _memory(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.startswith("Vm"))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in fields}


def _cpu(pid: int) -> float:
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS
