"""Run the plugin in this process, and simulate the nodes that it asks."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from pyproxy_lab.apiserver.exec import STDERR, STDOUT, Request, StartError, Streams
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.cluster import kubeconfig

from pyproxy.kubectl.main import main

Object = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """Exit status, stdout and stderr of the plugin."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(*words: str, terminal: bool = False) -> Result:
    """Run the plugin to its end; `terminal` makes its stderr one."""
    out, err = io.StringIO(), Terminal() if terminal else io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(words))
    return Result(status, out.getvalue(), err.getvalue())


@dataclass
class Reply:
    """The reaction of a simulated node to a command: wait, write, and end."""

    output: bytes = b""
    errors: bytes = b""
    status: int = 0
    hangs: bool = False
    after: int = 0
    """Commands on other nodes that end before this one."""
    fails: str = ""
    repeat: int = 1


def status_reply(on: str, **fields: Any) -> Reply:
    """The answer of a healthy agent to `pyproxy status`, with some fields replaced."""
    answer = {
        "version": "0.1.0", "mode": "nftables", "node": on, "zone": "", "health": "healthy",
        "healthy": True, "sourceAge": 2.5, "services": 100, "pending": 0, "repairs": 0,
        "invalid": [], "tables": [{"name": "affinity4", "used": 0, "limit": 262144}],
    }  # fmt: skip
    return Reply(json.dumps(answer | fields).encode())


@dataclass
class Nodes:
    """Simulated nodes, by name; a missing reply is that of a healthy agent."""

    server: ApiServer
    path: Path
    replies: dict[str, Reply] = field(default_factory=dict)
    commands: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    containers: set[str] = field(default_factory=set)
    ended: int = 0

    def run(self, *words: str, terminal: bool = False) -> Result:
        return run(*words, "--kubeconfig", str(self.path), terminal=terminal)

    def run_until(self, text: str, *words: str) -> Result:
        """Run with --timeout 1, and with longer ones until the output has a text.

        Nodes that hang cost the whole timeout, and others may need more than 1 s of a busy machine.
        """
        for timeout in ("1", "5", "60"):
            found = self.run(*words, "--timeout", timeout)
            if text in found.out:
                break
        return found

    async def play(self, request: Request, streams: Streams) -> int:
        node = request.pod["spec"]["nodeName"]
        self.containers.add(request.container)
        self.commands.append((node, request.command))
        reply = self.replies.get(node) or status_reply(node)
        try:
            return await self._play(reply, streams)
        finally:
            self.ended += 1

    async def _play(self, reply: Reply, streams: Streams) -> int:
        if reply.hangs:
            await asyncio.sleep(3600)
        while self.ended < reply.after:
            await asyncio.sleep(0.05)
        if reply.fails:
            raise StartError(reply.fails)
        for _ in range(reply.repeat):
            await streams.write(STDOUT, reply.output)
        await streams.write(STDERR, reply.errors)
        return reply.status


@contextmanager
def simulated(
    folder: Path, names: Sequence[str], settings: Settings | None = None
) -> Iterator[Nodes]:
    """Run an API server with nodes and the pods of their agents."""
    settings = settings or Settings()
    with ApiServer.running(settings) as server:
        server.load([node(each) for each in names])
        server.load([pod(each) for each in names])
        path = folder / "kubeconfig"
        path.write_bytes(msgspec.json.encode(kubeconfig(server.url, settings.proxy_token)))
        nodes = Nodes(server, path)
        server.exec.runner = nodes.play
        yield nodes


def node(name: str, *, ready: bool = True, labels: Mapping[str, str] | None = None) -> Object:
    condition = {"type": "Ready", "status": str(ready)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": dict(labels or {"kubernetes.io/os": "linux"})},
        "status": {"conditions": [condition]},
    }


def pod(on: str, name: str = "", labels: Mapping[str, str] | None = None, **status: Any) -> Object:
    """The pod of an agent, running and ready unless `status` says otherwise."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name or f"pyproxy-{on}",
            "namespace": "kube-system",
            "labels": dict(labels or {"app.kubernetes.io/name": "pyproxy"}),
        },
        "spec": {"nodeName": on, "containers": [{"name": "pyproxy", "image": "pyproxy:0.1.0"}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            **status,
        },
    }
