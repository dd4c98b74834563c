"""Commands in pods over TLS, through an HTTP proxy, and below a path of a server's URL."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings

from pyproxy.source.client import ApiStatusError, Client, UnreachableError
from pyproxy.source.connect import connect
from tests.waiting import PATIENCE

from .kubeconfigs import certificate, kubeconfig, write
from .test_pod_exec import POD, peer, play, run

TOKEN = "the-users"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return certificate(tmp_path)


@pytest.fixture
def server(pair: tuple[Path, Path]) -> Iterator[ApiServer]:
    with ApiServer.running(Settings(token=TOKEN, tls_cert=pair[0], tls_key=pair[1])) as api:
        api.load([POD])
        api.exec.runner = play
        yield api


def client(folder: Path, url: str, token: str = TOKEN, **cluster: str) -> Client:
    return connect(write(folder / "kubeconfig", kubeconfig(url, {"token": token}, cluster)), "")


def test_tls_is_that_of_other_requests(
    server: ApiServer, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    trusting = client(tmp_path, server.url, **{"certificate-authority": str(pair[0])})
    assert run(trusting, "large", str(1 << 20)) == (0, b"x" * (1 << 20), b"")
    with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
        run(client(tmp_path, server.url), "fail", "0")
    wrong = client(tmp_path, server.url, "wrong", **{"certificate-authority": str(pair[0])})
    with pytest.raises(ApiStatusError, match="401"):
        run(wrong, "fail", "0")


@contextmanager
def connect_proxy(seen: list[bytes]) -> Iterator[str]:
    """Run an HTTP proxy that knows CONNECT to one server; yield its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            head = b""
            while b"\r\n\r\n" not in head:
                head += sock.recv(1)
            seen.append(head)
            host, _, port = head.split(b" ")[1].decode().rpartition(":")
            with sock, socket.create_connection((host, int(port))) as there:
                sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                threading.Thread(target=copy, args=(there, sock), daemon=True).start()
                copy(sock, there)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://user:secret@127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(PATIENCE)


def copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)


def test_a_proxy_leads_to_the_server(
    server: ApiServer, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    seen: list[bytes] = []
    with connect_proxy(seen) as url:
        trusting = client(
            tmp_path, server.url, **{"certificate-authority": str(pair[0]), "proxy-url": url}
        )
        assert run(trusting, "fail", "4")[0] == 4
    assert seen[0].startswith(b"CONNECT 127.0.0.1:")
    assert b"Proxy-Authorization: Basic " in seen[0]


def test_a_proxy_cannot_lead_to_a_server_without_tls(tmp_path: Path) -> None:
    plain = client(tmp_path, "http://127.0.0.1:1", **{"proxy-url": "http://127.0.0.1:2"})
    with pytest.raises(UnreachableError, match="a server with https only"):
        run(plain, "fail", "0")


def test_the_path_of_the_servers_url_comes_first(tmp_path: Path) -> None:
    heads: list[bytes] = []

    def script(sock: socket.socket, head: bytes) -> None:
        heads.append(head)
        sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    with peer(script) as plain, pytest.raises(ApiStatusError):
        run(client(tmp_path, f"{plain.host}/k8s/clusters/c-1/"), "a b", "c")
    lines = heads[0].decode().split("\r\n")
    assert lines[0] == (
        "GET /k8s/clusters/c-1/api/v1/namespaces/kube-system/pods/agent/exec?container=pyproxy"
        "&stdout=true&stderr=true&command=a+b&command=c HTTP/1.1"
    )
    assert f"Authorization: Bearer {TOKEN}" in lines
