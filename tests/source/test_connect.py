"""Requests made from flags and files, and the errors of invalid ones."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from pyproxy.errors import UsageError
from pyproxy.source import connect as connect_module
from pyproxy.source import kubernetes
from pyproxy.source.client import ApiStatusError, Client, UnreachableError
from pyproxy.source.connect import connect
from pyproxy.source.kubernetes import KubernetesSource
from tests.waiting import PATIENCE, until

from .kubeconfigs import certificate, exec_plugin, kubeconfig, write
from .scripted import Exchange, Recorder, quiet, serving


def fetch(client: Client, path: str = "/version") -> bytes:
    response = client.get(path, {}, PATIENCE)
    try:
        return response.read()
    finally:
        response.close()


def echo(exchange: Exchange) -> None:
    exchange.respond({"authorization": exchange.headers.get("Authorization")})


GOOD = kubeconfig("http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("a: [", "not YAML: while parsing"),
        ("", "not a kubeconfig"),
        ("[]", "not a kubeconfig"),
        ("contexts: 3\ncurrent-context: here", "not a kubeconfig: .*contexts"),
        ("\x00", "not YAML"),
        (GOOD | {"current-context": ""}, "current-context is not set"),
        (GOOD | {"current-context": "there"}, "current-context 'there' is not in contexts"),
        (GOOD | {"contexts": None}, "current-context 'here' is not in contexts"),
        (GOOD | {"clusters": []}, "cluster 'c' is not in clusters"),
        (kubeconfig(""), "cluster 'c' has no server"),
        (kubeconfig("nonsense"), "server 'nonsense' of cluster 'c' is not a URL"),
        (
            kubeconfig("https://127.0.0.1:1", None, {"certificate-authority": "/nowhere/ca.crt"}),
            "/nowhere/ca.crt",
        ),
        (
            kubeconfig("https://127.0.0.1:1", None, {"certificate-authority-data": "a"}),
            "invalid: ",
        ),
        (GOOD | {"users": 3}, "."),
    ],
)
def test_invalid_kubeconfigs(tmp_path: Path, config: Any, text: str) -> None:
    path = write(tmp_path / "kubeconfig", config)
    with pytest.raises(UsageError, match=f"^--kubeconfig {path}: .*{text}") as caught:
        connect(path, "")
    assert "\n" not in str(caught.value)


def test_unreadable_kubeconfigs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        connect(str(tmp_path / "nowhere"), "")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        connect(str(tmp_path), "")


@pytest.mark.parametrize(
    "master", ["127.0.0.1:6443", "https://", "ftp://a", "https://a:x", "http://a,"]
)
def test_invalid_master_urls(master: str) -> None:
    with pytest.raises(UsageError, match=r"--master: .* is not of the form https://HOST:PORT"):
        connect("", master)


def test_without_a_server_the_error_names_the_flags() -> None:
    with pytest.raises(UsageError, match=r"--kubeconfig FILE.*--master URL.*--manifests DIR"):
        connect("", "")


def test_a_token(tmp_path: Path) -> None:
    with serving(echo) as server:
        path = write(tmp_path / "kubeconfig", kubeconfig(server.url, {"token": "secret"}))
        assert b"Bearer secret" in fetch(connect(path, ""))


def test_master_replaces_the_server_of_the_kubeconfig(tmp_path: Path) -> None:
    path = write(tmp_path / "kubeconfig", kubeconfig("http://127.0.0.1:1", {"token": "secret"}))
    with serving(echo) as server:
        assert b"Bearer secret" in fetch(connect(path, server.url + "/"))
        assert b"null" in fetch(connect("", server.url))


def test_an_exec_plugin(tmp_path: Path) -> None:
    user = exec_plugin(tmp_path, "of-plugin")
    with serving(echo) as server:
        path = write(tmp_path / "kubeconfig", kubeconfig(server.url, user))
        assert b"Bearer of-plugin" in fetch(connect(path, ""))


def test_a_token_that_is_replaced_on_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    accepted = ["Bearer old"]

    def script(exchange: Exchange) -> None:
        if exchange.headers.get("Authorization") in accepted:
            echo(exchange)
        else:
            exchange.fail(401, "Unauthorized")

    with serving(script) as server:
        path = write(tmp_path / "kubeconfig", kubeconfig(server.url, {"tokenFile": str(token)}))
        client = connect(path, "")
        assert b"Bearer old" in fetch(client)
        accepted[:] = ["Bearer new"]
        with pytest.raises(ApiStatusError, match="401 Unauthorized"):
            fetch(client)
        token.write_text("new")
        assert b"Bearer new" in fetch(client)
        # While the file is unreadable, the last credentials are used.
        accepted[:] = []
        Path(path).unlink()
        with pytest.raises(ApiStatusError):
            fetch(client)
        accepted[:] = ["Bearer new"]
        assert b"Bearer new" in fetch(client)
    assert "cannot reload the credentials" in caplog.text


def test_a_pods_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.touch()
    monkeypatch.setattr(connect_module, "SERVICE_ACCOUNT_TOKEN", token)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "")
    with pytest.raises(UsageError, match="no API server"):
        connect("", "")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    monkeypatch.delenv("KUBERNETES_SERVICE_PORT", raising=False)
    with pytest.raises(UsageError, match="the pod's service account is invalid"):
        connect("", "")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return certificate(tmp_path)


def test_tls_and_a_client_certificate(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    crt, key = pair
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(crt))
    tls.load_cert_chain(crt, key)
    tls.verify_mode = ssl.CERT_REQUIRED
    with serving(echo, tls=tls) as server:
        user = {"client-certificate": crt.name, "client-key": key.name}
        trusting = kubeconfig(server.url, user, {"certificate-authority": crt.name})
        client = connect(write(tmp_path / "kubeconfig", trusting), "")
        assert b"authorization" in fetch(client)
        distrusting = connect(write(tmp_path / "other", kubeconfig(server.url, user)), "")
        with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(distrusting)
        anonymous = trusting | {"users": []}
        with pytest.raises(UnreachableError):
            fetch(connect(write(tmp_path / "anonymous", anonymous), ""))


def test_stop_ends_all_threads_with_tls(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "STOP_TIMEOUT", PATIENCE)
    earlier = set(threading.enumerate())
    crt, key = pair
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(crt, key)
    with serving(quiet, tls=tls) as server:
        config = kubeconfig(server.url, None, {"certificate-authority": str(crt)})
        recorder = Recorder()
        client = connect(write(tmp_path / "kubeconfig", config), "")
        source = KubernetesSource(client, "node-a", recorder)
        source.start()
        until(lambda: len(recorder.events) == 3)
        source.stop()
        new = set(threading.enumerate()) - earlier
        assert not any(thread.name.startswith("source-") for thread in new)
