"""From the command line to `Settings`."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterator, Sequence
from typing import NoReturn, TypeVar

from pyproxy.config import flags
from pyproxy.config.flags import Flag
from pyproxy.config.no_effect import NO_EFFECT
from pyproxy.config.settings import (
    Api,
    FlagValue,
    LocalMode,
    LocalTraffic,
    Masquerade,
    Pace,
    Serving,
    Settings,
)
from pyproxy.errors import UsageError

T = TypeVar("T")

FLAGS: tuple[Flag[object], ...] = tuple(
    sorted((*flags.EFFECTIVE, *(entry.flag for entry in NO_EFFECT)), key=lambda flag: flag.name)
)

_BY_NAME = {flag.name: flag for flag in FLAGS}


class Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are UsageErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with argparse's own words."""
        raise UsageError(message.removeprefix("argument "))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare every flag; their values stay text until `settings` reads them."""
    effective = parser.add_argument_group("flags")
    idle = parser.add_argument_group("flags of kube-proxy that have no effect here")
    without_effect = {entry.flag.name for entry in NO_EFFECT}
    for flag in FLAGS:
        group = idle if flag.name in without_effect else effective
        default = f" (default {flag.default})" if flag.default else ""
        group.add_argument(
            flag.name,
            dest=flag.name,
            action="append",
            metavar="BOOL" if flag.is_boolean else "VALUE",
            help=(flag.help + default).replace("%", "%%"),
        )


def go_style(arguments: Sequence[str]) -> Iterator[str]:
    """Rewrite what Go's flag parser takes and argparse does not, all of it to `--flag=value`.

    A boolean alone is true and never takes the next argument; any other flag takes the next one
    whatever that looks like; `_` in a name is `-`; and `-v` is `--v`.
    """
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        name = "--v" if name == "-v" else name.replace("_", "-")
        flag = _BY_NAME.get(name)
        if flag is None:
            yield argument
        elif equals:
            yield f"{name}={value}"
        elif flag.is_boolean:
            yield f"{name}=true"
        else:
            following = next(rest, None)
            if following is None:
                raise UsageError(f"{name}: its value is missing: write {name}=VALUE")
            yield f"{name}={following}"


def refuse_unknown(argument: str) -> NoReturn:
    """Raise UsageError for an argument that is none of ours, with the nearest that is."""
    name = argument.partition("=")[0]
    if not name.startswith("-"):
        raise UsageError(f"{argument!r} is one argument too many: flags begin with --")
    near = difflib.get_close_matches(name, _BY_NAME.keys() - {name}, n=1)
    hint = f": did you mean {near[0]}?" if near else ": see pyproxy run --help"
    raise UsageError(f"unknown flag {name}{hint}")


class _Given:
    """The flags' texts, read on demand by those who know their types."""

    def __init__(self, namespace: argparse.Namespace) -> None:
        self._texts = vars(namespace)

    def check(self) -> None:
        """Read them all, for even a flag without effect must not be nonsense."""
        for flag in FLAGS:
            self[flag]

    def has(self, flag: Flag[T]) -> bool:
        return bool(self._texts[flag.name])

    def text(self, flag: Flag[T]) -> str:
        texts: list[str] = self._texts[flag.name] or [flag.default]
        return ",".join(texts) if flag.repeats else texts[-1]

    def __getitem__(self, flag: Flag[T]) -> T:
        try:
            return flag.read(self.text(flag))
        except ValueError as error:
            raise UsageError(f"{flag.name}: {error}") from error

    def either(self, flag: Flag[T], alias: Flag[T]) -> T:
        return self[flag if self.has(flag) or not self.has(alias) else alias]


def settings(namespace: argparse.Namespace) -> Settings:
    """Read what `add_flags` declared. Raises UsageError at the first value that is impossible."""
    given = _Given(namespace)
    given.check()
    for refused in flags.REFUSED:
        if given[refused]:
            raise UsageError(f"{refused.name}: not in this version yet: leave it out")
    return Settings(
        node_name=_node_name(given[flags.HOSTNAME_OVERRIDE]),
        mode=given[flags.PROXY_MODE],
        node_address=given[flags.BIND_ADDRESS],
        manifests=_manifests(given),
        verbosity=given[flags.VERBOSITY],
        takeover=given[flags.TAKEOVER],
        api=Api(given[flags.KUBECONFIG], given[flags.MASTER]),
        local_traffic=_local_traffic(given),
        masquerade=Masquerade(given[flags.MASQUERADE_BIT], given[flags.MASQUERADE_ALL]),
        node_ports=given[flags.NODEPORT_ADDRESSES],
        serving=Serving(
            health=given[flags.HEALTHZ_BIND_ADDRESS],
            metrics=given[flags.METRICS_BIND_ADDRESS],
            hard_fail=given[flags.BIND_ADDRESS_HARD_FAIL],
        ),
        pace=_pace(given),
        flags=tuple(FlagValue(flag.name, given.text(flag), given.has(flag)) for flag in FLAGS),
    )


def without_effect(settings: Settings) -> str:
    """Name the flags that were given in vain, for one log line; empty where there are none."""
    given = {flag.name for flag in settings.flags if flag.given}
    names_by_reason: dict[str, list[str]] = {}
    for entry in NO_EFFECT:
        if entry.flag.name in given:
            names_by_reason.setdefault(entry.reason, []).append(entry.flag.name)
    return "; ".join(f"{', '.join(names)} ({why})" for why, names in names_by_reason.items())


def wants_cleanup(namespace: argparse.Namespace) -> bool:
    """Whether kube-proxy's --cleanup is among the flags."""
    return _Given(namespace)[flags.CLEANUP]


def _node_name(override: str) -> str:
    # kube-proxy and kubelet lower-case both, for a Node's name has no capitals.
    name = (override or os.uname().nodename).strip().lower()
    if not name:
        raise UsageError("--hostname-override: this host has no name: give the name of its Node")
    return name


def _manifests(given: _Given) -> str:
    for flag in (flags.KUBECONFIG, flags.MASTER):
        if given[flags.MANIFESTS] and given[flag]:
            raise UsageError(f"--manifests: {flag.name} names another source: leave one out")
    return given[flags.MANIFESTS]


def _local_traffic(given: _Given) -> LocalTraffic:
    traffic = LocalTraffic(
        mode=given[flags.DETECT_LOCAL_MODE],
        cluster_networks=given[flags.CLUSTER_CIDR],
        bridge_interface=given[flags.POD_BRIDGE_INTERFACE],
        interface_name_prefix=given[flags.POD_INTERFACE_NAME_PREFIX],
    )
    needs = {
        LocalMode.BRIDGE_INTERFACE: flags.POD_BRIDGE_INTERFACE,
        LocalMode.INTERFACE_NAME_PREFIX: flags.POD_INTERFACE_NAME_PREFIX,
    }.get(traffic.mode)
    if needs and not given[needs]:
        raise UsageError(f"--detect-local-mode: {traffic.mode.value} needs {needs.name}: give it")
    return traffic


def _pace(given: _Given) -> Pace:
    pace = Pace(
        min_sync_period=given.either(flags.MIN_SYNC_PERIOD, flags.IPTABLES_MIN_SYNC_PERIOD),
        sync_period=given.either(flags.SYNC_PERIOD, flags.IPTABLES_SYNC_PERIOD),
    )
    if pace.min_sync_period > pace.sync_period:
        raise UsageError(
            "--min-sync-period: it is longer than --sync-period: make it shorter, or that longer"
        )
    return pace
