"""The given flags and the configuration file, and the precedence between them.

In kube-proxy v1.36 a file overrides all flags except --hostname-override, the flags of logging, and
those without a field.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pyproxy.config import durations, flags, modes, values
from pyproxy.config.flag import Flag
from pyproxy.config.no_effect import NO_EFFECT
from pyproxy.config.schema import KubeProxyConfiguration, Leaf, is_zero, leaves
from pyproxy.errors import UsageError
from pyproxy.model.address import Family, family_of, parse_address

T = TypeVar("T")

_OWN_FIELDS = ("nftables.flowOffload",)
"""The start of the fields that kube-proxy lacks: a flag overrides a file that both programs use."""

FLAGS: tuple[Flag[object], ...] = tuple(
    sorted((*flags.EFFECTIVE, *(entry.flag for entry in NO_EFFECT)), key=lambda flag: flag.name)
)


class Given:
    """The texts of flags, parsed on access.

    `file` is the path of a configuration file. `fields` maps a flag's name to the path of the field
    in that file that its text is from.
    """

    def __init__(
        self, texts: Mapping[str, str], file: str = "", fields: Mapping[str, str] | None = None
    ) -> None:
        self._texts = texts
        self._file = file
        self._fields = fields or {}

    def check(self) -> None:
        """Parse all flags, because even a flag without effect must be valid. Raises UsageError."""
        for flag in FLAGS:
            self[flag]

    def has(self, flag: Flag[T]) -> bool:
        """Return whether a flag is given."""
        return flag.name in self._texts

    def text(self, flag: Flag[T]) -> str:
        """Return the text of a flag, or its default."""
        return self._texts.get(flag.name, flag.default)

    def label(self, flag: Flag[T]) -> str:
        """Return the flag or the field of the file that gave the value, for error messages."""
        field = self._fields.get(flag.name)
        return f"--config {self._file}: {field}" if field else flag.name

    def name(self, flag: Flag[T]) -> str:
        """Return the flag or the field that a user can set, for error messages."""
        return flag.name if not self._file or wins_over_file(flag) else self.field(flag)

    def field(self, flag: Flag[T]) -> str:
        """Return the field with the same meaning in the mode that serves."""
        ignored = modes.of(self[flags.PROXY_MODE].value).ignored
        effective = (field for field in flag.fields if not field.startswith(ignored))
        return next(effective, flag.fields[0])

    def __getitem__(self, flag: Flag[T]) -> T:
        try:
            return flag.read(self.text(flag))
        except ValueError as error:
            raise UsageError(f"{self.label(flag)}: {error}") from error

    def in_mode(self, flag: Flag[T]) -> T:
        """Parse a flag, or its default in a mode that ignores it."""
        return self[flag] if self[flags.PROXY_MODE] in flag.modes else flag.read(flag.default)

    def either(self, flag: Flag[T], aliases: Sequence[Flag[T]]) -> T:
        """Parse a flag, or its alias in this mode if only that is given."""
        mode = self[flags.PROXY_MODE]
        given = (each for each in (flag, *aliases) if mode in each.modes and self.has(each))
        return self[next(given, flag)]

    def with_file(self, path: str, configuration: KubeProxyConfiguration) -> Given:
        """Override flags with a file's configuration.

        Raises UsageError for an invalid value in it, also for one without effect.
        """
        by_field = texts_by_field(configuration)
        _check(path, by_field)
        texts = _implied(configuration, by_field)
        fields: dict[str, str] = {}
        ignored = modes.of(configuration.mode).ignored
        for flag in FLAGS:
            counts = (
                each for each in flag.fields if each in by_field and not each.startswith(ignored)
            )
            field = next(counts, "")
            if field and flag not in flags.ALIASES:
                fields[flag.name] = field
                texts.setdefault(flag.name, by_field[field])
        for flag in FLAGS:
            # These flags override the file. kube-proxy ignores an empty --hostname-override.
            if self.text(flag) and self.has(flag) and wins_over_file(flag):
                texts[flag.name] = self.text(flag)
                fields.pop(flag.name, None)
        return Given(texts, path, fields)

    def alone(self) -> Given:
        """Add the defaults of the mode; only for a command line without a file."""
        texts = dict(self._texts)
        localhost = self[flags.IPTABLES_LOCALHOST_NODEPORTS]
        addresses = modes.node_port_addresses(self.text(flags.PROXY_MODE), localhost=localhost)
        if addresses and not texts.get(flags.NODEPORT_ADDRESSES.name):
            texts[flags.NODEPORT_ADDRESSES.name] = addresses
        for port, address in flags.PORTS:
            if self.has(port):
                # kube-proxy uses the port only if the address has none.
                listen = values.listen_address(self[port])(self.text(address))
                texts[address.name] = str(listen) if listen and self[port] else "0"
        return Given(texts)


def command_line(namespace: argparse.Namespace) -> Given:
    """Return the flags that argparse found."""
    found: dict[str, list[str] | None] = vars(namespace)
    return Given(
        {
            flag.name: ",".join(texts) if flag.repeats else texts[-1]
            for flag in FLAGS
            if (texts := found.get(flag.name))
        }
    )


def wins_over_file(flag: Flag[T]) -> bool:
    """Return whether a flag overrides the file of --config, or has no field in it."""
    if flag.instead:
        return False
    return (
        not flag.fields
        or flag.name == flags.HOSTNAME_OVERRIDE.name
        or flag.fields[0].startswith(("logging.", *_OWN_FIELDS))
    )


def texts_by_field(configuration: KubeProxyConfiguration) -> dict[str, str]:
    """Return the text of every field that is set, in the notation of its flag."""
    # A zero value counts as not set: kube-proxy replaces it by the default too.
    return {
        path: _text(path, value)
        for path, value in leaves(configuration)
        if not is_zero(path, value)
    }


def _text(path: str, value: Leaf) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{name}={_text(path, each)}" for name, each in value.items())
    # Kubernetes accepts this duration as text, or as a number of nanoseconds.
    if path == "logging.flushFrequency" and isinstance(value, int):
        return durations.text(value / 10**9)
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _check(path: str, by_field: Mapping[str, str]) -> None:
    for flag in FLAGS:
        for field in flag.fields:
            if field in by_field:
                Given({flag.name: by_field[field]}, path, {flag.name: field})[flag]


def _implied(configuration: KubeProxyConfiguration, by_field: Mapping[str, str]) -> dict[str, str]:
    """Return the flags that follow from the other fields of a file."""
    mode = configuration.mode
    texts = {flags.PROXY_MODE.name: modes.serving(mode).value}
    localhost = configuration.iptables.localhost_node_ports is not False
    addresses = modes.node_port_addresses(mode, localhost=localhost)
    if addresses and not configuration.node_port_addresses:
        texts[flags.NODEPORT_ADDRESSES.name] = addresses
    address = parse_address(configuration.bind_address or "0.0.0.0")  # noqa: S104
    # kube-proxy derives the family of these two defaults from bindAddress.
    if family_of(address) is Family.IPV6:
        if "healthzBindAddress" not in by_field:
            texts[flags.HEALTHZ_BIND_ADDRESS.name] = "[::]:10256"
        if "metricsBindAddress" not in by_field:
            texts[flags.METRICS_BIND_ADDRESS.name] = "[::1]:10249"
    return texts
