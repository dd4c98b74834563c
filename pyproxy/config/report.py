"""The settings in force, written out for people: the pages /configz and /flagz."""

from __future__ import annotations

import msgspec

from pyproxy.config.settings import Settings


def flagz(settings: Settings) -> str:
    """One line a flag, name and value, after a heading."""
    lines = (f"{flag.name.removeprefix('--')} {flag.value}".rstrip() for flag in settings.flags)
    return "\n".join(
        ("pyproxy flagz", "For people: the form of this page may change.", "", *lines, "")
    )


def configz(settings: Settings) -> bytes:
    """JSON with the KubeProxyConfiguration (v1alpha1) in force, under its API group's name."""
    return msgspec.json.encode({"kubeproxy.config.k8s.io": settings.configuration})
