"""What is to be told about a configuration before it is in force: what was asked for in vain."""

from __future__ import annotations

from collections.abc import Iterator, Set

from pyproxy.config import flags, modes
from pyproxy.config.given import FLAGS, Given, texts_by_field, wins_over_file
from pyproxy.config.modes import ProxyMode
from pyproxy.config.no_effect import FIELDS, NO_EFFECT
from pyproxy.config.schema import KubeProxyConfiguration

_SECTIONS = ("iptables.", "ipvs.", "nftables.")
_LOCALHOST = "iptables.localhostNodePorts"


def remarks(
    flagged: Given, given: Given, configuration: KubeProxyConfiguration, file: str
) -> Iterator[str]:
    """Give each remark as a line; `file` is where the configuration is from, empty for nowhere.

    `flagged` is what the command line says, and `given` what came of it and the file.
    """
    mode = given[flags.PROXY_MODE]
    if file:
        yield from _about_file(flagged, configuration, file)
    reasons = {entry.flag.name: entry.reason for entry in NO_EFFECT}
    reasons |= {flag.name: _instead(mode) for flag in FLAGS if mode not in flag.modes}
    idle = [
        (flag.name, reasons[flag.name])
        for flag in FLAGS
        if flag.name in reasons and flagged.has(flag) and (not file or wins_over_file(flag))
    ]
    if idle:
        yield f"flags without effect: {_by_reason(idle)}"


def _about_file(flagged: Given, configuration: KubeProxyConfiguration, file: str) -> Iterator[str]:
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
    heard = _heard(configuration.mode)
    instead = _instead(modes.serving(configuration.mode))
    reasons = {field: instead for field in said if field.startswith(_SECTIONS)}
    reasons |= {field: entry.reason for entry in NO_EFFECT for field in entry.flag.fields}
    reasons |= {entry.path: entry.reason for entry in FIELDS}
    for field, text in said.items():
        if field in reasons.keys() - heard and (field, text) not in defaults:
            yield field, reasons[field]


def _heard(asked: str) -> Set[str]:
    """Give the fields in the sections of modes that have a say where this mode is asked for."""
    mode, ignored = modes.serving(asked), modes.of(asked).ignored
    heard = {
        field
        for flag in FLAGS
        if mode in flag.modes and flag not in flags.ALIASES
        for field in flag.fields
        if field.startswith(_SECTIONS) and not field.startswith(ignored)
    }
    # Where node ports answer follows from it, in the place of the mode that it is for.
    return heard | {_LOCALHOST} if not asked else heard


def _instead(mode: ProxyMode) -> str:
    return f"the mode is {mode.value}"


def _by_reason(idle: list[tuple[str, str]]) -> str:
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in idle:
        names_by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({why})" for why, names in names_by_reason.items())
