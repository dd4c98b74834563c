"""Tokens with white space or invalid characters, and credentials in errors: none leaves."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pyproxy import logs
from pyproxy.errors import PyproxyError, SourceError, UsageError
from pyproxy.redaction import KNOWN, bare_urls
from pyproxy.source import connect as connect_module
from pyproxy.source import exec_plugin as exec_module
from pyproxy.source.connect import connect
from pyproxy.source.credentials import REREAD, CredentialError, TokenFile
from pyproxy.source.kubernetes import KubernetesSource
from tests.hostile.odd_files import ODD, make_odd
from tests.source.kubeconfigs import kubeconfig, write
from tests.source.scripted import Exchange, Pace, Recorder, quiet, serving
from tests.source.test_connect import fetch
from tests.waiting import until

SECRET = "PLANTED-secret-0123456789"
API = "client.authentication.k8s.io/v1"
Config = dict[str, Any]


def plugin(folder: Path, script: str, **more: Any) -> Config:
    """Return a user with an exec plugin that is this shell script."""
    path = folder / "plugin"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"exec": {"apiVersion": API, "command": str(path)} | more}


def credential(folder: Path, token: str) -> Config:
    """Return a user with a plugin that prints a token."""
    output = {"apiVersion": API, "kind": "ExecCredential", "status": {"token": token}}
    (folder / "output").write_text(json.dumps(output))
    return plugin(folder, f"cat {folder}/output")


def token_file(folder: Path, token: str) -> Config:
    (folder / "token").write_bytes(token.encode())
    return {"tokenFile": "token"}


SOURCES: dict[str, Callable[[Path, str], Config]] = {
    "inline": lambda folder, token: {"token": token},
    "token file": token_file,
    "exec plugin": credential,
}


def echo(exchange: Exchange) -> None:
    exchange.respond({"authorization": exchange.headers.get("Authorization")})


@pytest.mark.parametrize("space", ["\n", "\r\n", "  ", "\n\n\t ", ""])
@pytest.mark.parametrize("source", SOURCES)
def test_white_space_around_a_token_is_trimmed(tmp_path: Path, source: str, space: str) -> None:
    user = SOURCES[source](tmp_path, space + SECRET + space)
    with serving(echo) as server:
        answer = fetch(connect(write(tmp_path / "config", kubeconfig(server.url, user)), ""))
    assert answer == b'{"authorization": "Bearer %s"}' % SECRET.encode()


def test_a_service_account_token_is_trimmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\r\n")
    (tmp_path / "ca.crt").write_text("")
    monkeypatch.setattr(connect_module, "SERVICE_ACCOUNT_TOKEN", tmp_path / "token")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443\n")
    with serving(echo) as server:
        assert b'"Bearer %s"' % SECRET.encode() in fetch(connect("", server.url))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("inner", ["\n", "\0", "\x7f", " ", "\u00e9", "\r\nX-Evil: 1"])
def test_an_invalid_character_is_one_line_without_the_value(
    tmp_path: Path, source: str, inner: str, caplog: pytest.LogCaptureFixture
) -> None:
    user = SOURCES[source](tmp_path, f"{SECRET}{inner}{SECRET}")
    path = write(tmp_path / "config", kubeconfig("http://127.0.0.1:1", user))
    with pytest.raises((UsageError, CredentialError)) as caught:
        fetch(connect(path, ""))
    text = str(caught.value)
    assert text.startswith(f"--kubeconfig {path}: users[name=u].user.")
    assert f"character {len(SECRET) + 1} of" in text
    assert SECRET not in text
    assert "\n" not in text


def test_user_and_password_are_encoded(tmp_path: Path) -> None:
    user = {"username": "jo", "password": f"{SECRET}\n\u20ac"}
    with serving(echo) as server:
        found = fetch(connect(write(tmp_path / "config", kubeconfig(server.url, user)), ""))
        encoded = base64.b64encode(f"jo:{SECRET}\n\u20ac".encode())
        assert b"Basic " + encoded in found
        with_user = server.url.replace("//", f"//jo:{SECRET}@")
        client = connect("", with_user)
        assert b"Basic " + base64.b64encode(f"jo:{SECRET}".encode()) in fetch(client)
        assert client.hosts == (server.url,)
        # As in Go, other credentials take precedence over those of the URL.
        path = write(tmp_path / "config", kubeconfig(with_user, {"token": "other"}))
        assert b"Bearer other" in fetch(connect(path, ""))


def test_a_proxys_user_and_password_are_a_header(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def script(exchange: Exchange) -> None:
        exchange.respond({"proxy": exchange.headers.get("Proxy-Authorization")})

    with serving(script) as proxy:
        cluster = {"proxy-url": proxy.url.replace("//", f"//jo:{SECRET}@")}
        path = write(tmp_path / "config", kubeconfig("http://192.0.2.1:8080", {}, cluster))
        assert base64.b64encode(f"jo:{SECRET}".encode()) in fetch(connect(path, ""))
    assert SECRET not in caplog.text


def test_a_token_file_is_read_again_and_survives_a_bad_replacement(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "token"
    now = [0.0]
    found = TokenFile(str(path), "the file", clock=lambda: now[0])
    with pytest.raises(CredentialError, match=r"^the file: No such file"):
        found.authorization()
    path.write_text("first\n")
    assert found.authorization() == "Bearer first"
    path.write_text("second\n")
    assert found.authorization() == "Bearer first"
    for content in (b"", b"\xff\xfe", b"a b", b"x" * (1 << 17)):
        path.write_bytes(content)
        for _ in range(3):
            now[0] += REREAD
            assert found.authorization() == "Bearer first"
    assert len(caplog.records) == 4
    path.write_text("second\n")
    now[0] += REREAD
    assert found.authorization() == "Bearer second"


@pytest.mark.parametrize("what", ODD)
def test_files_that_are_none(tmp_path: Path, what: str) -> None:
    path = tmp_path / "odd"
    make_odd(path, what)
    with pytest.raises(UsageError, match=r"not a regular file|Is a directory"):
        connect(str(path), "")
    config = write(tmp_path / "config", kubeconfig("http://127.0.0.1:1", {"tokenFile": str(path)}))
    with pytest.raises(CredentialError, match=r"not a regular file|Is a directory"):
        fetch(connect(config, ""))


PLUGINS: dict[str, tuple[str, str]] = {
    "fails": (f"echo {SECRET} >&2; echo {SECRET}; exit 3", "exited with status 3"),
    "prints no JSON": (f"echo {SECRET}", "did not return an ExecCredential in JSON"),
    "prints another type": (
        f'echo \'{{"apiVersion":"{API}","kind":"ExecCredential","status":"{SECRET}"}}\'',
        "did not return an ExecCredential in JSON",
    ),
    "prints another version": (
        f'echo \'{{"apiVersion":"{SECRET}","kind":"ExecCredential","status":{{}}}}\'',
        "did not return an ExecCredential of",
    ),
    "prints nothing useful": (
        f'echo \'{{"apiVersion":"{API}","kind":"ExecCredential","status":{{}}}}\'',
        "returned neither a token nor a certificate",
    ),
    "prints a bad time": (
        f'echo \'{{"apiVersion":"{API}","kind":"ExecCredential","status":'
        f'{{"token":"t","expirationTimestamp":"{SECRET}"}}}}\'',
        "expirationTimestamp that is not RFC 3339",
    ),
    "prints without an end": (f"yes {SECRET}", "returned more than 1048576 bytes"),
    "does not end": ("sleep 1000 & sleep 1000", "did not end within 0 s"),
    "closes its output and does not end": ("exec >&-; sleep 1000", "did not end within 0 s"),
}


@pytest.mark.parametrize("what", PLUGINS)
def test_exec_plugins_are_bounded(
    tmp_path: Path,
    what: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    script, message = PLUGINS[what]
    if "not end" in what:
        monkeypatch.setattr(exec_module, "TIMEOUT", 0.3)
    user = plugin(
        tmp_path, script, args=["--password", SECRET], env=[{"name": "KEY", "value": SECRET}]
    )
    path = write(tmp_path / "config", kubeconfig("http://127.0.0.1:1", user))
    # Not a UsageError: the reason may pass, so that the agent tries again.
    with pytest.raises(SourceError) as caught:
        fetch(connect(path, ""))
    text = str(caught.value)
    assert text.startswith(f"--kubeconfig {path}: users[name=u].user.exec: {tmp_path}/plugin ")
    assert message in text
    output = "".join(capfd.readouterr())
    assert SECRET not in text + caplog.text + output


def test_an_exec_plugin_that_recovers_is_used(tmp_path: Path) -> None:
    user = credential(tmp_path, "later")
    (tmp_path / "output").rename(tmp_path / "hidden")
    with serving(echo) as server:
        client = connect(write(tmp_path / "config", kubeconfig(server.url, user)), "")
        with pytest.raises(CredentialError):
            fetch(client)
        (tmp_path / "hidden").rename(tmp_path / "output")
        assert b"Bearer later" in fetch(client)


def test_a_source_with_a_bad_credential_is_one_line_and_recovers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = tmp_path / "token"
    token.write_text(f"{SECRET} {SECRET}")
    recorder, clock = Recorder(), Pace()
    with serving(quiet) as server:
        user = {"tokenFile": str(token)}
        client = connect(write(tmp_path / "config", kubeconfig(server.url, user)), "")
        source = KubernetesSource(client, "node-a", recorder, clock=clock)
        source.start()
        try:
            until(lambda: len(clock.waits) > 30)
            # One line for all kinds, whatever the number of attempts.
            lines = [record.getMessage() for record in caplog.records]
            assert len(lines) == 1, lines
            assert all("of the token cannot be in an HTTP header" in line for line in lines)
            assert all(record.exc_info is None for record in caplog.records)
            assert server.seen == []
            token.write_text(f"{SECRET}\n")
            recorder.until(lambda seen: "=" in seen)
        finally:
            source.stop()
    assert {e.headers["authorization"] for e in server.seen} == {f"Bearer {SECRET}"}
    assert SECRET not in caplog.text


KUBECONFIGS: dict[str, Callable[[Config], object]] = {
    "server": lambda c: c["clusters"][0]["cluster"].update(server=f"ftp://jo:{SECRET}@host"),
    "user is text": lambda c: c["users"][0].update(user=SECRET),
    "token is a list": lambda c: c["users"][0]["user"].update(token=[SECRET]),
    "token is a map": lambda c: c["users"][0]["user"].update(token={SECRET: SECRET}),
    "password is a list": lambda c: c["users"][0].update(user={"password": [SECRET]}),
    "key is no base64": lambda c: c["users"][0].update(
        user={"client-key-data": f"{SECRET}!", "client-certificate-data": SECRET}
    ),
    "authority is no base64": lambda c: c["clusters"][0]["cluster"].update(
        {"certificate-authority-data": f"{SECRET}!"}
    ),
    "proxy": lambda c: c["clusters"][0]["cluster"].update(
        {"proxy-url": f"gopher://jo:{SECRET}@host"}
    ),
    "proxy's port": lambda c: c["clusters"][0]["cluster"].update(
        {"proxy-url": f"http://jo:{SECRET}@host:port"}
    ),
    "plugin without a command": lambda c: c["users"][0].update(
        user={"exec": {"apiVersion": API, "args": [SECRET]}}
    ),
    "plugin's variables": lambda c: c["users"][0].update(
        user={"exec": {"apiVersion": API, "command": "x", "env": {SECRET: SECRET}}}
    ),
    "auth-provider": lambda c: c["users"][0].update(
        user={"auth-provider": {"name": "oidc", "config": {"id-token": SECRET}}}
    ),
}


@pytest.mark.parametrize("what", KUBECONFIGS)
def test_invalid_kubeconfigs_are_one_line_without_values(tmp_path: Path, what: str) -> None:
    config = kubeconfig(f"https://jo:{SECRET}@127.0.0.1:1", {"token": SECRET})
    KUBECONFIGS[what](config)
    path = write(tmp_path / "config", config)
    with pytest.raises(UsageError) as caught:
        connect(path, "")
    text = str(caught.value)
    assert SECRET not in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "line", ["token: {SECRET}: x", "token: *{SECRET}", "token: 'SECRET", "token: !{SECRET} x", "\0"]
)
def test_a_kubeconfig_that_is_no_yaml_is_not_repeated(tmp_path: Path, line: str) -> None:
    text = yaml.safe_dump(kubeconfig("https://127.0.0.1:1", {"token": "MARK"}))
    broken = text.replace("token: MARK", line.replace("{SECRET}", SECRET).replace("SECRET", SECRET))
    path = write(tmp_path / "config", broken)
    with pytest.raises(UsageError, match="not YAML") as caught:
        connect(path, "")
    assert SECRET not in str(caught.value)


# Characters that a URL cannot have there, and those that end or split it.
ODD_PASSWORDS = [f"{SECRET}{inner}{SECRET}" for inner in "/?#,@:[ '\"%\\"] + [
    f"[{SECRET}",
    f"{SECRET}]",
]


@pytest.mark.parametrize("password", ODD_PASSWORDS)
def test_a_list_of_urls_is_shown_without_passwords(password: str) -> None:
    shown = bare_urls(f"https://a:1,https://jo:{password}@b:2/x,http://c")
    assert shown == "https://a:1,https://b:2/x,http://c"


@pytest.mark.parametrize("password", ODD_PASSWORDS)
@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_no_error_repeats_a_password_of_a_url(
    tmp_path: Path,
    password: str,
    scheme: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"{scheme}://jo:{password}@127.0.0.1:9"
    server = write(tmp_path / "server", kubeconfig(url))
    proxied = write(tmp_path / "proxied", kubeconfig("http://192.0.2.1:1", {}, {"proxy-url": url}))
    monkeypatch.setenv("HTTPS_PROXY", url)
    for path, master in (
        ("", url),
        ("", f"http://a:1,{url}"),
        (server, ""),
        (proxied, ""),
        ("", "https://192.0.2.1:1"),
    ):
        with pytest.raises(PyproxyError) as caught:
            connect(path, master).get("/version", {}, 1)
        error: BaseException | None = caught.value
        assert SECRET not in f"{error}{caplog.text}"
        # The text of a traceback, which the log redacts.
        while error is not None:
            assert SECRET not in KNOWN.redact(str(error))
            error = error.__cause__


def test_tracebacks_are_logged_without_known_credentials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second line of defence, for texts of libraries and of bugs."""
    connect(write(tmp_path / "config", kubeconfig("https://127.0.0.1:1", {"token": SECRET})), "")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.configure(9)
        try:
            raise ValueError(f"Invalid header value b'Bearer {SECRET}'")
        except ValueError:
            logging.getLogger("pyproxy").exception("failed at https://jo:pw@host/ for %s", SECRET)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("pyproxy").setLevel(logging.NOTSET)
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert SECRET not in shown
    assert "jo:pw" not in shown
