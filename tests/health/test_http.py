import contextlib
import os
import resource
import socket
import threading
import time
from pathlib import Path

import pytest

from pyproxy.config import ListenAddress
from pyproxy.health import http, slow
from pyproxy.health.http import HttpThread, Listener
from pyproxy.health.messages import Handler, Request, Response
from pyproxy.health.sockets import bind
from pyproxy.model.address import Address, parse_address
from tests.health.conftest import Get, running_http
from tests.waiting import PATIENCE, until

ANY4, ANY6 = parse_address("0.0.0.0"), parse_address("::")
LOOPBACK4, LOOPBACK6 = parse_address("127.0.0.1"), parse_address("::1")

needs_ipv6 = pytest.mark.skipif(
    not os.path.exists("/proc/net/if_inet6"), reason="this kernel has no IPv6"
)


def echo(request: Request) -> Response:
    return Response(request.path.encode(), headers=(("X-A", "b"),))


def listen(thread: HttpThread, address: ListenAddress, handler: Handler) -> Listener:
    return thread.serve(bind(address).public, handler, "test")


def exchange(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        sock.sendall(request)
        received = b""
        while chunk := sock.recv(4096):
            received += chunk
    return received


def ended(sock: socket.socket) -> bool:
    """Return whether the peer closes the connection without data before the timeout."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_response_has_status_type_headers_length_and_body(
    http_thread: HttpThread, get: Get
) -> None:
    port = listen(http_thread, ListenAddress(LOOPBACK4, 0), echo).port
    response = get(port, "/a/b?c=d")
    assert (response.status, response.body) == (200, "/a/b")
    assert response.headers == {
        "Content-Type": "text/plain; charset=utf-8",
        "X-A": "b",
        "Content-Length": "4",
        "Connection": "close",
    }


def test_head_has_no_body(http_thread: HttpThread) -> None:
    port = listen(http_thread, ListenAddress(LOOPBACK4, 0), echo).port
    response = exchange(port, b"HEAD /abc HTTP/1.1\r\nHost: x\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 4\r\n" in response
    assert response.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "request_head", [b"hello\r\n\r\n", b"\r\n\r\n", b"GET /\r\n\r\n", b"\xff\xfe / X\r\n\r\n"]
)
def test_a_malformed_request_gets_400(http_thread: HttpThread, request_head: bytes) -> None:
    port = listen(http_thread, ListenAddress(LOOPBACK4, 0), echo).port
    assert exchange(port, request_head).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_a_head_without_end_closes_the_connection(http_thread: HttpThread) -> None:
    port = listen(http_thread, ListenAddress(LOOPBACK4, 0), echo).port
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nX: " + b"y" * 40_000)
        assert ended(sock)


def test_idle_clients_do_not_delay_others(http_thread: HttpThread, get: Get) -> None:
    port = listen(http_thread, ListenAddress(LOOPBACK4, 0), echo).port
    idle = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) for _ in range(50)]
    try:
        assert get(port).status == 200
    finally:
        for sock in idle:
            sock.close()


def test_a_handler_that_fails_gives_one_500(
    http_thread: HttpThread, get: Get, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(request: Request) -> Response:
        raise RuntimeError("a bug in the handler")

    port = listen(http_thread, ListenAddress(LOOPBACK4, 0), fail).port
    other = listen(http_thread, ListenAddress(LOOPBACK4, 0), echo).port
    assert get(port, "/page").status == 500
    assert caplog.messages == ["the handler of /page failed"]
    assert "a bug in the handler" in caplog.text
    assert get(other).status == 200


@needs_ipv6
@pytest.mark.parametrize("unspecified", [ANY4, ANY6])
def test_an_unspecified_address_listens_on_both_families(
    http_thread: HttpThread, get: Get, unspecified: Address
) -> None:
    port = listen(http_thread, ListenAddress(unspecified, 0), echo).port
    assert get(port, host="127.0.0.1").status == 200
    assert get(port, host="::1").status == 200


@needs_ipv6
def test_a_specific_address_listens_on_its_family_only(http_thread: HttpThread, get: Get) -> None:
    port = listen(http_thread, ListenAddress(LOOPBACK6, 0), echo).port
    assert get(port, host="::1").status == 200
    with pytest.raises(ConnectionRefusedError):
        get(port, host="127.0.0.1")
    listen(http_thread, ListenAddress(LOOPBACK4, port), echo)
    assert get(port, host="127.0.0.1").status == 200


@pytest.mark.parametrize("address", [LOOPBACK4, ANY4])
def test_a_used_port_raises_an_error(
    http_thread: HttpThread, taken: socket.socket, address: Address
) -> None:
    with pytest.raises(OSError, match="in use"):
        listen(http_thread, ListenAddress(address, taken.getsockname()[1]), echo)


def test_a_closed_port_is_free_at_once(http_thread: HttpThread, get: Get) -> None:
    listener = listen(http_thread, ListenAddress(LOOPBACK4, 0), echo)
    port = listener.port
    for _ in range(20):
        assert get(port).status == 200
        http_thread.close([listener]).result()
        with pytest.raises(ConnectionRefusedError):
            get(port)
        listener = listen(http_thread, ListenAddress(LOOPBACK4, port), echo)


def test_out_of_file_descriptors_clients_wait(
    http_thread: HttpThread, caplog: pytest.LogCaptureFixture
) -> None:
    port = listen(http_thread, ListenAddress(LOOPBACK4, 0), echo).port
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client, contextlib.ExitStack() as taken:
        client.settimeout(PATIENCE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 20, hard))
        taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.callback(os.close, os.dup(client.fileno()))
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET /waited HTTP/1.1\r\n\r\n")
        until(lambda: bool(caplog.messages))
        assert caplog.messages[0] == f"cannot accept on port {port}: Too many open files"
        taken.close()
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")


def test_stop_ends_open_connections_and_frees_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (http, slow):
        monkeypatch.setattr(module, "_STOP_TIMEOUT", PATIENCE)
    before = set(threading.enumerate())
    with running_http() as thread:
        port = listen(thread, ListenAddress(LOOPBACK4, 0), echo).port
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as idle:
            idle.sendall(b"GET / HT")
            thread.stop()
            assert ended(idle)
        socket.create_server(("127.0.0.1", port)).close()
    assert set(threading.enumerate()) <= before


def test_busy_listeners_take_turns(http_thread: HttpThread, get: Get) -> None:
    listeners = [listen(http_thread, ListenAddress(LOOPBACK4, 0), echo) for _ in range(20)]
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            for listener in listeners:
                target = ("127.0.0.1", listener.port)
                stack.enter_context(socket.create_connection(target, timeout=PATIENCE))
        assert [get(listener.port).status for listener in listeners] == [200] * 20
        assert http_thread.accepted["test"] == 20 * 20 + 20


def test_silent_clients_end_one_after_the_other(http_thread: HttpThread) -> None:
    port = listen(http_thread, ListenAddress(LOOPBACK4, 0), echo).port
    # The second client comes after the sweep for the first one has ended.
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as silent:
            assert ended(silent)


def test_a_thread_without_clients_does_not_wake(get: Get) -> None:
    others = set(threading.enumerate())
    with running_http() as thread:
        port = listen(thread, ListenAddress(LOOPBACK4, 0), echo).port
        (server,) = (each for each in set(threading.enumerate()) - others if each.name == "http")
        for _ in range(3):
            get(port, "/")
            time.sleep(0.5)  # the sweep that the request left, of which there is one
            # On a loaded machine it comes later. A thread that polls waits in every second.
            until(lambda: waits_in_a_second(server) == 0, "the thread sleeps")


def waits_in_a_second(thread: threading.Thread) -> int:
    before = voluntary_switches(thread)
    time.sleep(1)
    return voluntary_switches(thread) - before


def voluntary_switches(thread: threading.Thread) -> int:
    """Return how often a thread of this process has waited."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("volun"))
