"""Read, check and write the file that --config names, in YAML or JSON.

A mistake raises UsageError with the file and the path of the field.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import yaml

from pyproxy.config import lenient
from pyproxy.config.schema import API_VERSION, KIND, KubeProxyConfiguration
from pyproxy.errors import UsageError

_WHERE = re.compile(r" - at `(?:key` in `)?\$\.?(.*)`$")
_NO_OBJECT = "a KubeProxyConfiguration has fields"
_LIMIT = 2**20
_NAME_LIMIT = 100


class File(msgspec.Struct, frozen=True):
    """A configuration, and one warning for each part of the file that is ignored.

    `mistakes` are the warnings about parts that may change what the author wanted.
    """

    configuration: KubeProxyConfiguration
    warnings: tuple[str, ...] = ()
    mistakes: tuple[str, ...] = ()


def load(path: str) -> File:
    """Return a file's KubeProxyConfiguration. Blocks for the file. Raises UsageError."""
    try:
        with Path(path).open("rb") as file:
            return parse(file.read(_LIMIT + 1))
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path}: not YAML: {_yaml_problem(error)}") from error
    except RecursionError as error:
        raise UsageError(f"--config {path}: its values are nested too deeply") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"--config {path}: {error}") from error


def parse(data: bytes) -> File:
    """Parse YAML or JSON. Raises yaml.YAMLError, RecursionError, TypeError, ValueError."""
    if len(data) > _LIMIT:
        raise ValueError("it is larger than 1 MiB, which no ConfigMap can hold")
    decoded = lenient.decode(data)
    tree = decoded.tree
    if not isinstance(tree, dict):
        raise ValueError(f"it holds no object: {_NO_OBJECT}")
    for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        found = tree.get(name, "")
        if found != wanted:
            shown = repr(found[:_NAME_LIMIT]) if isinstance(found, str) else "its value"
            hint = "; only the first document of a file counts" if decoded.has_further else ""
            raise ValueError(f"{name}: {shown} is not {wanted}{hint}")
    try:
        found = msgspec.convert(tree, KubeProxyConfiguration)
        return File(found, decoded.warnings, decoded.mistakes)
    except msgspec.ValidationError as error:
        raise ValueError(_in_our_words(str(error))) from error


def yaml_text(configuration: KubeProxyConfiguration) -> str:
    """Return YAML with every field, which `parse` reads back to the same value."""
    tree = msgspec.to_builtins(configuration)
    # kube-proxy rejects fields that only its other versions have.
    for section, name in ((tree, "udpIdleTimeout"), (tree["iptables"], "snatNodeInternalIP")):
        if section[name] in {None, "0s"}:
            del section[name]
    text: str = yaml.safe_dump(tree, sort_keys=True)
    return text


def _yaml_problem(error: yaml.YAMLError) -> str:
    """Return the line and the problem, and no part of the file, which may be another one."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split()).replace(' in "<byte string>"', "")
    mark = error.problem_mark or error.context_mark
    line = f"line {mark.line + 1}: " if mark is not None else ""
    return line + " ".join(f"{error.context or ''} {error.problem or ''}".split())


def _in_our_words(message: str) -> str:
    """Put the path first: `Expected int - at $.conntrack.min` is `conntrack.min: expected int`."""
    found = _WHERE.search(message)
    path = found.group(1) if found else ""
    what = message[: found.start()] if found else message
    path = path or "the names of fields"
    return f"{path}: {what[:1].lower()}{what[1:]}".replace("`", "")
