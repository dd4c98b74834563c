"""Parse the command line, and the file that --config names, into `Settings`."""

from __future__ import annotations

import argparse
import difflib
import enum
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

import msgspec

from pyproxy.config import effective, feature_gates, flags, modes
from pyproxy.config.given import FLAGS, Given, command_line
from pyproxy.config.no_effect import NO_EFFECT
from pyproxy.config.remarks import remarks
from pyproxy.config.schema import KubeProxyConfiguration
from pyproxy.config.settings import (
    Api,
    Conntrack,
    FlagValue,
    IptablesSettings,
    IpvsSettings,
    LocalMode,
    LocalTraffic,
    Masquerade,
    NftablesSettings,
    NodePorts,
    Serving,
    Settings,
    SyncPeriods,
)
from pyproxy.config.values import VersionRequest
from pyproxy.errors import UsageError
from pyproxy.model.service_bounds import ServiceBounds

_BY_NAME = {flag.name: flag for flag in FLAGS}


class Task(enum.Enum):
    """The task that a command line selects."""

    SERVE = enum.auto()
    CLEANUP = enum.auto()
    INITIALIZE = enum.auto()
    WRITE_CONFIG = enum.auto()
    VERSION = enum.auto()


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UsageError."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with argparse's message."""
        raise UsageError(message.removeprefix("argument "))

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse arguments. Raises UsageError for an unknown one, with the nearest known flag."""
        namespace, unknown = self.parse_known_args(arguments)
        if unknown:
            refuse_unknown(unknown[0], self.prog, self._option_string_actions)
        return namespace


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare every flag. Values stay text until `settings` parses them."""
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
            # argparse formats help texts with the % operator.
            help=(flag.help + default).replace("%", "%%"),
        )


