"""A node of a lab cluster with an agent, for tests of the inspection commands."""

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
from pyproxy.errors import UsageError
from pyproxy.inspect.client import Client
from pyproxy.inspect.kernel_facts import kernel
from pyproxy.inspect.queries import DESIRED, SERVICES, STATUS, NoArgs, ServicesArgs
from tests.agent.live import endpoint_slice, service
from tests.waiting import until

Object = dict[str, Any]
SITE = "na"
NODE = "node-a"
NAMESPACE = "shop"
ENOUGH = 64
"""Connections of which one goes to each of four endpoints, but for one time in 10^8."""


class CommandResult:
    """Exit status, stdout and stderr of a command."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class InspectedNode:
    """One agent; its commands run in the network namespace of its node."""

    def __init__(self, cluster: Cluster, agent: Agent) -> None:
        self.cluster = cluster
        self.api: ApiClient = cluster.client
        self.agent = agent
        self.socket = str(cluster.folder / f"{SITE}.sock")
        self.client = Client(self.socket)
        self._created: list[str] = []
        self._markers = 0

    def command(self, *words: str) -> CommandResult:
        """Run a command that queries the agent, and wait for its end."""
        return self.run(*words, "--inspect-socket", self.socket, "--hostname-override", NODE)

    def run(self, *words: str) -> CommandResult:
        """Run a command on the node, and wait for its end."""
        out, err = io.StringIO(), io.StringIO()

        def run() -> int:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                return main(list(words))

        status = self.cluster.network.namespace(SITE).call(run)
        return CommandResult(status, out.getvalue(), err.getvalue())

    def without_agent(self, *words: str) -> CommandResult:
        """Run a command that reads API server and kernel instead of the agent."""
        return self.command(
            *words,
            "--no-agent",
            *("--kubeconfig", str(self.cluster.folder / "kubeconfig")),
            *("--cluster-cidr", "10.244.0.0/16,fd10::/16"),
        )

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a condition holds; fail at once where the agent has ended."""

        def checked() -> object:
            self.agent.require_alive()
            return condition()

        until(checked, what)

    def messages_written_by_reading(self) -> int:
        """Read the kernel as `diff` does; return the number of messages sent meanwhile."""
        desired = self.client.query(DESIRED, NoArgs())

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
        """Stop the agent, so that it does not repair drift meanwhile."""
        os.kill(self.agent.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.agent.pid, signal.SIGCONT)

    def wait_repaired(self) -> None:
        """Wait until the agent has repaired all drift."""
        self.until(lambda: self.command("diff").status == 0, "the agent repairs the drift")

    def wait_synced(self) -> None:
        """Wait until the agent has synced and no Service is pending."""

        def done() -> bool:
            status = self.client.query(STATUS, NoArgs())
            return status.syncs > 0 and status.pending == 0

        self.until(done, "the agent syncs")

    def create(self, *objects: Object) -> None:
        """Create objects, and wait until the agent has programmed them."""
        for obj in objects:
            self._create(obj)
        self.wait_programmed()

    def replace(self, *objects: Object) -> None:
        """Replace objects, and wait until the agent has programmed them."""
        for obj in objects:
            self.api.replace(self.path(obj), obj)
        self.wait_programmed()

    def wait_programmed(self) -> None:
        """Wait until the agent has programmed all objects of the API server.

        Each kind is watched in order, so a marker of each kind that is created last and programmed
        shows that all objects before it are programmed too.
        """
        self._markers += 1
        name = f"marker-{self._markers}"
        made = [service(name, f"10.96.200.{self._markers}"), endpoint_slice(name, ["10.244.2.12"])]
        for obj in made:
            self.api.create(self.path(obj).rpartition("/")[0], obj)

        def used() -> bool:
            try:
                found = self.client.query(SERVICES, ServicesArgs(f"{NAMESPACE}/{name}"))
            except UsageError:
                return False
            return any(e.used_by for p in found.services[0].ports for e in p.endpoints)

        self.until(used, "the agent programs the marker")
        for obj in made:
            self.api.delete(self.path(obj))

        def gone() -> bool:
            desired = self.client.query(DESIRED, NoArgs())
            return not any(routing.name.name == name for routing in desired.routings)

        self.until(gone, "the agent removes the marker")

    def _create(self, obj: Object) -> None:
        path = self.path(obj)
        self.api.create(path.rpartition("/")[0], obj)
        self._created.insert(0, path)

    @staticmethod
    def path(obj: Object) -> str:
        kind = SERVICES_PATH if obj["kind"] == "Service" else ENDPOINT_SLICES
        return f"{collection(NAMESPACE, kind)}/{obj['metadata']['name']}"

    def delete_created(self) -> None:
        """Delete all created objects."""
        for path in self._created:
            self.api.delete(path)
        self._created.clear()


@contextmanager
def inspected_node(*flags: str) -> Iterator[InspectedNode]:
    """Run a cluster with an agent on its first node."""
    with Cluster() as cluster, cluster.agent(SITE, flags=flags) as agent:
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        cluster.client.ensure("/api/v1/namespaces", space)
        node = InspectedNode(cluster, agent)
        node.until(lambda: _responds(node), "the agent responds")
        node.wait_synced()
        yield node


def _responds(node: InspectedNode) -> bool:
    try:
        node.client.query(STATUS, NoArgs())
    except Exception:
        return False
    return True
