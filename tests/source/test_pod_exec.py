"""Commands in pods: the lab's API server, and servers that do what a compromised node may do."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import pytest
from pyproxy_lab.apiserver.exec import STDERR, STDOUT, Request, Streams
from pyproxy_lab.apiserver.exec import StartError as LabStartError
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings

from pyproxy.errors import SourceError
from pyproxy.source import pod_exec
from pyproxy.source.client import ApiStatusError, Client, UnreachableError
from pyproxy.source.connect import connect
from pyproxy.source.pod_exec import Container, PodExec, StartError
from pyproxy.source.websocket import Deadline, DeadlineError
from tests.ports import reserved_port

WHERE = Container("kube-system", "agent", "pyproxy")
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": WHERE.pod, "namespace": WHERE.namespace},
    "spec": {"nodeName": "node-a", "containers": [{"name": WHERE.name, "image": "i:1"}]},
}
PATIENCE = 20.0


async def play(request: Request, streams: Streams) -> int:
    match request.command:
        case ("fail", code):
            await streams.write(STDERR, "it failed: é".encode())
            return int(code)
        case ("missing",):
            raise LabStartError("no such\x1b[2J file")
        case ("hang",):
            await asyncio.sleep(3600)
        case ("large", size):
            for _ in range(int(size) >> 16):
                await streams.write(STDOUT, b"x" * (1 << 16))
        case ("echo",):
            await streams.write(STDOUT, await streams.stdin.read(100))
    return 0


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    with ApiServer.running(Settings()) as server:
        server.load([POD])
        server.exec.runner = play
        yield server


def run(
    client: Client, *command: str, seconds: float = PATIENCE, where: Container = WHERE
) -> tuple[int, bytes, bytes]:
    """Run a command to its end: its status, stdout and stderr."""
    parts: dict[int, bytes] = {pod_exec.STDOUT: b"", pod_exec.STDERR: b""}
    with PodExec(client, where, command, Deadline(seconds)) as running:
        for channel, data in running.output():
            parts[channel] += data
        return running.exit_status(), parts[pod_exec.STDOUT], parts[pod_exec.STDERR]


def test_output_and_exit_status(api: ApiServer) -> None:
    client = connect("", api.url)
    assert run(client, "fail", "3") == (3, b"", "it failed: é".encode())
    assert run(client, "large", str(3 << 20)) == (0, b"x" * (3 << 20), b"")


def test_a_command_that_does_not_start_is_an_error_in_one_printable_line(api: ApiServer) -> None:
    with pytest.raises(StartError) as raised:
        run(connect("", api.url), "missing")
    assert "no such\\x1b[2J file" in str(raised.value)


def test_a_missing_pod_is_an_error_of_the_api(api: ApiServer) -> None:
    with pytest.raises(ApiStatusError, match='pods "other" not found') as raised:
        run(connect("", api.url), "fail", "0", where=Container("kube-system", "other", "c"))
    assert (raised.value.status, raised.value.from_api) == (404, True)


def test_a_command_that_hangs_ends_at_the_deadline(api: ApiServer) -> None:
    with pytest.raises(DeadlineError, match=r"no response within 0\.2 s"):
        run(connect("", api.url), "hang", seconds=0.2)


Script = Callable[[socket.socket, bytes], None]


@contextmanager
def peer(script: Script) -> Iterator[Client]:
    """Run a script for the connections of a client; it gets the request's head."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock, suppress(OSError):
                head = b""
                while b"\r\n\r\n" not in head:
                    head += sock.recv(4096)
                script(sock, head)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield connect("", f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(PATIENCE)


def accept(head: bytes, protocol: bytes = b"v5.channel.k8s.io") -> bytes:
    key = next(h for h in head.split(b"\r\n") if h.startswith(b"Sec-WebSocket-Key: "))[19:]
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n"
        b"Sec-WebSocket-Protocol: " + protocol + b"\r\n\r\n"
    )


def sends(*frames: bytes) -> Script:
    def script(sock: socket.socket, head: bytes) -> None:
        sock.sendall(accept(head) + b"".join(frames))

    return script


SUCCESS = b'\x82\x15\x03{"status":"Success"}'


