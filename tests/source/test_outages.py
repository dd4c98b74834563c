"""Failing requests to the API server: the cause and the fix are one line, and a mistake."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pyproxy.errors import SourceError
from pyproxy.model.config_problems import ConfigProblem, ConfigTopic
from pyproxy.model.objects import Kind
from pyproxy.source.client import ApiStatusError, UnreachableError
from pyproxy.source.connect import connect
from pyproxy.source.diagnosis import diagnose
from pyproxy.source.outages import OutageLog
from pyproxy.source.stream import ConnectionLostError
from tests.ports import reserved_port
from tests.waiting import PATIENCE, until

from .kubeconfigs import certificate, kubeconfig, write
from .scripted import Exchange, Script, following, serving

UNREACHABLE = "the API server is unreachable; the last known state stays programmed: no route"
CHECK = ": check the server's address in the kubeconfig or --master, and that the control plane"


def test_an_unreachable_server_is_logged_once_for_all_kinds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    outages = OutageLog()
    for kind in (Kind.SERVICE, Kind.NODE, Kind.SERVICE):
        outages.failed(kind, UnreachableError("no route"))
    assert [each.topic for each in outages.problems()] == [ConfigTopic.API_UNREACHABLE]
    outages.succeeded(Kind.NODE)
    assert caplog.messages == [f"{UNREACHABLE}{CHECK} runs"]
    outages.succeeded(Kind.SERVICE)
    assert caplog.messages[1:] == ["the API server is reachable again"]
    assert not outages.problems()
    outages.failed(Kind.NODE, UnreachableError("no route"))
    assert len(caplog.messages) == 3


def test_another_error_is_logged_once_for_its_kind_and_when_it_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    outages = OutageLog()
    for status in (403, 403, 500):
        outages.failed(Kind.SERVICE, ApiStatusError(f"status {status}", status))
    outages.succeeded(Kind.SERVICE)
    outages.succeeded(Kind.SERVICE)
    assert caplog.messages == [
        "cannot watch Service objects: status 403: bind the ClusterRole system:node-proxier to "
        "this user",
        "cannot watch Service objects: status 500",
        "watching Service objects again",
    ]


def test_each_cause_of_an_outage_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    outages = OutageLog()
    refused, tunnel = UnreachableError("refused"), ApiStatusError("407", 407, from_api=False)
    for _ in range(3):
        for kind in Kind:
            outages.failed(kind, refused)
            outages.failed(kind, tunnel)
    assert len(caplog.messages) == 2
    assert [each.topic for each in outages.problems()] == [ConfigTopic.HTTP_PROXY]


def test_each_missing_right_is_a_problem() -> None:
    outages = OutageLog()
    for kind in (Kind.SERVICE, Kind.NODE):
        outages.failed(kind, ApiStatusError(f"cannot list {kind.value}", 403))
        outages.failed(kind, ApiStatusError(f"cannot list {kind.value}", 403))
    assert [each.message for each in outages.problems()] == [
        "cannot list Service",
        "cannot list Node",
    ]


@pytest.mark.parametrize(
    "error",
    [
        SourceError("odd"),
        ConnectionLostError("lost"),
        ApiStatusError("busy", 429),
        ApiStatusError("restarting", 503, from_api=False),
        ApiStatusError("broken", 500),
    ],
)
def test_a_fault_of_the_server_is_no_mistake(error: SourceError) -> None:
    assert diagnose(error) is None


def found_at(url: str, path: str = "") -> ConfigProblem:
    """Send one request, and return the mistake that its failure shows."""
    client = connect(path, "" if path else url)
    with pytest.raises(SourceError) as caught:
        client.get("/api/v1/services", {}, PATIENCE).close()
    assert "\n" not in str(caught.value)
    found = diagnose(caught.value, client.proxy)
    assert found is not None
    return found


def fails(status: int, message: str) -> Script:
    return lambda exchange: exchange.fail(status, message)


def page(status: int) -> Script:
    return lambda exchange: exchange.respond(b"<html>", status, content_type="text/html")


def go_over_tls(exchange: Exchange) -> None:
    body = b"Client sent an HTTP request to an HTTPS server.\n"
    exchange.respond(body, 400, content_type="text/plain")


@pytest.mark.parametrize(
    ("script", "topic", "fix"),
    [
        (fails(401, "Unauthorized"), ConfigTopic.API_CREDENTIALS, "deleted ServiceAccount"),
        (
            fails(403, 'services is forbidden: User "u" cannot list resource "services"'),
            ConfigTopic.API_FORBIDDEN,
            "bind the ClusterRole system:node-proxier",
        ),
        (
            fails(403, 'services is forbidden: User "system:anonymous" cannot list'),
            ConfigTopic.API_CREDENTIALS,
            "give credentials",
        ),
        (page(403), ConfigTopic.NOT_AN_API_SERVER, "an HTTP proxy or another server"),
        (page(404), ConfigTopic.NOT_AN_API_SERVER, "an HTTP proxy or another server"),
        (page(302), ConfigTopic.NOT_AN_API_SERVER, "an HTTP proxy or another server"),
        (page(503), ConfigTopic.NOT_AN_API_SERVER, "an HTTP proxy or another server"),
        (page(407), ConfigTopic.HTTP_PROXY, "NO_PROXY"),
        (go_over_tls, ConfigTopic.API_TLS, "write https:// for http://"),
    ],
)
def test_responses(script: Script, topic: ConfigTopic, fix: str) -> None:
    with serving(script) as server:
        found = found_at(server.url)
    assert found.topic is topic
    assert fix in found.fix


def test_a_page_in_place_of_a_list(caplog: pytest.LogCaptureFixture) -> None:
    """A captive portal answers 200 with a page: one line, and no list is taken from it."""
    with serving(page(200)) as server, following(server.url) as (recorder, source):
        until(source.problems, "the mistake is found")
        until(lambda: len(server.seen) > 8, "more requests")
        assert [each.topic for each in source.problems()] == [ConfigTopic.NOT_AN_API_SERVER]
        assert not recorder.events
    lines = [each for each in caplog.messages if "another server answers in place" in each]
    assert len(lines) == 1


def test_a_closed_port_and_an_unknown_name() -> None:
    with reserved_port() as port:
        found = found_at(f"http://127.0.0.1:{port}")
    assert found.topic is ConfigTopic.API_UNREACHABLE
    assert "Connection refused" in found.message
    assert found_at("https://api.invalid:6443").topic is ConfigTopic.API_UNREACHABLE


def test_tls_to_a_server_without_tls() -> None:
    with serving(fails(500, "no")) as server:
        found = found_at(server.url.replace("http:", "https:"))
    assert found.topic is ConfigTopic.API_TLS
    assert "does not speak TLS" in found.fix


CA = """
[ca]
default_ca = here
[here]
database = {0}/index
serial = {0}/serial
new_certs_dir = {0}
default_md = sha256
policy = policy
x509_extensions = extensions
[policy]
commonName = supplied
[extensions]
basicConstraints = critical, CA:true
subjectAltName = {1}
"""


def signed(folder: Path, name: str, first: int, last: int) -> tuple[Path, Path]:
    """Return a self-signed certificate for `name` that is valid in these years, and its key."""
    _, key = certificate(folder)
    crt = folder / "dated.crt"
    (folder / "ca").write_text(CA.format(folder, name))
    (folder / "index").touch()
    (folder / "serial").write_text("01")
    for command in (
        f"req -new -key {key} -subj /CN=test -out {folder}/request",
        f"ca -config {folder}/ca -batch -selfsign -notext -keyfile {key} -in {folder}/request "
        f"-out {crt} -startdate {first}0101000000Z -enddate {last}0101000000Z",
    ):
        subprocess.run(["openssl", *command.split()], check=True, capture_output=True)
    return crt, key


def of_other_ca(folder: Path) -> tuple[Path, Path, Path]:
    other = folder / "other"
    other.mkdir()
    return (*certificate(folder), certificate(other)[0])


def of_other_name(folder: Path) -> tuple[Path, Path, Path]:
    crt, key = signed(folder, "DNS:elsewhere", 2020, 2099)
    return crt, key, crt


def expired(folder: Path) -> tuple[Path, Path, Path]:
    crt, key = signed(folder, "IP:127.0.0.1", 2020, 2021)
    return crt, key, crt


def not_yet_valid(folder: Path) -> tuple[Path, Path, Path]:
    crt, key = signed(folder, "IP:127.0.0.1", 2098, 2099)
    return crt, key, crt


@pytest.mark.parametrize(
    ("make", "message", "fix"),
    [
        (of_other_ca, "certificate verify failed", "check certificate-authority"),
        (of_other_name, "certificate is not valid for", "use an address that the server's"),
        (expired, "certificate has expired", "check the clock of this node"),
        (not_yet_valid, "certificate is not yet valid", "check the clock of this node"),
    ],
)
def test_certificates(
    tmp_path: Path,
    make: Callable[[Path], tuple[Path, Path, Path]],
    message: str,
    fix: str,
) -> None:
    crt, key, authority = make(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(crt, key)
    with serving(fails(500, "no"), tls=context) as server:
        config = kubeconfig(server.url, None, {"certificate-authority": str(authority)})
        found = found_at("", write(tmp_path / "kubeconfig", config))
    assert found.topic is ConfigTopic.API_TLS
    assert message in found.message
    assert fix in found.fix


def test_a_proxy_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(exchange: Exchange) -> None:
        exchange.respond(b"<html>", 503, content_type="text/html")

    with serving(script) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//user:secret@"))
        found = found_at("http://192.0.2.1:8080")
        assert found.topic is ConfigTopic.HTTP_PROXY
        assert proxy.url in found.fix
        assert "secret" not in str(found)
        monkeypatch.setenv("NO_PROXY", "192.0.2.0/24")
        assert not connect("", "http://192.0.2.1:8080").proxy
    # The proxy has ended now.
    monkeypatch.delenv("NO_PROXY")
    found = found_at("http://192.0.2.1:8080")
    assert found.topic is ConfigTopic.HTTP_PROXY
    assert f"by the proxy {proxy.url}" in found.message


def test_a_proxy_that_refuses_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{listening.getsockname()[1]}")

        def refuse() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        found = found_at("https://192.0.2.1:6443")
    assert found.topic is ConfigTopic.HTTP_PROXY
    assert "407 Proxy Authentication Required" in found.message


def test_the_proxy_of_a_kubeconfig_ignores_no_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    config = kubeconfig("https://192.0.2.1:6443", None, {"proxy-url": "http://127.0.0.1:9"})
    client = connect(write(tmp_path / "kubeconfig", config), "")
    assert client.proxy == "http://127.0.0.1:9"
