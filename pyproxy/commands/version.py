"""The output of --version and of the command version."""

from __future__ import annotations

import platform
import sys

from pyproxy import ARCHITECTURES, KUBERNETES_VERSION, __version__
from pyproxy.config.values import VersionRequest


def own() -> str:
    """Return the version of pyproxy."""
    return f"pyproxy {__version__}"


def kube_proxy(request: VersionRequest) -> str:
    """Return what `kube-proxy --version` prints, with the version of pyproxy.

    Scripts read the second word of the first form, and fields of the second. Facts: verflag of
    component-base, and version.Info of apimachinery in Go's notation %#v.
    """
    if request is not VersionRequest.RAW:
        return f"Kubernetes v{KUBERNETES_VERSION} ({own()})"
    major, minor, _ = KUBERNETES_VERSION.split(".")
    machine = platform.machine()
    fields = {
        "Major": major,
        "Minor": minor,
        "GitVersion": f"v{KUBERNETES_VERSION}",
        "GitCommit": "",
        "GitTreeState": "",
        "BuildDate": "",
        "GoVersion": "",
        "Compiler": f"{platform.python_implementation()} {platform.python_version()}",
        "Platform": f"{sys.platform}/{ARCHITECTURES.get(machine, machine)}",
        "PyproxyVersion": __version__,
    }
    text = ", ".join(f'{name}:"{value}"' for name, value in fields.items())
    return f"version.Info{{{text}}}"
