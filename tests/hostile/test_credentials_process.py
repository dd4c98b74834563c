"""The agent's process with credentials in every place: none is in anything that it shows."""

from __future__ import annotations

import itertools
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from pyproxy_lab.apiserver.server import Handler
from pyproxy_lab.apiserver.store import Store
from pyproxy_lab.network import Network

from tests.agent.live import SITE, Stage, endpoint_slice, service
from tests.source.kubeconfigs import kubeconfig, write
from tests.waiting import PATIENCE

pytestmark = pytest.mark.kernel

PLANTED = "PLANTED"
TOKEN = f"{PLANTED}-token-of-the-plugin"
ECHOES = 7
"""Requests that the server answers with what it was sent; one for each response."""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Network() as network:
        yield Stage(network, tmp_path)


@web.middleware
async def echo(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Repeat the credentials in errors, pages and objects, and then serve."""
    number = next(_numbers)
    sent = str(dict(request.headers))
    assert TOKEN in sent
    if number >= ECHOES:
        return await handler(request)
    secret = {"kind": "Secret", "metadata": {"name": sent}, "data": {"token": TOKEN}}
    responses = (
        web.json_response({"kind": "Status", "code": 500, "message": sent}, status=500),
        web.json_response({"kind": "Status", "code": 401, "message": sent}, status=401),
        web.Response(status=503, reason=f"no {TOKEN}", body=sent),
        web.json_response(secret),
        web.json_response(secret, status=404),
        web.Response(body=f"<html>{sent}</html>", content_type="text/html"),
        web.Response(body=sent, content_type="application/json"),
    )
    return responses[number % len(responses)]


_numbers = itertools.count()


def plant(folder: Path, path: Path, url: str) -> None:
    """Replace a kubeconfig by one whose plugin, server and user contain secrets."""
    plugin = folder / "plugin"
    status = {"token": TOKEN + "\n"}
    output = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
    (folder / "output").write_text(json.dumps(output | {"status": status}))
    plugin.write_text(f"#!/bin/sh\necho {PLANTED}-stderr $* $KEY >&2\ncat {folder}/output\n")
    plugin.chmod(0o755)
    user = {
        "exec": {
            "apiVersion": output["apiVersion"],
            "command": str(plugin),
            "args": [f"--password={PLANTED}-argument"],
            "env": [{"name": "KEY", "value": f"{PLANTED}-variable"}],
        },
        "username": f"{PLANTED}-user",
        "password": f"{PLANTED}-password",
    }
    server = url.replace("//", f"//{PLANTED}-user:{PLANTED}-of-the-url@")
    write(path, kubeconfig(server, user))


def test_no_output_contains_a_credential(stage: Stage, tmp_path: Path) -> None:
    socket = f"--inspect-socket={tmp_path}/{SITE}.sock"
    # The Event names the Service; the address is not one.
    bad = service("bad", "10.96.0.11", externalIPs=["127.0.0.1"])
    with stage.server(middlewares=[echo]) as server:
        server.load([service("web", "10.96.0.10"), endpoint_slice("web", ["10.244.1.11"]), bad])
        prepared = stage.agent(server.url, "--v=9")
        plant(tmp_path, tmp_path / "kubeconfig-1", server.url)
        with prepared as agent:
            agent.does(lambda: stage.health() == 200, "the first commit")
            answers = [stage.run(*words, socket) for words in (["status"], ["services"])]
            outputs = [answer.stdout + answer.stderr for answer in answers]
            outputs.append(stage.here.call(_metrics))
            outputs.append(str(server.call(lambda: _everything(server.registry.store))))
            outputs.append(agent.said())
    assert "cannot watch" in agent.said()
    assert "10.96.0.10:80" in outputs[1]
    assert "rest_client_requests_total" in outputs[2]
    for output in outputs:
        assert PLANTED not in output, re.findall(f".*{PLANTED}.*", output)[:3]


def _metrics() -> str:
    with urllib.request.urlopen("http://127.0.0.1:10249/metrics", timeout=PATIENCE) as reply:
        return str(reply.read().decode())


def _everything(store: Store) -> list[bytes]:
    return [each.body for table in store.tables() for each in table.current("/")]
