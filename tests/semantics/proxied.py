"""An agent in the lab's network that serves a folder of manifests, with a test's own flags."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network
from pyproxy_lab.probe import Outcome, probe
from pyproxy_lab.process import Agent
from pyproxy_lab.sync_barrier import SocketMarker
from pyproxy_lab.topology import TWO_NODES

from pyproxy.model.destination import parse_destination
from tests import modes
from tests.waiting import PATIENCE, until

SITE = TWO_NODES.site("na")
NAMESPACE = "shop"

Object = dict[str, Any]


def service(
    name: str,
    *addresses: str,
    ports: Iterable[Mapping[str, Any]] = ({"port": 80},),
    status: Object | None = None,
    **spec: Any,
) -> Object:
    """A Service with these cluster IPs."""
    spec |= {"clusterIP": addresses[0], "clusterIPs": list(addresses), "ports": list(ports)}
    metadata = {"name": name, "namespace": NAMESPACE, "uid": f"uid-of-{name}"}
    obj = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
    return obj | ({"status": status} if status else {})


def balanced(*addresses: str) -> Object:
    """The status of a Service with these load balancer addresses."""
    return {"loadBalancer": {"ingress": [{"ip": address} for address in addresses]}}


def endpoint_slice(
    of: str,
    *pods: str | Object,
    family: str = "IPv4",
    ports: Iterable[Mapping[str, Any]] = ({"port": 8080},),
    name: str = "",
) -> Object:
    """A slice of a Service with these pods, by name, or endpoints as they stand."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name or f"{of}-{family.lower()}",
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": of},
        },
        "addressType": family,
        "ports": [{"name": "", "protocol": "TCP", **port} for port in ports],
        "endpoints": [endpoint(p, family) if isinstance(p, str) else p for p in pods],
    }


def endpoint(pod: str, family: str = "IPv4", **conditions: bool) -> Object:
    """A pod of the lab as an endpoint; a node's host (`ha`) is one too."""
    conditions = {"ready": True, "serving": True, "terminating": False} | conditions
    place = 0 if family == "IPv4" else 1
    for each in TWO_NODES.pods:
        if each.name == pod:
            address, node = list(each.addresses)[place], TWO_NODES.site(each.site).node
            break
    else:
        site = next(site for site in TWO_NODES.sites if site.host == pod)
        address, node = list(site.addresses)[place], site.node
    return {"addresses": [address], "conditions": conditions, "nodeName": node}


def _key(kind: str, name: str) -> tuple[str, str]:
    return kind.lower(), name


def node(**spec: Any) -> Object:
    """The Node of the site that the agent is on, without pod networks unless they are given."""
    addresses = [{"type": "InternalIP", "address": address} for address in SITE.addresses]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": SITE.node, "labels": {"topology.kubernetes.io/zone": SITE.zone}},
        "spec": spec,
        "status": {"addresses": addresses},
    }


