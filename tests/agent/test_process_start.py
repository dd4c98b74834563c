"""The modules that a start imports before its first request to the API server."""

from __future__ import annotations

import sys

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.modes import MODES
from tests.namespaces import empty_namespace

pytestmark = pytest.mark.kernel

# The audit hook sees each connection; the first to the API server is that of a list.
AGENT = """
import os, sys

def tell(event, arguments):
    if event == "socket.connect" and arguments[1] == ("127.0.0.1", 1):
        os.write(1, " ".join(sys.modules).encode())
        os._exit(0)

sys.addaudithook(tell)
from pyproxy.cli import main
sys.exit(main(sys.argv[1:]))
"""
FLAGS = ["--hostname-override", "n", "--master", "http://127.0.0.1:1", "--inspect-socket="]
LIBRARIES = {"msgspec", "prometheus_client", "urllib3"}
"""The libraries that the agent imports; a kubeconfig needs `yaml` too."""

DECLARATIONS = {"mode", "schema"}
"""Modules of the modes that do not serve: their declaration, and the names that it removes."""

MOST = 240
"""Modules of pyproxy itself; the commands, the other modes and the page have as many again."""


def loaded(here: Namespace, *arguments: str) -> set[str]:
    command = (sys.executable, "-c", AGENT, *arguments)
    return set(here.run(command).stdout.split())


def of_other_modes(loaded: set[str], mode: str) -> set[str]:
    """Name the modules of the modes' packages beside those that serve and the declarations."""
    return {
        name
        for other in MODES.values()
        for name in loaded
        if other.name != mode and name.startswith(f"pyproxy.dataplane.{other.name}.")
        if name.rpartition(".")[2] not in DECLARATIONS
    }


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_no_list_waits_for_what_is_seldom_needed(mode: str) -> None:
    with empty_namespace("start") as here:
        found = loaded(here, "run", "--proxy-mode", mode, *FLAGS)
    own = {name for name in found if name.partition(".")[0] == "pyproxy"}
    assert "pyproxy.source.reflector" in own
    assert not of_other_modes(own, mode)
    assert not own & {"pyproxy.takeover.kernel", "pyproxy.ui.server", "pyproxy_lab"}
    # Imported at the same time as the connection is made, in another thread.
    own = {name for name in own if not name.startswith("pyproxy.source.protobuf_")}
    assert len(own) < MOST
    assert not found & {"pyroute2", "rich", "jinja2", "aiohttp", "watchfiles", "matplotlib"}
    assert found >= LIBRARIES
