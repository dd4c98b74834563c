"""Parsers of flag values in the notation of Go programs.

Each parser takes the text and returns a value, or raises ValueError with the mistake and its fix;
the caller puts the name of the flag before it. Facts: Go's strconv.ParseBool, and the flag types of
kube-proxy v1.36.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable
from typing import TypeVar

from pyproxy.config import durations, modes
from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import (
    FlowOffload,
    ListenAddress,
    LocalMode,
    NodePorts,
    is_loopback,
)
from pyproxy.model.address import Address, Family, Network, parse_address, parse_network
from pyproxy.model.flavour import Flavour
from pyproxy.model.special_addresses import special

Member = TypeVar("Member", bound=enum.Enum)

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
IPVS_SCHEDULERS = (
    *("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq"),
    *("mh", "fo", "ovf", "twos"),
)
"""The kernel's schedulers. kube-proxy v1.36 refuses those of the second line."""

_INTERFACE = re.compile(r"[^\s/:*\0]+")
_QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?", re.ASCII)


def text(value: str) -> str:
    """Return the text unchanged."""
    return value


def socket_path(value: str) -> str:
    """Check the path of a Unix socket: the kernel takes 107 bytes (unix(7))."""
    if len(value.encode()) > 107:
        raise ValueError(f"{value!r} is longer than 107 bytes: use a shorter path")
    return value


def boolean(value: str) -> bool:
    """Read a boolean in any of Go's spellings."""
    if value in _TRUE or value in _FALSE:
        return value in _TRUE
    raise ValueError(f"{value!r} is not a boolean: use true or false")


class VersionRequest(enum.Enum):
    """The value of --version."""

    NO = "false"
    SHORT = "true"
    RAW = "raw"


def version_request(value: str) -> VersionRequest:
    """Read `raw`, or a boolean in any of Go's spellings."""
    if value == VersionRequest.RAW.value:
        return VersionRequest.RAW
    return VersionRequest.SHORT if boolean(value) else VersionRequest.NO


def log_format(value: str) -> str:
    """Read the format of log lines; empty is the default."""
    if value not in ("", "text", "json"):
        raise ValueError(f"{value!r} is not one of text, json")
    return value or "text"


def verbosity_by_file(value: str) -> tuple[tuple[str, int], ...]:
    """Read klog's `pattern=N,other=N`."""
    pairs = []
    for pair in items(value):
        name, equals, level = pair.partition("=")
        if not (name.strip() and equals):
            raise ValueError(f"{pair!r} is not a verbosity of a file: write it as FILE=2")
        pairs.append((name.strip(), integer(0, 2**31 - 1)(level.strip())))
    return tuple(pairs)


def number(value: str) -> float:
    """Read a decimal number."""
    try:
        parsed = float(value)
    except ValueError:
        parsed = math.nan
    # float also reads "nan" and "inf", which no setting means.
    if not math.isfinite(parsed):
        raise ValueError(f"{value!r} is not a number")
    return parsed


def integer(low: int, high: int) -> Callable[[str], int]:
    """Make a parser of whole numbers from `low` to `high`."""

    def parse(value: str) -> int:
        if re.fullmatch(r"[+-]?\d+", value, re.ASCII) and low <= int(value) <= high:
            return int(value)
        raise ValueError(f"{value!r} is not a whole number from {low} to {high}")

    return parse


def duration_from(low: float) -> Callable[[str], float]:
    """Make a parser of durations of at least `low` seconds."""

    def parse(value: str) -> float:
        seconds = durations.parse(value)
        if seconds < low:
            raise ValueError(f"{value!r} is too short: use {durations.text(low)} or more")
        return seconds

    return parse


def quantity(value: str) -> str:
    """Check one of Kubernetes' resource quantities, such as `512Ki`."""
    if not _QUANTITY.fullmatch(value):
        raise ValueError(f"{value!r} is not a quantity: write it as 65536 or 64Ki")
    return value


def booleans_by_name(value: str) -> tuple[tuple[str, bool], ...]:
    """Read `name=true,other=false`."""
    pairs = []
    for pair in items(value):
        name, equals, setting = pair.partition("=")
        if not (name.strip() and equals):
            raise ValueError(f"{pair!r} is not a setting: write it as NAME=true")
        pairs.append((name.strip(), boolean(setting.strip())))
    return tuple(pairs)


def flow_offload(value: str) -> FlowOffload:
    """Read a FlowOffload; empty is none."""
    try:
        return FlowOffload(value or FlowOffload.NONE.value)
    except ValueError:
        known = ", ".join(each.value for each in FlowOffload)
        raise ValueError(f"{value!r} is not one of {known}") from None


def interfaces(value: str) -> tuple[str, ...]:
    """Read names of interfaces, and prefixes that end in `*`, with commas between."""
    for item in items(value):
        # dev_valid_name in net/core/dev.c; IFNAMSIZ is 16 with the zero byte.
        name = item.removesuffix("*")
        if not _INTERFACE.fullmatch(name) or len(name.encode()) > 15 or name in {".", ".."}:
            raise ValueError(
                f"{item!r} is not an interface: use a name of 15 bytes at most such as eth0, "
                "or a prefix such as veth*"
            )
    return items(value)


