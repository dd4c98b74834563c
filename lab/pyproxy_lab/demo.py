"""`pyproxy lab demo`: one Service from its first packet, with real packets."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from pyproxy.interrupts import interrupted_by
from pyproxy.model.destination import parse_destination
from pyproxy_lab.client import SERVICES, JsonObject, collection
from pyproxy_lab.cluster import Cluster
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import LabError
from pyproxy_lab.narrator import check, heading, note, result, shares
from pyproxy_lab.pods import Kubelet
from pyproxy_lab.probe import Outcome, probe
from pyproxy_lab.process import Agent
from pyproxy_lab.topology import OUTSIDE, TWO_NODES, numbered_pod
from pyproxy_lab.traffic import Traffic

NAMESPACE = "default"
CLIENT = "client"
CLUSTER_IP = "10.96.80.80"
NODE_PORT = 30080
TARGET_PORT = 5678
LABELS = {"app": "hello"}
PATIENCE = 10.0
"""Seconds in which a change must reach the kernel."""

_REQUESTS = 60
_POLL = 0.02

SERVICE: JsonObject = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "hello"},
    "spec": {
        "selector": LABELS,
        "clusterIP": CLUSTER_IP,
        "ports": [{"port": 80, "targetPort": TARGET_PORT}],
    },
}


_DRAINING = re.compile(r"^.* Masq +0 .*$", re.MULTILINE)
"""A server of weight 0: it keeps its connections and gets no new ones."""

_COUNTED = re.compile(rf":{NODE_PORT} +[1-9]")
"""The node port with connections; it is used last."""


def run(mode: LabMode) -> int:
    """Run all chapters and return 0. Raises LabError where a check fails."""
    started = time.monotonic()
    heading("A small cluster")
    only_a_client = msgspec.structs.replace(
        TWO_NODES, pods=(msgspec.structs.replace(numbered_pod(CLIENT, 1, 10), ports=()),)
    )
    with (
        interrupted_by(signal.SIGTERM),
        Cluster(only_a_client) as cluster,
        cluster.endpoint_slices(),
        cluster.agent("na", mode) as agent,
    ):
        note("network namespaces: two nodes, a client pod on node-a, a client outside")
        note(f"API server at {cluster.client.url}, pyproxy on node-a (process {agent.pid})")
        _Demo(cluster, agent, mode).run()
    heading("The end")
    note("removed: namespaces, API server and agent")
    note("a cluster of your own for kubectl: .venv/bin/pyproxy lab up")
    result(f"all checks passed in {time.monotonic() - started:.0f} s")
    return 0


class _Demo:
    def __init__(self, cluster: Cluster, agent: Agent, mode: LabMode) -> None:
        self._mode = mode
        self._cluster = cluster
        self._agent = agent
        self._kubelet = Kubelet(cluster.client, cluster.network, NAMESPACE)
        self._service = f"{CLUSTER_IP}:80"

    def run(self) -> None:
        """Run all chapters."""
        self._three_pods()
        self._one_deleted()
        self._readiness()
        self._broken_label()
        self._node_port()
        self._rules()

    def _three_pods(self) -> None:
        heading("Three pods behind one address")
        self._cluster.client.create(collection(NAMESPACE, SERVICES), SERVICE)
        note(f"Service hello: {CLUSTER_IP}, port 80, targetPort {TARGET_PORT}, selector app=hello")
        self._start("hello-1", site=1, host=21)
        self._start("hello-2", site=2, host=22)
        self._start("hello-3", site=2, host=23)
        self._until_served("hello-1", "hello-2", "hello-3")
        seen = self._requests()
        check(set(seen.reached) == {"hello-1", "hello-2", "hello-3"}, "all three pods responded")
        check(sum(seen.reached.values()) == _REQUESTS, "no request failed")

    def _one_deleted(self) -> None:
        heading("One pod is replaced by another during requests")
        target = parse_destination(self._service)
        with Traffic(self._cluster.network.namespace(CLIENT), target) as traffic:
            self._more(traffic, 50)
            self._start("hello-4", site=1, host=24)
            self._until_served("hello-4")
            self._kubelet.terminate("hello-1")
            note("hello-1 is terminating: it still serves the connections that it has")
            self._until_gone("hello-1")
            # A request that was on its way when the rules changed has a response by then.
            self._more(traffic, 2)
            self._kubelet.stop("hello-1")
            note("no rule leads to hello-1 any more: it has stopped")
            self._more(traffic, 50)
        result(f"client -> {self._service}: {shares(traffic.responses)}")
        for failure in traffic.failures:
            result(f"failed: {failure}")
        check(not traffic.failures, f"{traffic.total} requests, none failed")
        check(traffic.responses["hello-4"] > 0, "the new pod responded too")

    def _readiness(self) -> None:
        heading("A pod becomes unready and ready again")
        self._kubelet.set_ready("hello-2", ready=False)
        note("hello-2 is not ready")
        self._until_gone("hello-2")
        seen = self._requests()
        check(set(seen.reached) == {"hello-3", "hello-4"}, "hello-2 gets no requests")
        self._kubelet.set_ready("hello-2", ready=True)
        note("hello-2 is ready again")
        self._until_served("hello-2")
        seen = self._requests()
        check(set(seen.reached) == {"hello-2", "hello-3", "hello-4"}, "hello-2 gets requests again")

    def _broken_label(self) -> None:
        heading("A typo in a label: the Service has no endpoints")
        pods = ("hello-2", "hello-3", "hello-4")
        for name in pods:
            self._kubelet.set_labels(name, {"app": "helo"})
        note("the pods are labelled app=helo; the Service still selects app=hello")
        self._until_gone(*pods)
        start = time.monotonic()
        seen = self._requests(1)
        took = (time.monotonic() - start) * 1000
        check(seen == Outcome(refused=1), f"refused at once ({took:.1f} ms), without a timeout")
        for name in pods:
            self._kubelet.set_labels(name, LABELS)
        note("the pods are labelled app=hello again")
        self._until_served(*pods)
        check(set(self._requests().reached) == set(pods), "all three pods respond again")

    def _node_port(self) -> None:
        heading("The Service on a node port, from outside the cluster")
        path = f"{collection(NAMESPACE, SERVICES)}/hello"
        ports = [{"port": 80, "targetPort": TARGET_PORT, "nodePort": NODE_PORT}]
        self._cluster.client.patch(path, {"spec": {"type": "NodePort", "ports": ports}})
        note(f"Service hello has type NodePort now, nodePort {NODE_PORT}")
        node = self._cluster.network.topology.site("na").addresses.ipv4
        to = f"{node}:{NODE_PORT}"
        self._until(lambda: bool(self._ask(to, OUTSIDE, 1).reached), "the node port")
        seen = self._requests(to=to, who=OUTSIDE)
        check(len(seen.reached) == 3, "the outside client reaches all three pods")

    def _rules(self) -> None:
        command = self._mode.shown
        heading(f"The rules on node-a: {' '.join(command)}")
        if self._mode.in_turn:
            # IPVS updates its counters every two seconds.
            self._until(lambda: bool(_COUNTED.search(self._on_the_node(command))), "the counts")
        print(self._on_the_node(command).rstrip())

    def _start(self, name: str, *, site: int, host: int) -> None:
        pod = numbered_pod(name, site, host, ports=(TARGET_PORT,))
        self._kubelet.start(pod, LABELS)
        where = self._cluster.network.topology.site(pod.site).node
        note(f"pod {name}, app=hello, {pod.addresses.ipv4} on {where}")

    def _requests(self, tries: int = _REQUESTS, to: str = "", who: str = CLIENT) -> Outcome:
        """Make requests, and print the outcome."""
        to = to or self._service
        seen = self._ask(to, who, tries)
        result(f"{who} -> {to}: {seen}")
        return seen

    def _ask(self, to: str, who: str, tries: int) -> Outcome:
        target = parse_destination(to)
        return self._cluster.network.namespace(who).call(partial(probe, target, tries=tries))

    def _more(self, traffic: Traffic, count: int) -> None:
        """Wait until `count` more requests have ended."""
        enough = traffic.total + count
        self._until(lambda: traffic.total >= enough, "more requests")

    def _until_served(self, *names: str) -> None:
        wanted = [self._address(name) for name in names]
        self._until(
            lambda: self._count_programmed(wanted) == len(wanted),
            f"{', '.join(names)} in the rules",
        )

    def _until_gone(self, *names: str) -> None:
        unwanted = [self._address(name) for name in names]
        self._until(
            lambda: self._count_programmed(unwanted) == 0, f"the rules without {', '.join(names)}"
        )

    def _address(self, name: str) -> str:
        addresses = self._cluster.network.addresses(name)
        return next(address for address in addresses if ":" not in address)

    def _count_programmed(self, addresses: list[str]) -> int | None:
        """Return how many of these addresses the kernel's rules have; None without rules."""
        table = self._on_the_node(self._mode.shown)
        if not table:
            return None
        serving = _DRAINING.sub("", table)
        return len(set(re.findall(r"[0-9.]+", serving)) & set(addresses))

    def _on_the_node(self, command: Sequence[str]) -> str:
        done = self._cluster.network.namespace("na").run(list(command), check=False)
        return "" if done.returncode else done.stdout

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self._agent.require_alive()
            if time.monotonic() > deadline:
                raise LabError(f"not within {PATIENCE:.0f} s: {what}")
            time.sleep(_POLL)
