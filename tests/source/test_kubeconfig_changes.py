"""A kubeconfig that changes on disk: the server, the CA or the user are followed."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pyproxy.source.client import ApiStatusError, Client, UnreachableError
from pyproxy.source.connect import connect
from pyproxy.source.kubernetes import KubernetesSource
from tests.waiting import PATIENCE

from .kubeconfigs import certificate, kubeconfig, write
from .scripted import Exchange, Pace, Recorder, Script, a_service, end_of_list, services, serving


def server_with(name: str) -> Script:
    """Return the script of a server with one Service of this name, and a watch without an end."""

    def script(exchange: Exchange) -> None:
        exchange.begin()
        exchange.events([("ADDED", a_service(name)), end_of_list("1")])
        exchange.hold()

    return services(script)


@contextmanager
def following(client: Client) -> Iterator[Recorder]:
    recorder = Recorder()
    source = KubernetesSource(client, "node-a", recorder, silence=30.0, clock=Pace())
    source.start()
    try:
        yield recorder
    finally:
        source.stop()


def in_place(path: Path, text: str, _: Client) -> None:
    path.write_text(text)


def renamed(path: Path, text: str, _: Client) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def in_two_parts(path: Path, text: str, client: Client) -> None:
    path.write_text(text[: len(text) // 2])
    client.follow_files()
    with pytest.raises((ApiStatusError, UnreachableError)):
        # The former server and its credentials stay in use.
        client.get("/nothing", {}, PATIENCE)
    path.write_text(text)


def after_a_gap(path: Path, text: str, client: Client) -> None:
    path.unlink()
    client.follow_files()
    with pytest.raises((ApiStatusError, UnreachableError)):
        client.get("/nothing", {}, PATIENCE)
    path.write_text(text)


@pytest.mark.parametrize("change", [in_place, renamed, in_two_parts, after_a_gap])
def test_a_server_that_moves(tmp_path: Path, change: Callable[[Path, str, Client], None]) -> None:
    """The watches leave the former server, which still runs, when the file names another one."""
    path = tmp_path / "kubeconfig"
    with serving(server_with("old")) as old, serving(server_with("new")) as new:
        client = connect(write(path, kubeconfig(old.url)), "")
        with following(client) as recorder:
            recorder.until(lambda seen: seen == ["+old", "=old"])
            client.follow_files()
            change(path, path.read_text().replace(old.url, new.url), client)
            client.follow_files()
            recorder.until(lambda seen: seen[-2:] == ["+new", "=new"])
            assert client.hosts == (new.url,)


def test_a_server_that_moves_while_a_request_connects_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is not there yet cannot be interrupted."""
    path = tmp_path / "kubeconfig"
    with serving(server_with("old")) as old, serving(server_with("new")) as new:
        client = connect(write(path, kubeconfig(old.url)), "")
        monkeypatch.setattr(client, "interrupt", lambda: None)

        def move(exchange: Exchange) -> None:
            write(path, kubeconfig(new.url))
            client.follow_files()
            server_with("old")(exchange)

        old.script = move
        response = client.get("/api/v1/services", {}, PATIENCE)
        with closing(response):
            assert str(response.url).startswith(new.url)
        assert client.hosts == (new.url,)


