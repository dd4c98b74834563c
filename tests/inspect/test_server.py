"""The agent's socket: permissions, and wrong requests."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pyproxy.config.values import socket_path
from pyproxy.errors import UsageError
from pyproxy.inspect.queries import SERVICES, STATUS, NoArgs, Query, ServicesArgs
from pyproxy.inspect.status import Status
from tests.inspect.node import InspectedNode

pytestmark = pytest.mark.kernel
OVERFLOW_UID = 65534
CONNECT = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
try:
    sock.sendall(b"GET /status HTTP/1.1\\r\\n\\r\\n")
    print("served" if sock.recv(100) else "rejected", end="")
except (ConnectionResetError, BrokenPipeError):
    print("rejected", end="")
"""


def test_only_root_may_connect(node: InspectedNode) -> None:
    mode = Path(node.socket).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_another_user_is_rejected_even_with_permission_to_connect(node: InspectedNode) -> None:
    path = Path(node.socket)
    folder, mode = path.parent, path.parent.stat().st_mode
    folder.chmod(0o755)
    path.chmod(0o666)
    try:
        done = subprocess.run(
            [sys.executable, "-c", CONNECT, node.socket, str(OVERFLOW_UID)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "rejected"
    finally:
        path.chmod(0o600)
        folder.chmod(mode)


def test_an_unknown_query_is_an_error_that_lists_the_known_ones(node: InspectedNode) -> None:
    unknown = Query("/weather", NoArgs, Status, STATUS.handler)
    with pytest.raises(Exception, match=r"/weather: no such query: use .*/status"):
        node.client.query(unknown, NoArgs())


def test_a_wrong_argument_is_a_usage_error(node: InspectedNode) -> None:
    with pytest.raises(UsageError, match="use NAMESPACE/NAME"):
        node.client.query(SERVICES, ServicesArgs("a/b/c"))


def test_a_path_longer_than_sun_path_is_rejected(node: InspectedNode) -> None:
    assert node.command("status").status == 0
    with pytest.raises(ValueError, match="longer than 107 bytes"):
        socket_path("/" + "x" * 107)
