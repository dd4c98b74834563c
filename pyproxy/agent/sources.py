"""From settings to what events come from: an API server, or a folder of manifests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pyproxy.config.settings import Settings
from pyproxy.metrics import Metrics
from pyproxy.model.events import Event
from pyproxy.source.client import Client
from pyproxy.source.kubernetes import KubernetesSource


class Source(Protocol):
    """Where events come from."""

    def start(self) -> None:
        """Begin; returns at once."""
        ...

    def stop(self) -> None:
        """End within about a second."""
        ...

    def age(self) -> float:
        """Seconds since it was last heard of."""
        ...


def client_of(settings: Settings, metrics: Metrics | None) -> Client | None:
    """Make the client, of which nothing is sent yet. Raises UsageError."""
    if settings.manifests:
        return None
    # Libraries that only one kind of source needs take half of a start's time to import.
    from pyproxy.source.connect import connect  # noqa: PLC0415

    return connect(settings.api.kubeconfig, settings.api.master, metrics)


def source_of(settings: Settings, client: Client | None, emit: Callable[[Event], None]) -> Source:
    """Make what events come from: that client's server, or the folder of manifests."""
    if client is None:
        from pyproxy.source.manifests import ManifestSource  # noqa: PLC0415

        return ManifestSource(Path(settings.manifests), settings.node_name, emit)
    return KubernetesSource(client, settings.node_name, emit)