class Proxied:
    """A node with its agent, and the folder that the agent serves.

    All objects are in one file, which is read as a whole, with a marker for the last of them.
    """

    def __init__(
        self, mode: LabMode, network: Network, agent: Agent, folder: Path, marker: SocketMarker
    ) -> None:
        self.mode = mode
        self.network = network
        self.agent = agent
        self._folder = folder
        self._marker = marker
        self._objects: dict[tuple[str, str], Object] = {}

    def apply(self, *objects: Object) -> None:
        """Write objects, all at once, and wait until an agent that runs has programmed them."""
        self._objects |= {_key(obj["kind"], obj["metadata"]["name"]): obj for obj in objects}
        self._write()

    def delete(self, kind: str, *names: str) -> None:
        """Take objects away that must be there, and wait as `apply` does."""
        for name in names:
            del self._objects[_key(kind, name)]
        self._write()

    def forget(self, kind: str, *names: str) -> None:
        """Take objects away that may be there."""
        if there := [name for name in names if _key(kind, name) in self._objects]:
            self.delete(kind, *there)

    def programmed(self) -> None:
        """Wait until the agent has programmed all that was written."""

        def programmed() -> bool:
            self.agent.require_alive()
            return self._marker.programmed()

        until(programmed, "the agent has programmed what was written")

    def _write(self) -> None:
        items = [*self._objects.values(), *self._marker.next()]
        draft = self._folder / "objects.draft"
        draft.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        draft.rename(self._folder / "objects.json")
        if self.agent.running:
            self.programmed()

    def once(self, who: str, to: str, **how: Any) -> Outcome:
        """Probe as things stand now."""
        return self.network.namespace(who).call(partial(probe, parse_destination(to), **how))

    def reaches(
        self, who: str, to: str, *pods: str, tries: int = 12, source: str = "", sport: int = 0
    ) -> None:
        """Wait until these pods, all of them and no others, answer; `source` is what they see."""
        self._until(
            who,
            to,
            lambda seen: (
                set(seen.reached) == set(pods)
                and not (seen.refused or seen.dropped)
                and (not source or seen.sources == {source})
            ),
            f"{', '.join(pods)} {source and f'as {source}'}",
            tries=tries if len(pods) > 1 else 3,
            source_port=sport,
        )

    def single_pod(self, who: str, to: str, tries: int = 8) -> str:
        """Wait until one pod alone answers, and name it."""
        seen = self._until(who, to, lambda seen: len(seen.reached) == 1, "one pod", tries=tries)
        return next(iter(seen.reached))

    def is_refused(self, who: str, to: str, sport: int = 0) -> None:
        """Wait until every try is refused."""
        self._until(
            who, to, lambda seen: seen.refused >= 3, "a rejection", tries=3, source_port=sport
        )

    def is_dropped(self, who: str, to: str, sport: int = 0) -> None:
        """Wait until tries meet silence."""
        how = {"tries": 2, "timeout": 0.25, "source_port": sport}
        self._until(who, to, lambda seen: seen.dropped >= 2, "silence", **how)

    def logs(self, text: str, patience: float = PATIENCE) -> None:
        """Wait until the agent's log has a text."""
        deadline = time.monotonic() + patience
        while text not in self.agent.log.read_text():
            assert time.monotonic() < deadline, f"not in the log: {text!r}"
            time.sleep(0.05)

    def holds(self, text: str) -> None:
        """Wait until the kernel's listing of what is ours has a text."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.listing():
            assert time.monotonic() < deadline, f"the kernel never has {text!r}"
            time.sleep(0.02)

    def listing(self) -> str:
        """List what the agent has put into the kernel."""
        return modes.listing(self.mode, self.network.namespace("na"))

    def _until(
        self,
        who: str,
        to: str,
        holds: Any,
        wanted: str,
        **how: Any,
    ) -> Outcome:
        deadline = time.monotonic() + PATIENCE
        while True:
            seen = self.once(who, to, **how)
            if holds(seen):
                return seen
            self.agent.require_alive()
            assert time.monotonic() < deadline, f"{who} -> {to}: wanted {wanted}; saw {seen}"
            time.sleep(0.02)


READY = (
    service("ready", "10.96.255.1", "fd00:10:96::ff:1"),
    endpoint_slice("ready", "b1"),
    endpoint_slice("ready", "b1", family="IPv6"),
)
"""A Service that is always there, with whatever else is."""


@contextmanager
def proxied(
    mode: LabMode,
    network: Network,
    folder: Path,
    *flags: str,
    objects: Iterable[Object] = (),
    launcher: Sequence[str] = (),
) -> Iterator[Proxied]:
    """Run an agent on the first node, with these objects from its start; the rules go at the end.

    `folder` is made, and must not be used before. `launcher` is a program that runs the agent.
    """
    manifests, socket = folder / "manifests", folder / "socket"
    manifests.mkdir(parents=True)
    command = [
        *(*launcher, sys.executable, "-m", "pyproxy", "run", "--manifests", str(manifests)),
        *("--hostname-override", SITE.node, "--inspect-socket", str(socket)),
        *(*mode.flags, *flags),
    ]
    agent = Agent(network.namespace("na"), command, folder / "log")
    made = Proxied(mode, network, agent, manifests, SocketMarker(str(socket)))
    given = list(objects)
    if not any(obj["kind"] == "Node" for obj in given):
        given.append(node(podCIDRs=list(SITE.pod_networks)))
    made.apply(*given, *READY)
    try:
        with agent:
            made.programmed()
            yield made
    finally:
        here = network.namespace("na")
        modes.wipe(mode, here)
        # A UDP client that gets the port of an earlier test's would continue that test's flow.
        here.run(["conntrack", "-F"])