@pytest.mark.parametrize("request_between", [False, True], ids=["", "request-between"])
def test_a_ca_that_arrives_after_the_kubeconfig(
    tmp_path: Path,
    request_between: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The look after the CA is there ends the watches, also if a request has read it before."""
    path, authority = tmp_path / "kubeconfig", tmp_path / "new.crt"
    crt, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(crt, key)
    with serving(server_with("old")) as old, serving(server_with("new"), tls=context) as new:
        client = connect(write(path, kubeconfig(old.url)), "")
        with following(client) as recorder:
            recorder.until(lambda seen: seen == ["+old", "=old"])
            cluster = {"certificate-authority": str(authority)}
            # Renamed, because a request may read a file that is being written.
            Path(write(tmp_path / "next", kubeconfig(new.url, cluster=cluster))).rename(path)
            interrupts = []

            def interrupt() -> None:
                interrupts.append(client.hosts)
                Client.interrupt(client)

            monkeypatch.setattr(client, "interrupt", interrupt)
            for _ in range(20):
                client.follow_files()
            assert client.hosts == (old.url,)
            assert interrupts == []
            (line,) = caplog.messages
            assert str(authority) in line
            authority.write_bytes(crt.read_bytes())
            if request_between:
                client.get("/api/v1/services", {}, 5).close()
                client.get("/api/v1/services", {}, 5).close()
            for _ in range(3):
                client.follow_files()
            recorder.until(lambda seen: seen[-2:] == ["+new", "=new"])
            assert interrupts == [(new.url,)]


def test_a_swap_of_a_config_map(tmp_path: Path) -> None:
    """A kubelet writes a new folder, and swaps the symbolic link to it."""
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    data = tmp_path / "..data"
    data.symlink_to("1")
    link = tmp_path / "kubeconfig.conf"
    link.symlink_to("..data/kubeconfig.conf")
    with serving(server_with("old")) as old, serving(server_with("new")) as new:
        write(tmp_path / "1/kubeconfig.conf", kubeconfig(old.url))
        client = connect(str(link), "")
        with following(client) as recorder:
            recorder.until(lambda seen: seen == ["+old", "=old"])
            write(tmp_path / "2/kubeconfig.conf", kubeconfig(new.url))
            (tmp_path / "..tmp").symlink_to("2")
            os.rename(tmp_path / "..tmp", data)
            client.follow_files()
            recorder.until(lambda seen: seen[-2:] == ["+new", "=new"])


def test_no_connection_breaks_without_a_change(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    with serving(server_with("old")) as old:
        client = connect(write(path, kubeconfig(old.url)), "")
        with following(client) as recorder:
            recorder.until(lambda seen: seen == ["+old", "=old"])
            requests = len(old.seen)
            for _ in range(3):
                client.follow_files()
            path.unlink()
            client.follow_files()
            assert client.get("/api/v1/services", {}, PATIENCE).status == 200
            assert len(old.seen) <= requests + 4
            assert recorder.services() == ["+old", "=old"]


def test_master_precedes_the_server_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"

    def echo(exchange: Exchange) -> None:
        exchange.respond({"authorization": exchange.headers.get("Authorization")})

    with serving(echo) as server:
        write(path, kubeconfig("http://127.0.0.1:1", {"token": "one"}))
        client = connect(str(path), server.url)
        renamed(
            path,
            path.read_text().replace("one", "two").replace("127.0.0.1:1", "192.0.2.1:2"),
            client,
        )
        assert b"Bearer two" in client.get("/x", {}, PATIENCE).read()
        assert client.hosts == (server.url,)


def test_a_context_user_and_ca_that_change(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    crt, key = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = certificate(tmp_path / "other")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(crt, key)

    def echo(exchange: Exchange) -> None:
        exchange.respond({"authorization": exchange.headers.get("Authorization")})

    with serving(echo, tls=context) as server:

        def config(authority: Path, token: str) -> str:
            cluster = {"certificate-authority": str(authority)}
            return write(path, kubeconfig(server.url, {"token": token}, cluster))

        client = connect(config(crt, "one"), "")
        assert b"Bearer one" in client.get("/x", {}, PATIENCE).read()
        config(other, "one")
        client.follow_files()
        with pytest.raises(UnreachableError, match="certificate verify failed"):
            client.get("/x", {}, PATIENCE)
        text = Path(config(crt, "two")).read_text()
        assert b"Bearer two" in client.get("/x", {}, PATIENCE).read()
        # The same cluster by another context with another user.
        more = kubeconfig(server.url, {"token": "three"}, {"certificate-authority": str(crt)})
        more["users"][0]["name"] = more["contexts"][0]["context"]["user"] = "v"
        more["contexts"][0]["name"] = more["current-context"] = "there"
        assert text != Path(write(path, more)).read_text()
        assert b"Bearer three" in client.get("/x", {}, PATIENCE).read()