def go_style(arguments: Sequence[str]) -> Iterator[str]:
    """Rewrite the forms of Go's flag parser to `--flag=value`, which argparse takes.

    A boolean alone is true and never takes the next argument. Any other flag takes the next
    argument, even one that begins with a dash. `_` in a name is `-`, and `-v` is `--v`.
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


def refuse_unknown(
    argument: str, program: str = "pyproxy run", flags: Iterable[str] = _BY_NAME
) -> NoReturn:
    """Raise UsageError for an argument that `program` does not have, with the nearest flag."""
    name = argument.partition("=")[0]
    if not name.startswith("-"):
        raise UsageError(f"{argument!r} is one argument too many: flags begin with --")
    near = difflib.get_close_matches(name, set(flags) - {name}, n=1)
    hint = f": did you mean {near[0]}?" if near else f": see {program} --help"
    raise UsageError(f"unknown flag {name}{hint}")


def settings(namespace: argparse.Namespace) -> Settings:
    """Parse the flags that `add_flags` declared, and the file that --config names.

    Blocks for the file. Raises UsageError at the first invalid value.
    """
    flagged = command_line(namespace)
    flagged.check()
    file = flagged[flags.CONFIG]
    configuration, warnings, mistakes = _load(file)
    given = flagged.with_file(file, configuration) if file else flagged.alone()
    return Settings(
        node_name=_node_name(given),
        mode=given[flags.PROXY_MODE],
        node_address=given[flags.BIND_ADDRESS],
        manifests=_manifests(given),
        verbosity=given[flags.VERBOSITY],
        log_format=given[flags.LOGGING_FORMAT],
        takeover=given[flags.TAKEOVER],
        api=Api(
            kubeconfig=given[flags.KUBECONFIG],
            master=given[flags.MASTER],
            content_type=given[flags.KUBE_API_CONTENT_TYPE],
            accept_content_types=configuration.client_connection.accept_content_types,
        ),
        local_traffic=_local_traffic(given),
        masquerade=Masquerade(given[flags.MASQUERADE_BIT], given[flags.MASQUERADE_ALL]),
        node_ports=_node_ports(given),
        external_ips=feature_gates.allows_external_ips(given[flags.FEATURE_GATES]),
        serving=Serving(
            health=given[flags.HEALTHZ_BIND_ADDRESS],
            metrics=given[flags.METRICS_BIND_ADDRESS],
            hard_fail=given[flags.BIND_ADDRESS_HARD_FAIL],
        ),
        pace=_pace(given),
        conntrack=Conntrack(
            max_per_core=given[flags.CONNTRACK_MAX_PER_CORE],
            min=given[flags.CONNTRACK_MIN],
            tcp_established_timeout=given[flags.CONNTRACK_TCP_TIMEOUT_ESTABLISHED],
            tcp_close_wait_timeout=given[flags.CONNTRACK_TCP_TIMEOUT_CLOSE_WAIT],
            tcp_be_liberal=given[flags.CONNTRACK_TCP_BE_LIBERAL],
            udp_timeout=given[flags.CONNTRACK_UDP_TIMEOUT],
            udp_stream_timeout=given[flags.CONNTRACK_UDP_TIMEOUT_STREAM],
        ),
        nftables=NftablesSettings(
            endpoint_counters=given.in_mode(flags.ENDPOINT_COUNTERS),
            flow_offload=given.in_mode(flags.FLOW_OFFLOAD),
            offload_interfaces=given.in_mode(flags.FLOW_OFFLOAD_INTERFACES),
        ),
        iptables=_iptables(given),
        ipvs=_ipvs(given),
        oom_score_adj=given[flags.OOM_SCORE_ADJ],
        ui=given[flags.UI_BIND_ADDRESS],
        inspect_socket=given[flags.INSPECT_SOCKET],
        bounds=ServiceBounds(
            frontends=given[flags.MAX_FRONTENDS_PER_SERVICE],
            endpoints=given[flags.MAX_ENDPOINTS_PER_SERVICE],
            source_ranges=given[flags.MAX_SOURCE_RANGES_PER_SERVICE],
        ),
        flags=tuple(FlagValue(flag.name, flagged.text(flag), flagged.has(flag)) for flag in FLAGS),
        configuration=effective.configuration(given, configuration, _pace(given)),
        config_file=file,
        remarks=(*warnings, *remarks(flagged, given, configuration, file)),
        file_warnings=mistakes,
    )


def _load(file: str) -> tuple[KubeProxyConfiguration, tuple[str, ...], tuple[str, ...]]:
    """Return the configuration, the warnings about its file, and those that name mistakes."""
    if not file:
        return KubeProxyConfiguration(), (), ()
    # Imports the YAML parser, which a start without a file does without.
    from pyproxy.config.file import load  # noqa: PLC0415

    loaded = load(file)
    warnings, mistakes = (
        tuple(f"--config {file}: {each}" for each in texts)
        for texts in (loaded.warnings, loaded.mistakes)
    )
    return loaded.configuration, warnings, mistakes


def asks_for(namespace: argparse.Namespace) -> Task:
    """Return the task that the flags name. Raises UsageError."""
    flagged = command_line(namespace)
    # If several are given, the order of precedence is kube-proxy's.
    if flagged[flags.VERSION] is not VersionRequest.NO:
        flagged.check()
        return Task.VERSION
    if flagged[flags.WRITE_CONFIG_TO]:
        return Task.WRITE_CONFIG
    if flagged[flags.CLEANUP]:
        return Task.CLEANUP
    return Task.INITIALIZE if flagged[flags.INIT_ONLY] else Task.SERVE


def version_request(namespace: argparse.Namespace) -> VersionRequest:
    """Return the value of --version."""
    return command_line(namespace)[flags.VERSION]


def write_config_to(namespace: argparse.Namespace) -> str:
    """Return the path of --write-config-to."""
    return command_line(namespace)[flags.WRITE_CONFIG_TO]


def _node_name(given: Given) -> str:
    # kube-proxy and kubelet lower-case both, because a Node's name has no capitals.
    name = (given[flags.HOSTNAME_OVERRIDE] or os.uname().nodename).strip().lower()
    if not name:
        label = given.label(flags.HOSTNAME_OVERRIDE)
        raise UsageError(f"{label}: this host has no name: give the name of its Node")
    return name


def _manifests(given: Given) -> str:
    for flag in (flags.KUBECONFIG, flags.MASTER):
        if given[flags.MANIFESTS] and given[flag]:
            raise UsageError(
                f"--manifests: {given.label(flag)} names another source: leave one out"
            )
    return given[flags.MANIFESTS]


def _local_traffic(given: Given) -> LocalTraffic:
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
        label = given.label(flags.DETECT_LOCAL_MODE)
        raise UsageError(f"{label}: {traffic.mode.value} needs {given.name(needs)}: give it")
    return traffic


def _node_ports(given: Given) -> NodePorts:
    loopback = modes.of(given[flags.PROXY_MODE].value).loopback
    loopback &= given.in_mode(flags.IPTABLES_LOCALHOST_NODEPORTS)
    return msgspec.structs.replace(given[flags.NODEPORT_ADDRESSES], loopback=loopback)


def _iptables(given: Given) -> IptablesSettings:
    return IptablesSettings(given.in_mode(flags.IPTABLES_FLAVOUR))


def _ipvs(given: Given) -> IpvsSettings:
    return IpvsSettings(
        scheduler=given.in_mode(flags.IPVS_SCHEDULER),
        exclude_networks=given.in_mode(flags.IPVS_EXCLUDE_CIDRS),
        strict_arp=given.in_mode(flags.IPVS_STRICT_ARP),
        tcp_timeout=given.in_mode(flags.IPVS_TCP_TIMEOUT),
        tcp_fin_timeout=given.in_mode(flags.IPVS_TCPFIN_TIMEOUT),
        udp_timeout=given.in_mode(flags.IPVS_UDP_TIMEOUT),
    )


def _pace(given: Given) -> SyncPeriods:
    pace = SyncPeriods(
        min_sync_period=given.either(flags.MIN_SYNC_PERIOD, flags.MIN_SYNC_PERIOD_ALIASES),
        sync_period=given.either(flags.SYNC_PERIOD, flags.SYNC_PERIOD_ALIASES),
    )
    if pace.min_sync_period > pace.sync_period:
        raise UsageError(
            f"{given.label(flags.MIN_SYNC_PERIOD)}: it is longer than "
            f"{given.name(flags.SYNC_PERIOD)}: make it shorter, or that longer"
        )
    return pace
