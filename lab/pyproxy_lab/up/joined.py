"""A lab that is up, as another process uses it: its network, its API server and its agents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pyproxy.errors import UsageError
from pyproxy.model.address import Family
from pyproxy_lab.client import ApiClient, JsonObject
from pyproxy_lab.modes import LabMode, named
from pyproxy_lab.namespace import LabError
from pyproxy_lab.network import Network
from pyproxy_lab.process import socket_of
from pyproxy_lab.sync_barrier import SocketMarker, SyncBarrier
from pyproxy_lab.topology import TWO_NODES, Topology, nodes_alone
from pyproxy_lab.up import state
from pyproxy_lab.up.state import Record


class Joined:
    """The lab, with pods that this process has added."""

    def __init__(self, folder: Path, found: Record) -> None:
        config: JsonObject = msgspec.json.decode((folder / "kubeconfig").read_bytes())
        self._folder = folder
        self._found = found
        self.network = Network(_topology(found), joins=found.owner.network(0))
        self.client = ApiClient(
            config["clusters"][0]["cluster"]["server"],
            config["users"][0]["user"]["token"],
            self.network.api,
        )

    @property
    def mode(self) -> LabMode:
        """The proxy mode of the lab's agents."""
        return named(self._found.mode)

    @property
    def has_own_agents(self) -> bool:
        """Whether pyproxy runs on the nodes, and not another proxy."""
        return not self._found.proxy

    def barrier(self, site_name: str) -> SyncBarrier:
        """Return a barrier that waits until a site's pyproxy has programmed all writes."""
        return SyncBarrier(self.client, self, SocketMarker(str(socket_of(site_name, self._folder))))

    def require_alive(self) -> None:
        """Raise LabError if the lab has ended."""
        if not self._found.owner.is_alive:
            raise LabError(f"the lab of process {self._found.owner.pid} has ended")


@contextmanager
def joined(folder: Path) -> Iterator[Joined]:
    """Add the pods a1 to b2 to a lab that is up, and remove them at the end.

    Raises UsageError where no lab is up, or one without their addresses; LabError.
    """
    found = state.record(folder)
    if found is None or not found.owner.is_alive or not (folder / "kubeconfig").exists():
        raise UsageError(f"--lab {folder}: no lab is up: start one with `pyproxy lab up`")
    if found.nodes < len(TWO_NODES.sites) or not found.dual_stack:
        raise UsageError(f"--lab {folder}: start it with --dual-stack and two nodes or more")
    lab = Joined(folder, found)
    with lab.network:
        yield lab


def _topology(found: Record) -> Topology:
    families = (Family.IPV4, Family.IPV6) if found.dual_stack else (Family.IPV4,)
    nodes = nodes_alone(found.nodes, families)
    return msgspec.structs.replace(nodes, pods=TWO_NODES.pods)
