"""The role of a container in the lab, which has no images: it runs a program, or is a server.

A container whose command this machine has runs it. Every other container is the lab's server, on
the ports that it declares. Nothing here does I/O, except looking programs up.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from pyproxy_lab.client import JsonObject

_PORTS = {
    "agnhost": (8080,),
    "echoserver": (8080,),
    "hello-app": (8080,),
    "http-echo": (5678,),
    "httpd": (80,),
    "kubernetes-bootcamp": (8080,),
    "memcached": (11211,),
    "mysql": (3306,),
    "nginx": (80,),
    "node-hello": (8080,),
    "postgres": (5432,),
    "redis": (6379,),
    "redis-follower": (6379,),
    "serve_hostname": (9376,),
    "whoami": (80,),
}
"""The ports of images that manifests often leave out, by the last part of the image's name."""

_USUAL = (80, 8080)
_ENTRYPOINTS = {"curl": ("curl",)}
_SHELL = ("sh",)
_PORT_FLAGS = ("--http-port", "--port", "-port", "--udp-port", "--sctp-port")


class Role(msgspec.Struct, frozen=True):
    """A container's `command`, or, if it has none, its `ports` as the lab's server.

    `declared` says that the manifest names the ports, so that each must be free.
    """

    command: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    declared: bool = False


def role(container: JsonObject, find: Callable[[str], str | None] = shutil.which) -> Role:
    """Return what a container does; `find` returns the path of a program, None without one."""
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    name = base_name(container["image"])
    if words and (path := _program(words[0], find)):
        return Role((path, *words[1:]))
    if entrypoint := _ENTRYPOINTS.get(name):
        return Role((*entrypoint, *words))
    if container.get("stdin") and not words:
        return Role(_SHELL)
    declared = tuple(dict.fromkeys(port["containerPort"] for port in container.get("ports") or ()))
    if declared:
        return Role(ports=declared, declared=True)
    return Role(ports=_flag_ports(words) or _PORTS.get(name, _USUAL))


def version(image: str) -> str:
    """Return an image's tag, or `latest` for one that has none."""
    tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    return tag or "latest"


def base_name(image: str) -> str:
    """Return the last part of an image's name, without tag and digest."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


def _program(word: str, find: Callable[[str], str | None]) -> str | None:
    """Find a program by its name, also where an image has it in another folder."""
    return find(word) or (
        find(Path(word).name) if word.startswith(("/bin/", "/usr/bin/")) else None
    )


def _flag_ports(words: list[str]) -> tuple[int, ...]:
    """Return the ports that a server's flags name, such as `--http-port=8080`."""
    found: list[int] = []
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in _PORT_FLAGS:
            value = value if equals else "".join(words[index + 1 : index + 2])
            if value.isascii() and value.isdigit() and 0 < int(value) < 65536:
                found.append(int(value))
    return tuple(dict.fromkeys(found))
