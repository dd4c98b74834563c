"""The settings in force as text: the pages /configz and /flagz."""

from __future__ import annotations

import msgspec

from pyproxy.config.settings import Settings
from pyproxy.redaction import bare_urls


def flagz(settings: Settings) -> str:
    """Return a heading, and a line with name and value for each flag.

    The value of --master may be a URL with a password, which is left out.
    """
    lines = (
        f"{flag.name.removeprefix('--')} {bare_urls(flag.value)}".rstrip()
        for flag in settings.flags
    )
    return "\n".join(
        ("pyproxy flagz", "For people: the form of this page may change.", "", *lines, "")
    )


def configz(settings: Settings) -> bytes:
    """Return JSON with the KubeProxyConfiguration (v1alpha1) in force, under its API group."""
    return msgspec.json.encode({"kubeproxy.config.k8s.io": settings.configuration})
