"""An agent in the lab's network that serves a folder of manifests, with a test's own flags."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pyproxy.lab.modes import LabMode
from pyproxy.lab.network import Network
from pyproxy.lab.probe import Outcome, probe
from pyproxy.lab.process import Agent
from pyproxy.lab.topology import TWO_NODES
from pyproxy.model.destination import parse_destination
from tests import modes

PATIENCE = 10.0
PATIENCE_WITH_A_START = 60.0
"""Seconds that an agent has to serve; in the virtual machine it is busy with imports for many."""

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
    """A node with its agent, and the folder that the agent serves."""

    def __init__(self, mode: LabMode, network: Network, folder: Path, agent: Agent) -> None:
        self.mode = mode
        self.network = network
        self.agent = agent
        self._folder = folder

    def apply(self, *objects: Object) -> None:
        """Write objects; all of one call arrive together, or nearly so."""
        for obj in objects:
            path = self._path(obj["kind"], obj["metadata"]["name"])
            draft = path.with_suffix(".draft")
            draft.write_text(json.dumps(obj))
            draft.rename(path)

    def delete(self, kind: str, name: str) -> None:
        self._path(kind, name).unlink()

    def forget(self, kind: str, name: str) -> None:
        """Delete an object that may be there."""
        self._path(kind, name).unlink(missing_ok=True)

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

    def sticks(self, who: str, to: str, tries: int = 8) -> str:
        """Wait until one pod alone answers, and name it."""
        seen = self._until(who, to, lambda seen: len(seen.reached) == 1, "one pod", tries=tries)
        return next(iter(seen.reached))

    def is_refused(self, who: str, to: str, sport: int = 0) -> None:
        """Wait until every try is refused."""
        self._until(
            who, to, lambda seen: seen.refused >= 3, "a refusal", tries=3, source_port=sport
        )

    def is_dropped(self, who: str, to: str, sport: int = 0) -> None:
        """Wait until tries meet silence."""
        how = {"tries": 2, "timeout": 0.25, "source_port": sport}
        self._until(who, to, lambda seen: seen.dropped >= 2, "silence", **how)

    def says(self, text: str, patience: float = PATIENCE) -> None:
        """Wait until the agent's log has a text."""
        deadline = time.monotonic() + patience
        while text not in self.agent.log.read_text():
            assert time.monotonic() < deadline, f"the log never says {text!r}"
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

    def _path(self, kind: str, name: str) -> Path:
        return self._folder / f"{kind}-{name}.json".lower()

    def serves(self) -> None:
        """Wait until the agent has made its first commit."""

        def served(seen: Outcome) -> bool:
            return set(seen.reached) == {"b1"} and not (seen.refused or seen.dropped)

        self._until(
            "a2", _READY_AT, served, "the first commit", patience=PATIENCE_WITH_A_START, tries=3
        )

    def _until(
        self,
        who: str,
        to: str,
        holds: Any,
        wanted: str,
        patience: float = PATIENCE,
        **how: Any,
    ) -> Outcome:
        deadline = time.monotonic() + patience
        while True:
            seen = self.once(who, to, **how)
            if holds(seen):
                return seen
            self.agent.require_alive()
            assert time.monotonic() < deadline, f"{who} -> {to}: wanted {wanted}; saw {seen}"
            time.sleep(0.02)


_READY_AT = "10.96.255.1:80"
READY = (
    service("ready", "10.96.255.1", "fd00:10:96::ff:1"),
    endpoint_slice("ready", "b1"),
    endpoint_slice("ready", "b1", family="IPv6"),
)
"""What tells that the agent serves: it comes in the first commit, with whatever else is there."""


@contextmanager
def proxied(
    mode: LabMode, network: Network, folder: Path, *flags: str, objects: Iterable[Object] = ()
) -> Iterator[Proxied]:
    """Run an agent on the first node, with these objects from its start; the rules go at the end.

    `folder` is made, and must not be used before.
    """
    (folder / "manifests").mkdir(parents=True)
    command = [
        *(sys.executable, "-m", "pyproxy", "run", "--manifests", str(folder / "manifests")),
        *("--hostname-override", SITE.node, *mode.flags, *flags),
    ]
    agent = Agent(network.namespace("na"), command, folder / "log")
    made = Proxied(mode, network, folder / "manifests", agent)
    given = list(objects)
    if not any(obj["kind"] == "Node" for obj in given):
        given.append(node(podCIDRs=list(SITE.pod_networks)))
    made.apply(*given, *READY)
    try:
        with agent:
            made.serves()
            yield made
    finally:
        modes.wipe(mode, network.namespace("na"))
