"""A network namespace for the measurements, in which one pod's address is this machine's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

from pyroute2 import netns

from bench.objects import NODE_ADDRESS, POD_PORT, pod_ip
from pyproxy.lab.namespace import Namespace, ip, remove_abandoned, require_root


@contextmanager
def own_namespace(local_pods: int) -> Iterator[None]:
    """Be in a new namespace, and remove it at the end; the first so many pods answer in it.

    What has not been translated to such a pod yet goes into a cable that nobody listens on. Must
    be called in the main thread. Raises UsageError without root, LabError.
    """
    require_root()
    remove_abandoned()
    name = f"lab{os.getpid()}-0-bench"
    ip([f"netns add {name}"])
    try:
        Namespace(name).ip(
            [
                "link set lo up",
                "link add out type veth peer name nowhere",
                "link set out up",
                "link set nowhere up",
                f"addr add {NODE_ADDRESS}/24 dev out",
                "route add default via 172.30.0.1",
                *(f"route add local {pod_ip(pod)} dev lo" for pod in range(local_pods)),
            ]
        )
        netns.pushns(name)
        try:
            with closing(socket.create_server(("", POD_PORT), backlog=512)):
                yield
        finally:
            netns.popns()
    finally:
        ip([f"netns del {name}"])