def test_messages_may_be_split_into_frames_and_mixed_with_pings() -> None:
    frames = (b"\x02\x03\x01ab", b"\x89\x01p", b"\x80\x01c", b"\x82\x01\x01", SUCCESS, b"\x88\x00")
    with peer(sends(*frames)) as client:
        assert run(client, "any") == (0, b"abc", b"")


def test_servers_before_v5_are_understood() -> None:
    def script(sock: socket.socket, head: bytes) -> None:
        assert b"\r\nSec-WebSocket-Protocol: v5.channel.k8s.io, v4.channel.k8s.io\r\n" in head
        sock.sendall(accept(head, b"v4.channel.k8s.io") + b"\x82\x02\x01a" + SUCCESS + b"\x88\x00")

    with peer(script) as client:
        assert run(client, "any") == (0, b"a", b"")


def test_a_server_with_another_subprotocol_is_an_error() -> None:
    def script(sock: socket.socket, head: bytes) -> None:
        sock.sendall(accept(head, b"base64.channel.k8s.io"))

    with peer(script) as client, pytest.raises(SourceError, match=r"'base64\.channel"):
        run(client, "any")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ((b"\x82\x81\0\0\0\0\x01",), "masked"),
        ((b"\x89\x7e\x00\x7e" + b"p" * 126,), "control frame is too long"),
        ((b"\x82\x03\x01ab",), "the connection was closed"),
        ((b"\x82\x03\x01ab", b"\x88\x00"), "closed before the command's end"),
        ((b"\x82\x03\x03[]", b"\x88\x00"), "closed before the command's end"),
        ((b"\x82\x03\x03\xff\xff", b"\x88\x00"), "closed before the command's end"),
        ((b"\x82\x7e\x08\x01\x03" + b"[" * 2048, b"\x88\x00"), "closed before the command's end"),
        ((b'\x82\x15\x03{"status":"Failure"}', b"\x88\x00"), "the command failed"),
    ],
)
def test_a_peer_that_breaks_the_protocol_is_an_error(frames: Iterable[bytes], message: str) -> None:
    with peer(sends(*frames)) as client, pytest.raises(SourceError, match=message):
        run(client, "any")


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "HTTP status 200|: 200"),
        (b"HTTP/1.1 101 OK\r\n\r\n", "not that of a WebSocket server"),
        (b"nonsense\r\n\r\n", "not HTTP/1"),
        (b"HTTP/1.1 101 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", "invalid"),
        (b"HTTP/1.1 101 OK\r\n" + b"a: b\r\n" * 5000, "too long"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 99999999\r\n\r\n{}", "403"),
    ],
)
def test_a_server_that_does_not_switch_protocols_is_an_error(response: bytes, message: str) -> None:
    def script(sock: socket.socket, head: bytes) -> None:
        sock.sendall(response)

    with peer(script) as client, pytest.raises(SourceError, match=message):
        run(client, "any")


def test_a_frame_of_any_length_arrives_in_parts() -> None:
    """A frame that claims 2**62 bytes is not held, and its reader stops where it wants to."""

    def script(sock: socket.socket, head: bytes) -> None:
        sock.sendall(accept(head) + b"\x82\x7f" + (1 << 62).to_bytes(8) + b"\x01")
        for _ in itertools.count():
            sock.sendall(b"x" * (1 << 16))

    with peer(script) as client, PodExec(client, WHERE, ["any"], Deadline(PATIENCE)) as running:
        sizes = [len(data) for _, data in itertools.islice(running.output(), 200)]
    assert len(sizes) == 200
    assert max(sizes) <= 1 << 16


def test_a_peer_that_drips_bytes_cannot_extend_the_deadline() -> None:
    stopped = threading.Event()

    def script(sock: socket.socket, head: bytes) -> None:
        for byte in itertools.cycle(b"HTTP/1.1 "):
            sock.sendall(bytes([byte]))
            if stopped.wait(0.01):
                return

    with peer(script) as client:
        with pytest.raises(DeadlineError):
            run(client, "any", seconds=0.3)
        stopped.set()


def test_a_server_that_refuses_the_connection_is_unreachable() -> None:
    with (
        reserved_port() as port,
        pytest.raises(UnreachableError, match=f"127.0.0.1:{port}"),
    ):
        run(connect("", f"http://127.0.0.1:{port}"), "any")
