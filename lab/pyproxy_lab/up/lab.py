"""The composition of a lab: network, API server, agents, DNS and the other parts."""

from __future__ import annotations

import http.client
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import msgspec

from pyproxy_lab.cluster import Cluster, kubeconfig
from pyproxy_lab.dns import pods as dns
from pyproxy_lab.namespace import LabError
from pyproxy_lab.process import Agent, proxy_flags
from pyproxy_lab.relay import relaying
from pyproxy_lab.topology import Site
from pyproxy_lab.up import state
from pyproxy_lab.up.options import Options
from pyproxy_lab.up.parts import PARTS

_PATIENCE = 60.0
"""Seconds in which all parts must respond, also on a loaded machine."""

_POLL = 0.02
_LONGEST_LOG = 16 * 1024 * 1024
_HEALTH_PORT = 10256
_PAGE_PORT = 10257
_LOOPBACK = "127.0.0.1"


class Lab(msgspec.Struct, frozen=True):
    """A lab that is up; `pages` are the URLs of the nodes' pages by the name of the node."""

    cluster: Cluster
    agents: dict[str, Agent]
    pages: dict[str, str]

    def maintain(self) -> None:
        """Start the agents that have ended, as a kubelet does, and empty logs that are too long."""
        for name, agent in self.agents.items():
            if agent.log.stat().st_size > _LONGEST_LOG:
                os.truncate(agent.log, 0)
            if not agent.running:
                node = self.cluster.network.topology.site(name).node
                ended = f"the agent of {node} has ended with status {agent.status}"
                print(f"{ended}: starting it again", flush=True)
                agent.start()

    def require_alive(self) -> None:
        """Raise LabError if an agent has ended."""
        for agent in self.agents.values():
            agent.require_alive()


@contextmanager
def running(options: Options) -> Iterator[Lab]:
    """Run a lab inside, which is ready: all nodes resolve names through the Service kube-dns.

    This process must have the lock of the state folder. Raises UsageError, LabError.
    """
    cluster = Cluster(options.topology, folder=options.folder, secure=True)
    with ExitStack() as stack:
        stack.enter_context(cluster)
        lab = _start(options, cluster, stack)
        _await_ready(lab, options.topology.sites)
        yield lab
        # All programs end at the same time, and the stack waits for each.
        for agent in lab.agents.values():
            agent.terminate()


def _start(options: Options, cluster: Cluster, stack: ExitStack) -> Lab:
    sites = options.topology.sites
    agents = {site.name: _agent(options, cluster, site) for site in sites}
    # The agents' interpreters start while the other parts do.
    for agent in agents.values():
        stack.enter_context(agent)
    if not options.proxy:
        for site in sites:
            cluster.add_agent_pod(site.name)
    stack.enter_context(dns.serving(cluster))
    for part in PARTS:
        stack.enter_context(part(cluster))
    pages = {site.node: _page(cluster, site, stack) for site in sites} if options.page else {}
    _write_kubeconfig(cluster)
    return Lab(cluster, agents, pages)


def _agent(options: Options, cluster: Cluster, site: Site) -> Agent:
    if options.proxy:
        # That of the nodes is for `up.joined` here.
        cluster.kubeconfig()
        flags = proxy_flags(site.node, options.topology.pod_networks, cluster.secure_kubeconfig())
        return cluster.program(site.name, [*options.proxy, *flags])
    page = ["--ui-bind-address", f"{_LOOPBACK}:{_PAGE_PORT}"] if options.page else []
    return cluster.agent(site.name, options.mode, flags=page)


def _page(cluster: Cluster, site: Site, stack: ExitStack) -> str:
    """Relay a free port of the machine's loopback address to the page of a node."""
    listener = socket.create_server((_LOOPBACK, 0))
    enter = partial(stack.enter_context, relaying(listener, (_LOOPBACK, _PAGE_PORT)))
    cluster.network.namespace(site.name).call(enter)
    return f"http://{_LOOPBACK}:{listener.getsockname()[1]}/"


def _write_kubeconfig(cluster: Cluster) -> None:
    if cluster.server is None:
        raise LabError("the lab has no API server of its own")
    server = cluster.server
    content = kubeconfig(server.loopback_url, cluster.client.token, server.ca)
    state.write_private(state.kubeconfig(cluster.folder), msgspec.json.encode(content))


def _await_ready(lab: Lab, sites: Sequence[Site]) -> None:
    """Wait until all nodes' proxies are healthy and lead to the DNS server. Raises LabError."""
    deadline = time.monotonic() + _PATIENCE
    for site in sites:
        node = lab.cluster.network.namespace(site.name)
        checks: tuple[tuple[str, Callable[[], bool]], ...] = (
            ("healthz", partial(node.call, _is_healthy)),
            ("DNS", partial(node.call, dns.responds)),
        )
        for name, holds in checks:
            while not holds():
                lab.require_alive()
                if time.monotonic() > deadline:
                    raise LabError(f"{site.node}: {name} does not respond in {_PATIENCE:.0f} s")
                time.sleep(_POLL)


def _is_healthy() -> bool:
    """Return whether the proxy of the node that this is called on responds that it is healthy."""
    connection = http.client.HTTPConnection(_LOOPBACK, _HEALTH_PORT, timeout=1.0)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
