"""Who may ask on the socket, and what becomes of questions that are wrong."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pyproxy.config.values import socket_path
from pyproxy.inspect.client import Client, NoAgentError
from pyproxy.inspect.query import Nothing, Query
from pyproxy.inspect.status import STATUS, Status
from tests.inspect.node import InspectedNode

pytestmark = pytest.mark.kernel
NOBODY = 65534
ASK = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
try:
    sock.sendall(b"GET /status HTTP/1.1\\r\\n\\r\\n")
    print("answered" if sock.recv(100) else "refused", end="")
except (ConnectionResetError, BrokenPipeError):
    print("refused", end="")
"""


def test_the_socket_is_roots_alone(node: InspectedNode) -> None:
    mode = Path(node.socket).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_nobody_else_gets_an_answer_even_with_the_right_to_connect(node: InspectedNode) -> None:
    path = Path(node.socket)
    folder, mode = path.parent, path.parent.stat().st_mode
    folder.chmod(0o755)
    path.chmod(0o666)
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK, node.socket, str(NOBODY)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "refused"
    finally:
        path.chmod(0o600)
        folder.chmod(mode)


def test_a_question_that_is_none_is_refused_with_those_that_are(node: InspectedNode) -> None:
    unknown = Query("/weather", Nothing, Status, STATUS.respond)
    with pytest.raises(Exception, match=r"/weather is none of .*/status"):
        node.client.ask(unknown, Nothing())


def test_without_an_agent_the_client_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoAgentError, match="no agent listens on"):
        Client(str(tmp_path / "none.sock")).ask(STATUS, Nothing())


def test_a_path_that_is_too_long_is_refused(node: InspectedNode) -> None:
    assert node.command("status").status == 0
    with pytest.raises(ValueError, match="longer than 107 bytes"):
        socket_path("/" + "x" * 107)
