"""`pyproxy version`, and what `--version` prints."""

from __future__ import annotations

import argparse
import platform
import sys

import msgspec

from pyproxy import ARCHITECTURES, KUBERNETES_VERSION, __version__
from pyproxy.commands.arguments import add_output, encoder
from pyproxy.commands.command import Command
from pyproxy.config.values import VersionRequest


class Version(msgspec.Struct, frozen=True, rename="camel"):
    """This version of pyproxy, the kube-proxy that it replaces, and what it runs on.

    `python` is an implementation with its version. `platform` has Go's names, as in linux/amd64.
    """

    version: str
    kubernetes_version: str
    python: str
    platform: str


def own() -> Version:
    """Return the version of the running program."""
    machine = platform.machine()
    return Version(
        version=__version__,
        kubernetes_version=f"v{KUBERNETES_VERSION}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=f"{sys.platform}/{ARCHITECTURES.get(machine, machine)}",
    )


def kube_proxy(request: VersionRequest) -> str:
    """Return what `kube-proxy --version` prints, with the version of pyproxy.

    Scripts read the second word of the first form, and fields of the second. Facts: verflag of
    component-base, and version.Info of apimachinery in Go's notation %#v.
    """
    here = own()
    if request is not VersionRequest.RAW:
        return f"Kubernetes {here.kubernetes_version} (pyproxy {here.version})"
    major, minor, _ = KUBERNETES_VERSION.split(".")
    fields = {
        "Major": major,
        "Minor": minor,
        "GitVersion": here.kubernetes_version,
        "GitCommit": "",
        "GitTreeState": "",
        "BuildDate": "",
        "GoVersion": "",
        "Compiler": here.python,
        "Platform": here.platform,
        "PyproxyVersion": here.version,
    }
    text = ", ".join(f'{name}:"{value}"' for name, value in fields.items())
    return f"version.Info{{{text}}}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the output format."""
    add_output(parser, ("text", "json", "yaml"))


def run(namespace: argparse.Namespace) -> int:
    """Print the version."""
    encode = encoder(namespace)
    print(f"pyproxy {__version__}" if encode is None else encode(own()))
    return 0


COMMAND = Command(add_arguments, run)
