"""Log lines about given flags, fields and feature gates without effect."""

from __future__ import annotations

from collections.abc import Iterator, Set

from pyproxy.config import feature_gates, flags, modes
from pyproxy.config.given import FLAGS, Given, texts_by_field, wins_over_file
from pyproxy.config.modes import ProxyMode
from pyproxy.config.no_effect import FIELDS, NO_EFFECT
from pyproxy.config.schema import KubeProxyConfiguration

_SECTIONS = ("iptables.", "ipvs.", "nftables.")
_LOCALHOST = "iptables.localhostNodePorts"


def remarks(
    flagged: Given, given: Given, configuration: KubeProxyConfiguration, file: str
) -> Iterator[str]:
    """Yield the log lines; `file` is the path of the configuration, empty for none.

    `flagged` are the flags alone, and `given` is their union with the file.
    """
    mode = given[flags.PROXY_MODE]
    if file:
        yield from _about_file(flagged, configuration, file)
    reasons = {entry.flag.name: entry.reason for entry in NO_EFFECT}
    reasons |= {flag.name: _instead(mode) for flag in FLAGS if mode not in flag.modes}
    if not given.text(flags.PROXY_MODE):
        # Without a mode, this flag selects the default addresses of node ports.
        del reasons[flags.IPTABLES_LOCALHOST_NODEPORTS.name]
    idle = [
        (flag.name, reasons[flag.name])
        for flag in FLAGS
        if flag.name in reasons
        and flagged[flag] != flag.read(flag.default)
        and (not file or wins_over_file(flag))
    ]
    if idle:
        yield f"flags without effect: {_by_reason(idle)}"
    deprecated = [
        (flag.name, f"use {flag.instead}")
        for flag in FLAGS
        if flag.instead and flagged.has(flag) and not file
    ]
    if deprecated:
        yield f"deprecated flags: {_by_reason(deprecated)}"
    yield from feature_gates.remarks(given[flags.FEATURE_GATES])


def _about_file(flagged: Given, configuration: KubeProxyConfiguration, file: str) -> Iterator[str]:
    covered = [
        flag.name
        for flag in FLAGS
        # The command kube-proxy sets an empty mode itself.
        if flagged.has(flag)
        and not wins_over_file(flag)
        and (flagged.text(flag) or flag is not flags.PROXY_MODE)
    ]
    if covered:
        yield f"flags without effect: {', '.join(covered)} (the file of --config counts instead)"
    idle = list(_idle_fields(configuration))
    if idle:
        yield f"--config {file}: fields without effect: {_by_reason(idle)}"


def _idle_fields(configuration: KubeProxyConfiguration) -> Iterator[tuple[str, str]]:
    """Yield the fields without effect that differ from the default, with the reasons."""
    field_texts = texts_by_field(configuration)
    defaults = {(field, flag.default) for flag in FLAGS for field in flag.fields}
    effective = _effective(configuration.mode)
    instead = _instead(modes.serving(configuration.mode))
    reasons = {field: instead for field in field_texts if field.startswith(_SECTIONS)}
    reasons |= {field: entry.reason for entry in NO_EFFECT for field in entry.flag.fields}
    reasons |= {entry.path: entry.reason for entry in FIELDS}
    for field, text in field_texts.items():
        if field in reasons.keys() - effective and (field, text) not in defaults:
            yield field, reasons[field]


def _effective(asked: str) -> Set[str]:
    """Return the fields in the sections of modes that have an effect in this mode."""
    mode, ignored = modes.serving(asked), modes.of(asked).ignored
    effective = {
        field
        for flag in FLAGS
        if mode in flag.modes and flag not in flags.ALIASES
        for field in flag.fields
        if field.startswith(_SECTIONS) and not field.startswith(ignored)
    }
    # In a file without a mode, this field selects the default addresses of node ports.
    return effective | {_LOCALHOST} if not asked else effective


def _instead(mode: ProxyMode) -> str:
    return f"the mode is {mode.value}"


def _by_reason(idle: list[tuple[str, str]]) -> str:
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in idle:
        names_by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({why})" for why, names in names_by_reason.items())
