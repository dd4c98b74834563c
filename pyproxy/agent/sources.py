"""The source of events that the settings name: an API server, or a folder of manifests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pyproxy.config.settings import Settings
from pyproxy.metrics.api import ApiMetrics
from pyproxy.model.address import Backend
from pyproxy.model.config_problems import ConfigProblem
from pyproxy.model.events import Event
from pyproxy.source.client import Client
from pyproxy.source.kubernetes import KubernetesSource
from pyproxy.source.media_types import accepted


class Source(Protocol):
    """A source of events, which it emits in threads of its own."""

    def start(self) -> None:
        """Start the threads. Does not block."""
        ...

    def stop(self) -> None:
        """Stop the threads. Blocks for about a second at most."""
        ...

    def age(self) -> float:
        """Return the seconds since the source last responded. Any thread; does not block."""
        ...

    def problems(self) -> tuple[ConfigProblem, ...]:
        """Return the mistakes that failing requests show; the source has logged them.

        Any thread; does not block.
        """
        ...

    def node_names(self) -> tuple[str, ...]:
        """Return some names of Nodes if this Node is not among them, and empty if it is.

        Any thread; does not block. Empty too if the names are unknown.
        """
        ...


def client_of(settings: Settings, metrics: ApiMetrics | None) -> Client | None:
    """Return a client of the API server, None for a folder. Sends nothing. Raises UsageError."""
    if settings.manifests:
        return None
    # Importing the libraries of one kind of source takes half the time of a start.
    from pyproxy.source.connect import connect  # noqa: PLC0415

    return connect(settings.api.kubeconfig, settings.api.master, metrics)


def servers_of(client: Client | None) -> frozenset[Backend]:
    """Return the addresses of the API servers that a client has used. Any thread."""
    return frozenset() if client is None else client.servers()


def source_of(settings: Settings, client: Client | None, emit: Callable[[Event], None]) -> Source:
    """Return the source that reads from `client`, or from the folder of manifests without one."""
    if client is None:
        from pyproxy.source.manifests import ManifestSource  # noqa: PLC0415

        return ManifestSource(Path(settings.manifests), settings.node_name, emit)
    accept = accepted(settings.api.content_type, settings.api.accept_content_types)
    return KubernetesSource(client, settings.node_name, emit, accept=accept)
