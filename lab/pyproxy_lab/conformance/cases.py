"""Case files as typed values; tests/conformance/CASES.md says what the fields mean."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import yaml
from msgspec import field

from pyproxy.errors import UsageError
from pyproxy.model.destination import parse_destination
from pyproxy_lab.client import JsonObject
from pyproxy_lab.conformance.kube_proxy import FEATURES
from pyproxy_lab.probe import has_sctp

# Many cases are read: libyaml, where PyYAML was built with it, takes an eighth of the time.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Fields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base of a case's structs: an unknown field is an error."""


class EndpointEntry(_Fields, frozen=True):
    """One endpoint; entries that differ in `slice` or `family` go to different EndpointSlices."""

    pod: str
    ready: bool | Literal["unset"] = True
    serving: bool | None = None
    terminating: bool = False
    family: Literal["IPv4", "IPv6"] = "IPv4"
    slice: int = 0
    zone: str = ""
    for_zones: tuple[str, ...] | None = field(name="forZones", default=None)
    for_nodes: tuple[str, ...] | None = field(name="forNodes", default=None)


class Applied(_Fields, frozen=True):
    """A Service to create or replace, with its endpoints; `ports` resolves named target ports."""

    metadata: JsonObject
    spec: JsonObject
    status: JsonObject | None = None
    endpoints: tuple[str | EndpointEntry, ...] = ()
    ports: dict[str, int] = {}

    def __post_init__(self) -> None:
        if not isinstance(self.metadata.get("name"), str):
            raise ValueError("metadata needs a name")

    @property
    def name(self) -> str:
        """The Service's name."""
        return str(self.metadata["name"])


class Probe(_Fields, frozen=True):
    """A connection to make, and its required result: either `reach` or `expect`.

    `tries` of 0 stands for 8, and 8 more for each pod of `reach`, and for 4 with `expect`.
    `timeout` is in seconds.
    """

    source_name: str = field(name="from")
    to: str
    reach: tuple[str, ...] | Literal["one"] | None = None
    source: Literal["kept", "rewritten"] | None = None
    fair: float | None = None
    expect: Literal["refused", "dropped", "blocked"] | None = None
    sport: int = 0
    tries: int = 0
    timeout: float = 0.6
    without: tuple[str, ...] = field(name="not", default=())

    def __post_init__(self) -> None:
        if (self.reach is None) == (self.expect is None):
            raise ValueError("a probe needs either `reach` or `expect`")
        if self.expect is not None and (self.source or self.fair):
            raise ValueError("`source` and `fair` go with `reach` alone")
        parse_destination(self.to)


class Get(_Fields, frozen=True):
    """A GET and its required response; spaces in the body do not count."""

    source_name: str = field(name="from")
    url: str
    status: int
    contains: tuple[str, ...] = ()


class Hold(_Fields, frozen=True):
    """A TCP connection to open; its pod must respond on it at the end of every later step."""

    source_name: str = field(name="from")
    to: tuple[str, ...]


class Step(_Fields, frozen=True):
    """Actions in the order of the fields; `sleep` is in seconds."""

    delete: tuple[str, ...] = ()
    apply: tuple[Applied, ...] = ()
    sleep: float = 0
    probe: tuple[Probe, ...] = ()
    http: tuple[Get, ...] = ()
    hold: tuple[Hold, ...] = ()


class Case(_Fields, frozen=True):
    """A case: its steps, the proxy modes that it is not for, and its needs.

    `sctp` is a need of the kernel; `one-proxy` means that node-b has no proxy. `requires` are names
    of `kube_proxy.FEATURES`.
    """

    name: str
    steps: tuple[Step, ...]
    needs: tuple[Literal["sctp", "one-proxy"], ...] = ()
    without: tuple[str, ...] = field(name="not", default=())
    requires: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.requires) - FEATURES.keys():
            raise ValueError(f"requires: {sorted(unknown)[0]} is no feature of kube_proxy.py")


def lacking(case: Case, *, one_proxy: bool = True) -> str:
    """Return why a case cannot run here; empty if it can. `one_proxy`: node-b has no proxy."""
    if "sctp" in case.needs and not has_sctp():
        return "this kernel has no SCTP sockets"
    if "one-proxy" in case.needs and not one_proxy:
        return "all nodes have a proxy"
    return ""


def read(path: Path) -> list[Case]:
    """Read one file, or all *.yaml of a folder by name. Raises UsageError naming file and case."""
    if path.is_dir():
        files = sorted(path.glob("*.yaml"))
        if not files:
            raise UsageError(f"{path}: no *.yaml in this folder")
        return [case for file in files for case in read(file)]
    try:
        found = yaml.load(path.read_text(), _Loader)  # noqa: S506 (safe either way)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(found, list):
        raise UsageError(f"{path}: a case file is a list of cases")
    return [_case(path, number, item) for number, item in enumerate(found, 1)]


def _case(path: Path, number: int, item: object) -> Case:
    try:
        return msgspec.convert(item, Case)
    except msgspec.ValidationError as error:
        name = item.get("name") if isinstance(item, dict) else None
        raise UsageError(f"{path}: case {name or number}: {error}") from error