def items(value: str) -> tuple[str, ...]:
    """Split a list at its commas."""
    return tuple(item.strip() for item in value.split(",") if item.strip())


def address(value: str) -> Address | None:
    """Read an address; one that is empty or unspecified (`0.0.0.0`, `::`) names none."""
    parsed = parse_address(value) if value else Address(b"")
    if not any(parsed):
        return None
    # kube-proxy takes a loopback address, with which some guides mean to hide its metrics.
    if (noun := special(parsed)) and not is_loopback(parsed):
        raise ValueError(f"{value} is {noun}: give an address of this node")
    return parsed


def networks(value: str) -> tuple[Network, ...]:
    """Read any number of CIDRs."""
    try:
        return tuple(map(parse_network, items(value)))
    except ValueError as error:
        raise ValueError(f"{error}: write it as 10.244.0.0/16 or fd10::/16") from None


def cluster_networks(value: str) -> tuple[Network, ...]:
    """Read a CIDR, or one of each family with a comma between."""
    found = networks(value)
    for family in Family:
        if sum(network.family is family for network in found) > 1:
            raise ValueError(f"{value!r} has more than one {family.label} CIDR: give one a family")
    return found


def node_ports(value: str) -> NodePorts:
    """Read `primary`, `all`, `localhost` and CIDRs, with commas between; empty is `primary`."""
    given = items(value) or ("primary",)
    words = {"primary", "all", "localhost"}
    try:
        found = tuple(parse_network(item) for item in given if item not in words)
    except ValueError as error:
        raise ValueError(f"{error}: use CIDRs, primary, all or localhost") from None
    return NodePorts(
        primary="primary" in given,
        everywhere="all" in given,
        localhost="localhost" in given,
        networks=found,
    )


def listen_address(default_port: int) -> Callable[[str], ListenAddress | None]:
    """Make a parser of `10.0.0.1:80`, `[::]:80` and a bare address; empty and `0` are None."""

    def parse(value: str) -> ListenAddress | None:
        if value in {"", "0"}:
            return None
        # At the last colon, because IPv6 addresses have colons too; with a port they need brackets.
        host, _, port = value.rpartition(":")
        try:
            if host.startswith("[") and host.endswith("]"):
                return ListenAddress(parse_address(host[1:-1]), _port(port))
            if host and ":" not in host:
                return ListenAddress(parse_address(host), _port(port))
            return ListenAddress(parse_address(value), default_port)
        except ValueError as error:
            raise ValueError(
                f"{value!r} is not an address with a port ({error}): "
                f"write it as 0.0.0.0:{default_port} or [::]:{default_port}, or 0 for none"
            ) from None

    return parse


_port = integer(0, 65535)

_UI_PORT = 10260


def page_address(value: str) -> ListenAddress | None:
    """Read the address of the page; a port alone stands for that port of 127.0.0.1."""
    text = value.removeprefix(":")
    if text.isdecimal() and text != "0":
        return ListenAddress(parse_address("127.0.0.1"), _port(text))
    return listen_address(_UI_PORT)(value)


def interface_name(limit: int) -> Callable[[str], str]:
    """Make a parser of names of network interfaces, or prefixes of names, of up to `limit` bytes.

    The kernel accepts almost any character, but those with a meaning in nft's syntax are refused.
    """

    def parse(value: str) -> str:
        if len(value.encode()) > limit or re.search(r"[\s/\0\"*\\]", value):
            raise ValueError(
                f"{value!r} is not an interface name: use up to {limit} bytes, "
                "without spaces, slashes, quotes and asterisks"
            )
        return value

    return parse


def proxy_mode(value: str) -> ProxyMode:
    """Read a mode; empty is the default."""
    return _one_of(ProxyMode, value or modes.DEFAULT.value)


def iptables_flavour(value: str) -> Flavour | None:
    """Read a flavour of iptables; None stands for `auto`, which is the default."""
    return None if value in ("", "auto") else _one_of(Flavour, value, "auto")


def ipvs_scheduler(value: str) -> str:
    """Read the name of an IPVS scheduler; empty is the default, rr as in kube-proxy."""
    if value and value not in IPVS_SCHEDULERS:
        raise ValueError(f"{value!r} is not one of {', '.join(IPVS_SCHEDULERS)}")
    return value or IPVS_SCHEDULERS[0]


def local_mode(value: str) -> LocalMode:
    """Read a way to recognize local traffic; empty is the default."""
    return _one_of(LocalMode, value or LocalMode.CLUSTER_CIDR.value)


def _one_of(kind: type[Member], value: str, *others: str) -> Member:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join((*others, *(str(member.value) for member in kind)))
        raise ValueError(f"{value!r} is not one of {known}") from None
