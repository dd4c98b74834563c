"""HTTP requests to API servers: counts, errors, and responses that are not followed."""

from __future__ import annotations

import gzip
import json
import os
import ssl
from contextlib import closing
from pathlib import Path

import pytest
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ProxyError

from pyproxy.source.api_errors import reason
from pyproxy.source.body import TooLargeError
from pyproxy.source.client import ApiStatusError, UnreachableError
from pyproxy.source.connect import connect

from .kubeconfigs import certificate, kubeconfig, write
from .scripted import Exchange, serving


class Counter:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []
        self.timed: list[tuple[str, str, int]] = []
        self.read: list[tuple[str, str, int]] = []

    def count_request(self, method: str, host: str, code: str) -> None:
        self.seen.append((method, host, code))

    def observe_request(self, method: str, host: str, duration: float, size: int) -> None:
        assert duration >= 0
        self.timed.append((method, host, size))

    def observe_response(self, method: str, host: str, size: int) -> None:
        self.read.append((method, host, size))


def test_requests_are_counted_and_errors_have_the_cause() -> None:
    counter = Counter()

    def script(exchange: Exchange) -> None:
        if exchange.command == "POST":
            exchange.respond({"posted": True}, 201)
        else:
            exchange.fail(403, "services is forbidden", Retry_After="3")

    with serving(script) as server:
        client = connect("", f"http://127.0.0.1:1,{server.url}", counter)
        with pytest.raises(ApiStatusError, match="GET /x: 403 services is forbidden") as caught:
            client.get("/x", {"a": "b"})
        assert (caught.value.status, caught.value.retry_after) == (403, 3.0)
        assert client.post("/y", b"{}") == b'{"posted": true}'
        assert server.seen[-1].body == b"{}"
        host = server.url.removeprefix("http://")
    assert counter.seen == [
        ("GET", "127.0.0.1:1", "<error>"),
        ("GET", host, "403"),
        ("POST", host, "201"),
    ]
    assert counter.timed == [("GET", host, 0), ("POST", host, 2)]
    assert counter.read == [("POST", host, len(b'{"posted": true}'))]
    with pytest.raises(UnreachableError, match=r"http://127\.0\.0\.1:1: "):
        connect("", "http://127.0.0.1:1").get("/x", {})


def test_the_size_of_a_response_is_what_it_decompresses_to_and_a_watch_has_none() -> None:
    counter = Counter()
    text = json.dumps({"kind": "ServiceList", "items": [], "metadata": {"resourceVersion": "5"}})
    page = text.encode() + b" " * 5000

    def script(exchange: Exchange) -> None:
        exchange.respond(gzip.compress(page), 200, {"Content-Encoding": "gzip"})

    with serving(script) as server:
        client = connect("", server.url, counter)
        with closing(client.get("/x", {"watch": "true"})) as response:
            assert response.read1(100) == page[:100]
        with closing(client.get("/x", {"limit": "500"})) as response:
            assert client.read(response, 10_000) == page
        with closing(client.get("/x", {})) as response, pytest.raises(TooLargeError):
            client.read(response, 100)
        assert counter.read == [("GET", server.url.removeprefix("http://"), len(page))]


def test_a_server_that_does_not_speak_http() -> None:
    def script(exchange: Exchange) -> None:
        exchange.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n")
        exchange.close_connection = True

    with serving(script) as server, pytest.raises(UnreachableError):
        connect("", server.url).get("/x", {})


def test_redirects_are_not_followed(tmp_path: Path) -> None:
    def script(exchange: Exchange) -> None:
        exchange.respond(b"", 302, {"Location": f"http://{exchange.headers['Host']}/elsewhere"})

    with serving(script) as server:
        path = write(tmp_path / "kubeconfig", kubeconfig(server.url, {"token": "secret"}))
        with pytest.raises(ApiStatusError, match="302"):
            connect(path, "").get("/x", {})
        assert [request.route for request in server.seen] == ["/x"]


@pytest.mark.parametrize(("method", "second"), [("GET", 1), ("POST", 0)])
def test_a_tls_error_in_a_response_repeats_no_post(
    tmp_path: Path, method: str, second: int
) -> None:
    """The server may have created the object before the error."""
    crt, key = certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(crt, key)

    def broken(exchange: Exchange) -> None:
        # Bytes that are no TLS record, below the TLS layer of the socket.
        os.write(exchange.connection.fileno(), b"garbage" * 10)
        exchange.close_connection = True

    with serving(broken, tls=tls) as first, serving(lambda e: e.respond({}), tls=tls) as other:
        cluster = {"certificate-authority": str(crt)}
        config = write(tmp_path / "config", kubeconfig(first.url, None, cluster))
        client = connect(config, f"{first.url},{other.url}")
        try:
            if method == "GET":
                client.get("/x", {}).close()
            else:
                client.post("/x", b"{}")
        except UnreachableError as error:
            assert method == "POST", error  # noqa: PT017
        assert [e.method for e in first.seen] == [method]
        assert len(other.seen) == second


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", [ConnectTimeoutError, NewConnectionError])
def test_the_reason_is_the_message_without_the_connection(
    kind: type[Exception], wrapped: bool
) -> None:
    error = kind(HTTPConnection("10.0.0.1"), "Connection to 10.0.0.1 timed out.")
    assert (
        reason(ProxyError("m", error) if wrapped else error) == "Connection to 10.0.0.1 timed out."
    )
