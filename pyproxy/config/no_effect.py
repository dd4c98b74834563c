"""kube-proxy's flags and fields without effect, which are still validated.

A configuration of kube-proxy works for pyproxy too. Each of these that it sets is logged once, with
the reason below.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from pyproxy.config import durations, values
from pyproxy.config.flag import Flag

_COUNT = values.integer(0, 2**31 - 1)

_IDENTITY = "pyproxy does not report the machine's identity"
_LOGGING = "pyproxy logs unbuffered to stderr"
_GO_FILES = "its patterns are names of Go source files"
_REMOVED = "kube-proxy v1.36 has no such flag"
_USERSPACE = "it was the userspace mode's"
_REQUESTS = "a few watches need no limit"
_WINDOWS = "pyproxy runs on Linux"


class NoEffect(msgspec.Struct, frozen=True):
    """A flag without effect, and the reason."""

    flag: Flag[object]
    reason: str


class NoEffectField(msgspec.Struct, frozen=True):
    """A field of KubeProxyConfiguration without flag and effect, and the reason."""

    path: str
    reason: str


def _no_effect(
    name: str,
    read: Callable[[str], object],
    reason: str,
    default: str = "",
    field: str = "",
) -> NoEffect:
    fields = (field,) if field else ()
    return NoEffect(Flag(name, read, default, f"no effect: {reason}", fields), reason)


NO_EFFECT: tuple[NoEffect, ...] = (
    _no_effect("--boot-id-file", values.text, _IDENTITY, "/proc/sys/kernel/random/boot_id"),
    _no_effect(
        "--config-sync-period",
        values.duration_from(0.001),
        "a watch that may have missed something lists again at once",
        "15m0s",
        field="configSyncPeriod",
    ),
    _no_effect("--kube-api-burst", _COUNT, _REQUESTS, "10", field="clientConnection.burst"),
    _no_effect("--kube-api-qps", values.number, _REQUESTS, "5", field="clientConnection.qps"),
    _no_effect(
        "--log-flush-frequency", durations.parse, _LOGGING, "5s", field="logging.flushFrequency"
    ),
    _no_effect(
        "--log-json-info-buffer-size",
        values.quantity,
        _LOGGING,
        "0",
        field="logging.options.json.infoBufferSize",
    ),
    _no_effect(
        "--log-json-split-stream",
        values.boolean,
        _LOGGING,
        "false",
        field="logging.options.json.splitStream",
    ),
    _no_effect(
        "--log-text-info-buffer-size",
        values.quantity,
        _LOGGING,
        "0",
        field="logging.options.text.infoBufferSize",
    ),
    _no_effect(
        "--log-text-split-stream",
        values.boolean,
        _LOGGING,
        "false",
        field="logging.options.text.splitStream",
    ),
    _no_effect(
        "--machine-id-file", values.text, _IDENTITY, "/etc/machine-id,/var/lib/dbus/machine-id"
    ),
    _no_effect(
        "--profiling",
        values.boolean,
        "pyproxy has no profiling pages",
        "false",
        field="enableProfiling",
    ),
    _no_effect(
        "--show-hidden-metrics-for-version",
        values.text,
        "pyproxy hides no metrics",
        field="showHiddenMetricsForVersion",
    ),
    _no_effect("--vmodule", values.verbosity_by_file, _GO_FILES),
    *(
        _no_effect(name, values.boolean, _REMOVED, "false")
        for name in (
            "--add-dir-header",
            "--alsologtostderr",
            "--one-output",
            "--skip-headers",
            "--skip-log-headers",
        )
    ),
    *(
        _no_effect(name, values.boolean, _REMOVED, "true")
        for name in ("--cleanup-ipvs", "--logtostderr")
    ),
    *(
        _no_effect(name, values.text, _REMOVED)
        for name in (
            "--azure-container-registry-config",
            "--conntrack-max",
            "--log-backtrace-at",
            "--log-dir",
            "--log-file",
            "--log-file-max-size",
            "--proxy-port-range",
            "--resource-container",
            "--stderrthreshold",
            "--udp-timeout",
        )
    ),
)
"""Flags of older versions are here too, because old manifests have them."""

FIELDS: tuple[NoEffectField, ...] = (
    NoEffectField(
        "iptables.snatNodeInternalIP", "masquerading leaves the choice of address to the kernel"
    ),
    NoEffectField("logging.vmodule", _GO_FILES),
    NoEffectField("portRange", "no proxy mode opens ports any more"),
    # v1.36 has no such field any more, but ConfigMaps of old clusters still have it.
    NoEffectField("udpIdleTimeout", _USERSPACE),
    NoEffectField("windowsRunAsService", _WINDOWS),
    NoEffectField("winkernel.enableDSR", _WINDOWS),
    NoEffectField("winkernel.forwardHealthCheckVip", _WINDOWS),
    NoEffectField("winkernel.networkName", _WINDOWS),
    NoEffectField("winkernel.rootHnsEndpointName", _WINDOWS),
    NoEffectField("winkernel.sourceVip", _WINDOWS),
)
