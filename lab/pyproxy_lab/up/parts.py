"""The parts of a lab beside network, API server and agents: controllers and kubelets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

from pyproxy_lab.cluster import Cluster

Part: TypeAlias = Callable[[Cluster], AbstractContextManager[object]]
"""Prepares one part, which works in threads of its own from entering to leaving it.

Entering must not wait for other parts. Files belong into `Cluster.folder`, and programs inherit
`os.environ`, by which they are found if the lab is killed.
"""

PARTS: tuple[Part, ...] = (
    Cluster.endpoint_slices,
    Cluster.controllers,
    Cluster.pod_runner,
)
"""They are entered in this order, and left in the reverse one."""
