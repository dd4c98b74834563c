"""A kubelet in miniature for all nodes of the lab: it runs the commands of pods that the API has.

A pod on a node gets a network namespace there, or the node's own with hostNetwork, in which the
command of its first container runs. Its readiness is that of its tcpSocket probe. There are no
images, volumes, limits or restarts. Pods without a command are those of other programs.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from pyproxy_lab.apiserver.exec import ExecHandler, Request, StartError, Streams
from pyproxy_lab.client import ApiClient, ApiError, JsonObject
from pyproxy_lab.namespace import LabError, Namespace
from pyproxy_lab.network import Network
from pyproxy_lab.node_exec import run_command
from pyproxy_lab.topology import Addresses, Site, numbered_pod

log = logging.getLogger(__name__)

_PERIOD = 0.1
"""Seconds between two reads of the pods."""

_FIRST_HOST = 100
"""The host part of the first pod's address; a topology's own pods are below."""

_HOSTS = 150
_PROBE_TIMEOUT = 0.5

Name = tuple[str, str]
"""A pod's namespace and name."""


class _Running(NamedTuple):
    """A pod whose command runs; `wired` is its name in the network, empty with hostNetwork."""

    uid: str
    wired: str
    namespace: Namespace
    addresses: Addresses
    process: subprocess.Popen[bytes]


class PodRunner:
    """Follows the API, and runs pods, in a thread of its own; also runs exec in them."""

    def __init__(self, client: ApiClient, network: Network, below: ExecHandler) -> None:
        self._client = client
        self._network = network
        self._others = below.runner
        self._sites = {site.node: site for site in network.topology.sites}
        self._pods: dict[Name, _Running] = {}
        self._reported: dict[Name, tuple[str, bool]] = {}
        self._numbers = itertools.count()
        self._stopped = threading.Event()

    @classmethod
    @contextlib.contextmanager
    def running(
        cls, client: ApiClient, network: Network, exec_: ExecHandler
    ) -> Iterator[PodRunner]:
        """Run pods until the block ends, and end all of them then."""
        runner = cls(client, network, exec_)
        before, exec_.runner = exec_.runner, runner.exec
        thread = threading.Thread(target=runner.run, name="pod-runner", daemon=True)
        thread.start()
        try:
            yield runner
        finally:
            runner.stop()
            thread.join()
            exec_.runner = before

    def run(self) -> None:
        """Follow the API until `stop`."""
        while not self._stopped.wait(_PERIOD):
            try:
                self._sync()
            except LabError as error:
                # The next read has a newer state, as after a request of a real kubelet that failed.
                log.debug("pods: %s: trying again", error)
        for name in list(self._pods):
            self._end(name)

    def stop(self) -> None:
        """End `run`."""
        self._stopped.set()

    async def exec(self, request: Request, streams: Streams) -> int:
        """Run a command in a pod. Raises StartError."""
        meta = request.pod["metadata"]
        running = self._pods.get((meta["namespace"], meta["name"]))
        if running is None:
            if self._others is None:
                raise StartError(f"container not found ({request.container!r})")
            return await self._others(request, streams)
        command = ("ip", "netns", "exec", running.namespace.name, *request.command)
        return await run_command(command, streams)

    def _sync(self) -> None:
        found = {
            (pod["metadata"]["namespace"], pod["metadata"]["name"]): pod
            for pod in self._client.get("/api/v1/pods")["items"]
            if pod["spec"].get("nodeName") in self._sites
            and pod["spec"]["containers"][0].get("command")
        }
        for name, running in list(self._pods.items()):
            pod = found.get(name)
            if pod is None or pod["metadata"]["uid"] != running.uid:
                self._end(name)
        for name, pod in found.items():
            if name not in self._pods:
                self._start(name, pod)
            elif pod["metadata"].get("deletionTimestamp"):
                self._terminate(name, pod)
            else:
                self._report(name, pod)

    def _start(self, name: Name, pod: JsonObject) -> None:
        site = self._sites[pod["spec"]["nodeName"]]
        wired, addresses = "", site.addresses
        if not pod["spec"].get("hostNetwork"):
            wired, addresses = self._wire(site)
        namespace = self._network.namespace(wired or site.name)
        command = pod["spec"]["containers"][0]["command"]
        process = namespace.start(command, output=subprocess.DEVNULL)
        self._pods[name] = _Running(
            pod["metadata"]["uid"], wired, namespace, addresses, process
        )  # fmt: skip

    def _wire(self, site: Site) -> tuple[str, Addresses]:
        number = next(self._numbers)
        order = self._network.topology.sites.index(site) + 1
        made = numbered_pod(f"k{number}", order, _FIRST_HOST + number % _HOSTS, ())
        self._network.wire_pod(made)
        return made.name, made.addresses

    def _report(self, name: Name, pod: JsonObject) -> None:
        """Write the pod's status if it has changed."""
        running = self._pods[name]
        ended = running.process.poll() is not None
        phase = "Failed" if ended else "Running"
        now = phase, not ended and self._is_ready(pod, running)
        if self._reported.get(name) == now:
            return
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        condition = {"type": "Ready", "status": str(now[1]), "lastTransitionTime": since}
        status = {
            "phase": phase,
            "podIPs": [
                {"ip": address} for address in self._network.topology.used(running.addresses)
            ],
            "hostIP": self._sites[pod["spec"]["nodeName"]].addresses.ipv4,
            "conditions": [condition],
        }
        self._client.patch(f"{_path(name)}/status", {"status": status})
        self._reported[name] = now

    def _is_ready(self, pod: JsonObject, running: _Running) -> bool:
        check = pod["spec"]["containers"][0].get("readinessProbe")
        if not check:
            return True
        port = check["tcpSocket"]["port"]
        # A kubelet probes from its node.
        node = self._network.namespace(self._sites[pod["spec"]["nodeName"]].name)
        return node.call(partial(_accepts, running.addresses.ipv4, port))

    def _terminate(self, name: Name, pod: JsonObject) -> None:
        """Send SIGTERM, SIGKILL after the grace period, and delete the object of a dead pod."""
        running = self._pods[name]
        if self._reported.get(name) != ("Terminating", False):
            self._reported[name] = ("Terminating", False)
            _kill(running, signal.SIGTERM)
            grace = pod["metadata"].get("deletionGracePeriodSeconds", 0)
            killer = threading.Timer(grace, _kill, (running, signal.SIGKILL))
            killer.daemon = True
            killer.start()
        if running.process.poll() is not None:
            with contextlib.suppress(ApiError):
                self._client.delete(_path(name), now=True)
            self._end(name)

    def _end(self, name: Name) -> None:
        running = self._pods.pop(name)
        self._reported.pop(name, None)
        _kill(running, signal.SIGKILL)
        running.process.wait()
        if running.wired:
            self._network.unwire_pod(running.wired)


def _accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), _PROBE_TIMEOUT).close()
    except OSError:
        return False
    return True


def _kill(running: _Running, number: int) -> None:
    if running.process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.process.pid, number)


def _path(name: Name) -> str:
    return f"/api/v1/namespaces/{name[0]}/pods/{name[1]}"
