"""Probes of containers: what a manifest says, as values, and how one is made."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import Any

import msgspec

from pyproxy_lab.client import JsonObject
from pyproxy_lab.namespace import Namespace

READY, LIVE = "pyproxy-lab/ready", "pyproxy-lab/live"
"""Annotations of a pod: with the value "false" its readiness or its liveness probes fail."""

_OK = range(200, 400)
_LARGEST_ANSWER = 4096


class Probe(msgspec.Struct, frozen=True):
    """A probe; times are in seconds. `port` is a number, `command` is of an exec probe."""

    period: float = 1.0
    delay: float = 0.0
    timeout: float = 1.0
    failures: int = 3
    successes: int = 1
    port: int = 0
    path: str = ""
    command: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is probed, so that it succeeds."""
        return not self.port and not self.command


class Outcome(msgspec.Struct):
    """The results of a probe so far; `passing` is what they add up to."""

    passing: bool
    streak: int = 0

    def add(self, succeeded: bool, probe: Probe) -> None:
        """Count a result: as many in a row as the probe's threshold change the sum."""
        if succeeded == self.passing:
            self.streak = 0
            return
        self.streak += 1
        if self.streak >= (probe.successes if succeeded else probe.failures):
            self.passing, self.streak = succeeded, 0


def parse(container: JsonObject, kind: str) -> Probe:
    """Read a container's readinessProbe or livenessProbe; gRPC probes are not made."""
    found = container.get(kind) or {}
    http, tcp, command = (found.get(name) or {} for name in ("httpGet", "tcpSocket", "exec"))
    return Probe(
        period=float(found.get("periodSeconds") or 10),
        delay=float(found.get("initialDelaySeconds") or 0),
        timeout=float(found.get("timeoutSeconds") or 1),
        failures=found.get("failureThreshold") or 3,
        successes=found.get("successThreshold") or 1,
        port=_port(container, http.get("port") or tcp.get("port") or 0),
        path=http.get("path") or ("/" if http else ""),
        command=tuple(command.get("command") or ()),
    )


def forced(pod: JsonObject, annotation: str) -> bool:
    """Return whether an annotation makes a pod's probes fail."""
    annotations = pod["metadata"].get("annotations") or {}
    return str(annotations.get(annotation, "")).lower() == "false"


async def connect(node: Namespace, address: str, probe: Probe) -> str:
    """Make an httpGet or tcpSocket probe from a node; return why it failed, empty for success."""
    try:
        async with asyncio.timeout(probe.timeout):
            reader, writer = await open_in(node, address, probe.port)
            try:
                return await _get(reader, writer, address, probe) if probe.path else ""
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        reason = getattr(error, "strerror", None) or "timeout"
        return f"dial tcp {address}:{probe.port}: {reason}"


async def open_in(
    namespace: Namespace, address: str, port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to an address from inside a network namespace. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = await asyncio.to_thread(namespace.call, partial(socket.socket, family))
    try:
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, (address, port))
        return await asyncio.open_connection(sock=made)
    except BaseException:
        made.close()
        raise


async def _get(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str, probe: Probe
) -> str:
    host = f"[{address}]" if ":" in address else address
    writer.write(
        f"GET {probe.path} HTTP/1.1\r\nHost: {host}:{probe.port}\r\nUser-Agent: kube-probe/1.36\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    line = (await reader.read(_LARGEST_ANSWER)).partition(b"\r\n")[0].split()
    code = int(line[1]) if len(line) > 1 and line[1].isdigit() else 0
    return "" if code in _OK else f"HTTP probe failed with statuscode: {code}"


def _port(container: JsonObject, port: Any) -> int:
    if isinstance(port, int):
        return port
    for each in container.get("ports") or ():
        if each.get("name") == port:
            return int(each["containerPort"])
    return int(port) if str(port).isdigit() else 0
