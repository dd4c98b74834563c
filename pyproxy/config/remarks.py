"""What is to be told about a configuration before it is in force: what was asked for in vain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from pyproxy.config.given import FLAGS, Given, texts_by_field, wins_over_file
from pyproxy.config.no_effect import FIELDS, NO_EFFECT
from pyproxy.config.schema import KubeProxyConfiguration

_SECTIONS_OF_OTHERS = ("iptables.", "ipvs.")
_HEARD_BY_MODE: Mapping[str, Set[str]] = {
    "": {"iptables.localhostNodePorts"},
    "iptables": {"iptables.localhostNodePorts"},
    "ipvs": {"ipvs.syncPeriod", "ipvs.minSyncPeriod"},
    "nftables": set(),
}
"""What has no effect as a flag, and has some in a file for that mode."""


def remarks(flagged: Given, configuration: KubeProxyConfiguration, file: str) -> Iterator[str]:
    """Give each remark as a line; `file` is where the configuration is from, empty for nowhere."""
    if file:
        yield from _about_file(flagged, configuration, file)
    idle = [
        (entry.flag.name, entry.reason)
        for entry in NO_EFFECT
        if flagged.has(entry.flag) and (not file or wins_over_file(entry.flag))
    ]
    if idle:
        yield f"flags without effect: {_by_reason(idle)}"


def _about_file(flagged: Given, configuration: KubeProxyConfiguration, file: str) -> Iterator[str]:
    mode = configuration.mode
    if mode in {"iptables", "ipvs"}:
        yield (
            f"--config {file}: mode: {mode} is not in this version yet: serving in nftables mode, "
            "which is as good for all but programs that look for that mode's rules"
        )
    covered = [flag.name for flag in FLAGS if flagged.has(flag) and not wins_over_file(flag)]
    if covered:
        yield f"flags without effect: {', '.join(covered)} (the file of --config counts instead)"
    idle = list(_idle_fields(configuration))
    if idle:
        yield f"--config {file}: fields without effect: {_by_reason(idle)}"


def _idle_fields(configuration: KubeProxyConfiguration) -> Iterator[tuple[str, str]]:
    """Give the fields that ask in vain for something else than what is there, and the reasons."""
    said = texts_by_field(configuration)
    defaults = {(field, flag.default) for flag in FLAGS for field in flag.fields}
    reasons = {field: entry.reason for entry in NO_EFFECT for field in entry.flag.fields}
    reasons |= {entry.path: entry.reason for entry in FIELDS}
    if configuration.mode == "nftables":
        section = "the mode is nftables"
        reasons |= {field: section for field in said if field.startswith(_SECTIONS_OF_OTHERS)}
    heard = _HEARD_BY_MODE[configuration.mode]
    for field, text in said.items():
        if field in reasons.keys() - heard and (field, text) not in defaults:
            yield field, reasons[field]


def _by_reason(idle: list[tuple[str, str]]) -> str:
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in idle:
        names_by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({why})" for why, names in names_by_reason.items())
