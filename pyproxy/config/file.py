"""Read, check and write the file that --config names, in YAML or JSON.

A mistake raises UsageError with the file and the path of the field.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import msgspec
import yaml

from pyproxy.config.schema import API_VERSION, KIND, KubeProxyConfiguration
from pyproxy.errors import UsageError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WHERE = re.compile(r" - at `(?:key` in `)?\$\.?(.*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`$")
_NO_OBJECT = "a KubeProxyConfiguration has fields"


class _Strict(_Loader):  # type: ignore[misc]  # the loader in C has no types
    """Rejects duplicate keys, because PyYAML silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise ValueError(
                    f"{name}: it is there twice, again in line {key.start_mark.line + 1}"
                )
            seen.add(name)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found


def load(path: str) -> KubeProxyConfiguration:
    """Return a file's KubeProxyConfiguration. Blocks for the file. Raises UsageError."""
    try:
        return parse(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        words = " ".join(str(error).split())
        raise UsageError(f"--config {path}: not YAML: {words}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"--config {path}: {error}") from error


def parse(data: bytes) -> KubeProxyConfiguration:
    """Parse YAML or JSON. Raises yaml.YAMLError, RecursionError, TypeError, ValueError."""
    tree = _without_nulls(yaml.load(data, _Strict))  # noqa: S506 (it is a safe loader)
    if not isinstance(tree, dict):
        raise ValueError(f"it holds no object: {_NO_OBJECT}")
    for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if tree.get(name) != wanted:
            raise ValueError(f"{name}: {tree.get(name, '')!r} is not {wanted}")
    try:
        return msgspec.convert(tree, KubeProxyConfiguration)
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


def _without_nulls(value: Any) -> Any:
    """Leave out null values, which Go treats as not given."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return value


def _in_our_words(message: str) -> str:
    """Put the path first: `Expected int - at $.conntrack.min` is `conntrack.min: expected int`."""
    found = _WHERE.search(message)
    path = found.group(1) if found else ""
    what = message[: found.start()] if found else message
    unknown = _UNKNOWN.search(what)
    if unknown:
        path = f"{path}.{unknown.group(1)}" if path else unknown.group(1)
        return f"{path}: there is no such field"
    path = path or "the names of fields"
    return f"{path}: {what[:1].lower()}{what[1:]}".replace("`", "")
