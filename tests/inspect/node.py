"""A node of a small cluster with its agent, and what a test does to it and asks of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyproxy_lab.client import ENDPOINT_SLICES, ApiClient, collection
from pyproxy_lab.client import SERVICES as SERVICES_PATH
from pyproxy_lab.cluster import Cluster
from pyproxy_lab.process import Agent

from pyproxy.cli import main
from pyproxy.commands.asker import kernel
from pyproxy.errors import UsageError
from pyproxy.inspect.client import Client
from pyproxy.inspect.desired import DESIRED
from pyproxy.inspect.query import Nothing
from pyproxy.inspect.services import SERVICES, Which
from pyproxy.inspect.status import STATUS
from tests.agent.live import endpoint_slice, service
from tests.waiting import until

Object = dict[str, Any]
SITE = "na"
NODE = "node-a"
NAMESPACE = "shop"


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
        self._markers = 0

    def command(self, *words: str) -> Answer:
        """Run a command that asks the agent, to its end."""
        return self.run(*words, "--inspect-socket", self.socket, "--hostname-override", NODE)

    def run(self, *words: str) -> Answer:
        """Run a command on the node, to its end."""
        out, err = io.StringIO(), io.StringIO()

        def run() -> int:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                return main(list(words))

        status = self.cluster.network.namespace(SITE).call(run)
        return Answer(status, out.getvalue(), err.getvalue())

    def alone(self, *words: str) -> Answer:
        """Run a command as it is where no agent answers."""
        return self.command(
            *words,
            "--no-agent",
            *("--kubeconfig", str(self.cluster.folder / "kubeconfig")),
            *("--cluster-cidr", "10.244.0.0/16,fd10::/16"),
        )

    def until(self, condition: Callable[[], object], what: str) -> None:
        def checked() -> object:
            self.agent.require_alive()
            return condition()

        until(checked, what)

    def written_by_looking(self) -> int:
        """Read the kernel as `diff` does; the messages, or lines, that were written for it."""
        desired = self.client.ask(DESIRED, Nothing())

        def look() -> int:
            with kernel(desired.settings) as dataplane:
                dataplane.plan_full(desired.routings, desired.node)
                return dataplane.messages_sent

        return self.cluster.network.namespace(SITE).call(look)

    def nft(self, words: str) -> str:
        """Run nft on the node."""
        return self.cluster.network.namespace(SITE).run(["nft", *words.split()]).stdout

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the agent's decisions waiting, so that what is changed by hand stays for a while."""
        os.kill(self.agent.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.agent.pid, signal.SIGCONT)

    def repaired(self) -> None:
        """Wait until the agent has noticed and put right what was changed."""
        self.until(lambda: self.command("diff").status == 0, "nothing differs")

    def settled(self) -> None:
        """Wait until the agent has programmed what it has heard of, with the API's last word."""

        def done() -> bool:
            status = self.client.ask(STATUS, Nothing())
            return status.syncs > 0 and status.pending == 0

        self.until(done, "the agent has nothing to do")

    def create(self, *objects: Object) -> None:
        """Write objects, and wait until the agent has programmed them."""
        for obj in objects:
            self._create(obj)
        self.heard()

    def replace(self, *objects: Object) -> None:
        """Write objects over those that are there, and wait for the agent."""
        for obj in objects:
            self.api.replace(self.path(obj), obj)
        self.heard()

    def heard(self) -> None:
        """Wait until the agent has programmed all that the API has.

        Each kind is watched in order, so a last object of each tells.
        """
        self._markers += 1
        name = f"marker-{self._markers}"
        made = [service(name, f"10.96.200.{self._markers}"), endpoint_slice(name, ["10.244.2.12"])]
        for obj in made:
            self.api.create(self.path(obj).rpartition("/")[0], obj)

        def used() -> bool:
            try:
                found = self.client.ask(SERVICES, Which(f"{NAMESPACE}/{name}"))
            except UsageError:
                return False
            return any(b.used_by for p in found.services[0].ports for b in p.backends)

        self.until(used, "the agent has heard of everything")
        for obj in made:
            self.api.delete(self.path(obj))

        def gone() -> bool:
            desired = self.client.ask(DESIRED, Nothing())
            return not any(routing.name.name == name for routing in desired.routings)

        self.until(gone, "the agent has heard that the marker is gone")

    def _create(self, obj: Object) -> None:
        path = self.path(obj)
        self.api.create(path.rpartition("/")[0], obj)
        self._made.insert(0, path)

    @staticmethod
    def path(obj: Object) -> str:
        kind = SERVICES_PATH if obj["kind"] == "Service" else ENDPOINT_SLICES
        return f"{collection(NAMESPACE, kind)}/{obj['metadata']['name']}"

    def forget(self) -> None:
        """Delete what was created."""
        for path in self._made:
            self.api.delete(path)
        self._made.clear()


@contextmanager
def inspected_node(*flags: str) -> Iterator[InspectedNode]:
    """Run a cluster with an agent on its first node."""
    with Cluster() as cluster, cluster.agent(SITE, flags=flags) as agent:
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        cluster.client.ensure("/api/v1/namespaces", space)
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
