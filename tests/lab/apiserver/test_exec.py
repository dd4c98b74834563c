"""The subresource exec, with kubectl and with messages of the protocol."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
import pytest
from pyproxy_lab.apiserver import access
from pyproxy_lab.apiserver.exec import STDERR, STDOUT, Request, StartError, Streams
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.workloads import terminal

from tests.lab.api import PODS, Api

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "one", "namespace": "default"},
    "spec": {"nodeName": "node-a", "containers": [{"name": "c", "image": "c:1"}]},
    "status": {"phase": "Running"},
}
EXEC = f"{PODS}/one/exec"


async def echo(request: Request, streams: Streams) -> int:
    """Repeat the input, name the command on stderr, and end with its last word as the status."""
    if request.command[0] == "missing":
        raise StartError('exec: "missing": executable file not found in $PATH')
    if request.command[0] == "endless":
        await asyncio.sleep(3600)
    while data := await streams.stdin.read(1 << 16):
        await streams.write(STDOUT, data)
    await streams.write(STDERR, " ".join(request.command).encode())
    return int(request.command[-1])


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer.running(Settings()) as running:
        running.load([POD])
        running.exec.runner = echo
        yield running


def kubectl(
    server: ApiServer, folder: Path, *words: str, text: str = ""
) -> subprocess.CompletedProcess[str]:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    environment = {**os.environ, "HOME": str(folder), "KUBECONFIG": str(folder / "none")}
    return subprocess.run(
        ["kubectl", "--server", server.url, *words],
        env=environment, input=text, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("status", [0, 3])
def test_kubectl_gets_output_and_exit_status(
    server: ApiServer, tmp_path: Path, status: int
) -> None:
    # kubectl ends its input with v5's message, on which the command waits.
    done = kubectl(server, tmp_path, "exec", "-i", "one", "--", "run", str(status), text="hello\n")
    assert done.stdout == "hello\n"
    assert done.stderr.startswith(f"run {status}")
    assert done.returncode == status


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("one", "--", "missing"), "executable file not found"),
        (("two", "--", "run", "0"), 'pods "two" not found'),
        (("one", "-c", "x", "--", "run", "0"), "container x is not valid for pod one"),
    ],
)
def test_kubectl_shows_why_a_command_does_not_start(
    server: ApiServer, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = kubectl(server, tmp_path, "exec", *words)
    assert done.returncode == 1
    assert message in done.stderr


def messages(server: ApiServer, query: str, protocol: str, *sent: bytes) -> tuple[str, list[bytes]]:
    """Run a command over WebSocket; return the chosen subprotocol and all messages."""

    async def run() -> tuple[str, list[bytes]]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(server.url + EXEC + query, protocols=[protocol]) as socket,
        ):
            for each in sent:
                await socket.send_bytes(each)
            return socket.protocol or "", [each.data async for each in socket]

    return asyncio.run(run())


def test_v4_has_the_channels_and_the_status() -> None:
    with ApiServer.running(Settings()) as server:
        server.load([POD])
        server.exec.runner = echo
        found, received = messages(
            server, "?command=run&command=7&stdout=1&stderr=1", "v4.channel.k8s.io"
        )
        assert server.exec.most == 1
    assert found == "v4.channel.k8s.io"
    assert received[:-1] == [b"\x01", b"\x02run 7"]
    assert received[-1][:1] == b"\x03"
    result = json.loads(received[-1][1:])
    assert (result["reason"], result["details"]["causes"]) == (
        "NonZeroExitCode",
        [{"reason": "ExitCode", "message": "7"}],
    )


@pytest.mark.parametrize(
    ("program", "sent", "output", "status"),
    [
        ("cat; echo error >&2; exit 3", b"hello", (b"hello", b"error\n"), "3"),
        ("kill -9 $$", b"", (b"", b""), "137"),
    ],
)
def test_a_program_has_the_streams_and_the_status_that_a_shell_shows(
    program: str, sent: bytes, output: tuple[bytes, bytes], status: str
) -> None:
    async def run(request: Request, streams: Streams) -> int:
        return await terminal.run(request.command, streams, os.environ, tty=request.tty)

    query = urlencode(
        [("command", word) for word in ("sh", "-c", program)]
        + [(stream, "1") for stream in ("stdin", "stdout", "stderr")]
    )
    with ApiServer.running(Settings()) as server:
        server.load([POD])
        server.exec.runner = run
        input_, end = b"\x00" + sent, b"\xff\x00"
        _, received = messages(server, f"?{query}", "v5.channel.k8s.io", input_, end)
    found = [b"".join(each[1:] for each in received if each[0] == n) for n in (STDOUT, STDERR)]
    assert tuple(found) == output
    assert json.loads(received[-1][1:])["details"]["causes"][0]["message"] == status


def test_v5_closes_the_input_with_a_message(server: ApiServer) -> None:
    query = "?command=run&command=0&stdin=1&stdout=1"
    _, received = messages(server, query, "v5.channel.k8s.io", b"\x00hello", b"\xff\x00")
    assert received == [b"\x01", b"\x01hello", b'\x03{"metadata":{},"status":"Success"}']


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        (f"{EXEC}?command=run&stdout=1", 400, "Upgrade request required"),
        (f"{EXEC}?stdout=1", 400, "you must specify a command for the exec"),
        (f"{EXEC}?command=run", 400, "at least 1 of stdin, stdout, stderr"),
        (f"{PODS}/two/exec?command=run&stdout=1", 404, 'pods "two" not found'),
    ],
)
def test_requests_are_checked(server: ApiServer, path: str, code: int, message: str) -> None:
    response = Api(server.url)("GET", path)
    assert response.status == code
    assert message in response.body["message"]


@pytest.mark.parametrize("verbs", [{"get"}, {"create"}])
def test_a_websocket_needs_the_verbs_get_and_create(
    monkeypatch: pytest.MonkeyPatch, verbs: set[str]
) -> None:
    user = access.User("someone", {"pods/exec": frozenset(verbs)})
    monkeypatch.setattr(access, "PROXY", user)
    with ApiServer.running(Settings(proxy_token="t")) as server:
        server.load([POD])
        response = Api(server.url, "t")("GET", f"{EXEC}?command=run&stdout=1")
    assert response.status == 403
    missing = ({"get", "create"} - verbs).pop()
    assert f'cannot {missing} resource "pods/exec"' in response.body["message"]


def test_without_a_kubelet_the_server_cannot_dial() -> None:
    with ApiServer.running(Settings()) as server:
        server.load([POD])
        response = Api(server.url)("GET", f"{EXEC}?command=run&stdout=1")
    assert response.status == 500
    assert "error dialing backend" in response.body["message"]
