"""A node of a small cluster with its agent, and what a test does to it and asks of it."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyproxy.cli import main
from pyproxy.inspect.client import Client
from pyproxy.inspect.endpoint import Nothing
from pyproxy.inspect.status import STATUS
from pyproxy.lab.client import ENDPOINT_SLICES, SERVICES, ApiClient, collection
from pyproxy.lab.cluster import Cluster
from pyproxy.lab.process import Agent

Object = dict[str, Any]
SITE = "na"
NODE = "node-a"
NAMESPACE = "shop"
DEADLINE = 15.0


class Answer:
    """What a command said, and its exit status."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class InspectedNode:
    """One agent, asked by commands that run in its network namespace."""

    def __init__(self, cluster: Cluster, agent: Agent) -> None:
        self.cluster = cluster
        self.api: ApiClient = cluster.client
        self.agent = agent
        self.socket = str(cluster.folder / f"{SITE}.sock")
        self.client = Client(self.socket)
        self._made: list[str] = []

    def command(self, *words: str) -> Answer:
        """Run a command on the node, to its end."""
        flags = ("--inspect-socket", self.socket, "--hostname-override", NODE)
        out, err = io.StringIO(), io.StringIO()

        def run() -> int:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                return main([*words, *flags])

        status = self.cluster.network.namespace(SITE).call(run)
        return Answer(status, out.getvalue(), err.getvalue())

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            self.agent.require_alive()
            assert time.monotonic() < deadline, f"not within {DEADLINE} s: {what}"
            time.sleep(0.01)

    def settled(self) -> None:
        """Wait until the agent has programmed what it has heard of, with the API's last word."""

        def done() -> bool:
            status = self.client.ask(STATUS, Nothing())
            return status.syncs > 0 and status.pending == 0

        self.until(done, "the agent has nothing to do")

    def create(self, *objects: Object) -> None:
        """Write objects, and wait until the agent has programmed them."""
        for obj in objects:
            kind = SERVICES if obj["kind"] == "Service" else ENDPOINT_SLICES
            path = collection(NAMESPACE, kind)
            self.api.create(path, obj)
            self._made.insert(0, f"{path}/{obj['metadata']['name']}")

    def forget(self) -> None:
        """Delete what was created."""
        for path in self._made:
            self.api.delete(path)
        self._made.clear()


@contextmanager
def inspected_node() -> Iterator[InspectedNode]:
    """Run a cluster with an agent on its first node."""
    with Cluster() as cluster, cluster.agent(SITE) as agent:
        node = InspectedNode(cluster, agent)
        node.until(lambda: _answers(node), "the agent answers")
        node.settled()
        yield node


def _answers(node: InspectedNode) -> bool:
    try:
        node.client.ask(STATUS, Nothing())
    except Exception:
        return False
    return True
