"""The ClusterRole grants exactly the rights that the DaemonSet's agent uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from aiohttp import web
from aiohttp.typedefs import Handler
from pyproxy_lab.apiserver import access
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.cluster import kubeconfig
from pyproxy_lab.network import Network
from pyproxy_lab.topology import API_ADDRESS

from tests.agent.live import SITE, Process, endpoint_slice, node, service

from .manifests import BASE, agent, objects, the

pytestmark = pytest.mark.kernel

TOKEN = "the-service-account's"
CONFIG = "/etc/pyproxy/config.conf"

Rights = dict[str, frozenset[str]]


def assigned() -> Rights:
    """Return the ClusterRole in the form that the lab's API server uses."""
    found: dict[str, set[str]] = {}
    for rule in the("ClusterRole", objects((BASE / "rbac.yaml").read_text()))["rules"]:
        for group in rule["apiGroups"]:
            for plural in rule["resources"]:
                name = f"{plural}.{group}" if group else plural
                found.setdefault(name, set()).update(rule["verbs"])
    return {name: frozenset(verbs) for name, verbs in found.items()}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Rights:
    """Grant the ClusterRole to the service account, and return the rights that it uses."""
    seen: Rights = {}
    account = access.User("system:serviceaccount:kube-system:pyproxy", assigned())
    authorize = access.authorize

    def record(user: access.User, action: access.Action) -> None:
        assert user is account
        name = action.resource.qualified
        seen[name] = seen.get(name, frozenset()) | {action.verb}
        authorize(user, action)

    monkeypatch.setattr(access, "PROXY", account)
    monkeypatch.setattr(access, "authorize", record)
    return seen


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


def deployed(folder: Path, url: str, node_name: str) -> list[str]:
    """Return the DaemonSet's command, with a kubeconfig in place of a pod's files."""
    config = yaml.safe_load((BASE / "config.conf").read_text())
    account = folder / "kubeconfig"
    account.write_bytes(msgspec.json.encode(kubeconfig("http://127.0.0.1:1", TOKEN)))
    config["clientConnection"] = {"kubeconfig": str(account)}
    (folder / "config.conf").write_text(yaml.safe_dump(config))
    expanded = {"$(NODE_NAME)": node_name, "$(API_SERVERS)": url}
    expanded[CONFIG] = str(folder / "config.conf")
    args: list[str] = agent(objects((BASE / "daemonset.yaml").read_text()))["args"]
    for variable, value in expanded.items():
        args = [each.replace(variable, value) for each in args]
    return [sys.executable, "-m", "pyproxy", *args]


def test_the_agent_uses_every_right_and_needs_no_other(
    network: Network, tmp_path: Path, used: Rights
) -> None:
    responses: list[tuple[str, int]] = []
    streams = [True]

    @web.middleware
    async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Record every response, and refuse streaming lists if `streams` is false."""
        if not streams[0] and "sendInitialEvents" in request.query:
            raise web.HTTPUnprocessableEntity(
                text='{"kind":"Status","code":422}', content_type="application/json"
            )
        response = await handler(request)
        responses.append((request.path, response.status))
        return response

    mistaken: dict[str, Any] = service("mistaken", "10.96.0.81")
    mistaken["spec"]["externalIPs"] = ["nowhere"]
    site = network.topology.site(SITE)
    here = network.namespace(SITE)
    settings = Settings(netns=network.api.name, host=API_ADDRESS, proxy_token=TOKEN)
    with ApiServer.running(settings, [around]) as server:
        server.load([node(network), service("web", "10.96.0.80")])
        server.load([endpoint_slice("web", ["10.244.1.11"]), mistaken])
        command = deployed(tmp_path, server.url, site.node)
        with Process(here, command, tmp_path / "streams.log") as process:
            process.does(
                lambda: "10.96.0.80 . tcp . 80" in here.run(["nft", "list", "ruleset"]).stdout,
                "the Service is in the kernel",
            )
            process.does(
                lambda: any(p.endswith("/events") and s == 201 for p, s in responses),
                "an Event is posted",
            )
        streams[0] = False
        with Process(here, command, tmp_path / "pages.log") as process:
            process.does(lambda: used == assigned(), f"used {assigned()}")
    assert not [each for each in responses if each[1] in {401, 403}]
