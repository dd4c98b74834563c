"""Exec plugins: tokens that expire, client certificates, and what a plugin is told."""

from __future__ import annotations

import json
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pyproxy.source.connect import connect
from pyproxy.source.credentials import CredentialError
from pyproxy.source.exec_plugin import SHORTEST_INTERVAL, ExecConfig, ExecPlugin

from .kubeconfigs import certificate, kubeconfig, write
from .scripted import Exchange, serving
from .test_connect import fetch

API = "client.authentication.k8s.io/v1"


def script(folder: Path, text: str) -> str:
    path = folder / "plugin"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def returned(**status: str) -> str:
    return json.dumps({"apiVersion": API, "kind": "ExecCredential", "status": status})


def echo(exchange: Exchange) -> None:
    exchange.respond({"authorization": exchange.headers.get("Authorization")})


def test_a_token_that_expires_is_replaced_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, now = tmp_path / "output", [1000.0]

    def put(token: str, expires: float) -> None:
        text = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        output.write_text(returned(token=token, expirationTimestamp=text))

    put("first", 2000)
    command = script(tmp_path, f"echo run >> {tmp_path}/runs; cat {output}")
    found = ExecPlugin(ExecConfig(command, API), "here", "", {}, lambda: now[0])
    put("second", 1500)
    assert found.authorization() == "Bearer first"
    now[0] = 1995.0
    # The second is expired as it comes, which must not run the plugin for each request.
    assert [found.authorization() for _ in range(5)] == ["Bearer second"] * 5
    output.write_text("broken")
    for _ in range(3):
        now[0] += SHORTEST_INTERVAL
        assert [found.authorization() for _ in range(5)] == ["Bearer second"] * 5
    assert len((tmp_path / "runs").read_text().split()) == 5
    assert len(caplog.records) == 1
    put("third", 9000)
    now[0] += SHORTEST_INTERVAL
    assert found.authorization() == "Bearer third"
    assert not found.is_outdated


def test_a_client_certificate_of_a_plugin(tmp_path: Path) -> None:
    crt, key = certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(crt))
    tls.load_cert_chain(crt, key)
    tls.verify_mode = ssl.CERT_REQUIRED
    (tmp_path / "output").write_text(
        returned(clientCertificateData=crt.read_text(), clientKeyData=key.read_text())
    )
    command = script(tmp_path, f"cat {tmp_path}/output")
    user = {"exec": {"apiVersion": API, "command": command}}
    with serving(echo, tls=tls) as server:
        config = kubeconfig(server.url, user, {"certificate-authority": str(crt)})
        assert b'"authorization": null' in fetch(connect(write(tmp_path / "config", config), ""))


def test_a_plugin_is_told_about_its_cluster(tmp_path: Path) -> None:
    command = script(tmp_path, f'echo "$KUBERNETES_EXEC_INFO" > {tmp_path}/info; exit 1')
    extension = {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "x"}}
    cluster: dict[str, Any] = {"server": "https://c", "extensions": [extension]}
    plugin = ExecPlugin(
        ExecConfig(command, API, provide_cluster_info=True), "here", str(tmp_path), cluster
    )
    assert plugin.is_outdated
    with pytest.raises(CredentialError, match=r"^here: .*plugin exited with status 1"):
        plugin.authorization()
    spec = json.loads((tmp_path / "info").read_text())["spec"]
    assert spec == {
        "interactive": False,
        "cluster": {"server": "https://c", "config": {"audience": "x"}},
    }


@pytest.mark.parametrize("command", ["/nowhere/plugin", "nul\0"])
def test_a_plugin_that_cannot_be_started(command: str) -> None:
    plugin = ExecPlugin(ExecConfig(command, API), "here", "", {})
    with pytest.raises(CredentialError, match=r"cannot be started: (No such file|invalid)"):
        plugin.authorization()
