"""kube-proxy's flags that are read and checked here, and change nothing.

A command line that works for kube-proxy works for pyproxy too; what it asks for in vain is logged
once, with the reason given here.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from pyproxy.config import durations, values
from pyproxy.config.flags import Flag

_INT32 = values.integer(-(2**31), 2**31 - 1)

_IDENTITY = "pyproxy does not report the machine's identity"
_CONNTRACK = "the kernel's conntrack settings stay as they are"
_IPVS = "the ipvs mode is not in this version yet"
_LOGGING = "pyproxy logs lines of text, unbuffered, to stderr"
_REQUESTS = "a few watches need no limit, and objects are read as JSON"


class NoEffect(msgspec.Struct, frozen=True):
    """A flag that changes nothing, and why."""

    flag: Flag[object]
    reason: str


def _no_effect(
    name: str, read: Callable[[str], object], reason: str, default: str = ""
) -> NoEffect:
    return NoEffect(Flag(name, read, default, f"no effect: {reason}"), reason)


NO_EFFECT: tuple[NoEffect, ...] = (
    _no_effect("--boot-id-file", values.text, _IDENTITY, "/proc/sys/kernel/random/boot_id"),
    _no_effect(
        "--config-sync-period",
        durations.parse,
        "a watch that may have missed something lists again at once",
        "15m0s",
    ),
    _no_effect("--conntrack-max-per-core", _INT32, _CONNTRACK, "32768"),
    _no_effect("--conntrack-min", _INT32, _CONNTRACK, "131072"),
    _no_effect("--conntrack-tcp-be-liberal", values.boolean, _CONNTRACK, "false"),
    _no_effect("--conntrack-tcp-timeout-close-wait", durations.parse, _CONNTRACK, "1h0m0s"),
    _no_effect("--conntrack-tcp-timeout-established", durations.parse, _CONNTRACK, "24h0m0s"),
    _no_effect("--conntrack-udp-timeout", durations.parse, _CONNTRACK, "0s"),
    _no_effect("--conntrack-udp-timeout-stream", durations.parse, _CONNTRACK, "0s"),
    _no_effect("--feature-gates", values.booleans_by_name, "pyproxy has no feature gates"),
    _no_effect(
        "--iptables-localhost-nodeports",
        values.boolean,
        "node ports on localhost are asked for with --nodeport-addresses",
        "true",
    ),
    _no_effect("--ipvs-exclude-cidrs", values.items, _IPVS),
    _no_effect("--ipvs-min-sync-period", durations.parse, _IPVS, "1s"),
    _no_effect("--ipvs-scheduler", values.text, _IPVS),
    _no_effect("--ipvs-strict-arp", values.boolean, _IPVS, "false"),
    _no_effect("--ipvs-sync-period", durations.parse, _IPVS, "30s"),
    _no_effect("--ipvs-tcp-timeout", durations.parse, _IPVS, "0s"),
    _no_effect("--ipvs-tcpfin-timeout", durations.parse, _IPVS, "0s"),
    _no_effect("--ipvs-udp-timeout", durations.parse, _IPVS, "0s"),
    _no_effect("--kube-api-burst", _INT32, _REQUESTS, "10"),
    _no_effect(
        "--kube-api-content-type", values.text, _REQUESTS, "application/vnd.kubernetes.protobuf"
    ),
    _no_effect("--kube-api-qps", values.number, _REQUESTS, "5"),
    _no_effect("--log-flush-frequency", durations.parse, _LOGGING, "5s"),
    _no_effect("--log-json-info-buffer-size", values.quantity, _LOGGING, "0"),
    _no_effect("--log-json-split-stream", values.boolean, _LOGGING, "false"),
    _no_effect("--log-text-info-buffer-size", values.quantity, _LOGGING, "0"),
    _no_effect("--log-text-split-stream", values.boolean, _LOGGING, "false"),
    _no_effect("--logging-format", values.text, _LOGGING, "text"),
    _no_effect(
        "--machine-id-file", values.text, _IDENTITY, "/etc/machine-id,/var/lib/dbus/machine-id"
    ),
    _no_effect("--oom-score-adj", _INT32, "the container or unit file sets it", "-999"),
    _no_effect("--profiling", values.boolean, "pyproxy has no profiling pages", "false"),
    _no_effect("--show-hidden-metrics-for-version", values.text, "pyproxy hides no metrics"),
)
