"""Every flag of kube-proxy and every field of its configuration is honoured, or said not to be.

The effect of each that is honoured is shown by the test that honoured.yaml names. Here the flags,
the fields and the reasons are held together.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from pyproxy.config import ProxyMode, Settings
from pyproxy.config.flag import Flag
from pyproxy.config.given import FLAGS
from pyproxy.config.no_effect import FIELDS, NO_EFFECT
from pyproxy.config.schema import ZERO, KubeProxyConfiguration
from tests.config.parsing import flat, parse
from tests.config.test_file import HEAD

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
SHOWN_BY: dict[str, list[str]] = yaml.safe_load(
    Path(__file__).with_name("honoured.yaml").read_text()
)
HONOURED = {name: test for test, names in SHOWN_BY.items() for name in names}

with (DATA / "kube-proxy-flags.tsv").open() as file:
    KUBE_PROXYS_FLAGS = [row["flag"] for row in csv.DictReader(file, delimiter="\t")]
KUBE_PROXYS_FIELDS = sorted(
    flat(yaml.safe_load((DATA / "kube-proxy-default-config.yaml").read_text()))
)

REASONS = {entry.flag.name: entry.reason for entry in NO_EFFECT}
REASONS |= {field: entry.reason for entry in NO_EFFECT for field in entry.flag.fields}
REASONS |= {entry.path: entry.reason for entry in FIELDS}

OTHER_VALUE = {
    "--ui-bind-address": "10260",
    "--bind-address": "10.9.8.7",
    "--cluster-cidr": "10.9.0.0/16",
    "--config-sync-period": "9s",
    "--detect-local-mode": "NodeCIDR",
    "--flow-offload": "services",
    "--flow-offload-interfaces": "eth9,veth*",
    "--feature-gates": "AllowServiceExternalIPs=false",
    "--healthz-bind-address": "127.0.0.1:99",
    "--hostname-override": "another",
    "--iptables-flavour": "legacy",
    "--ipvs-exclude-cidrs": "10.9.0.0/16",
    "--ipvs-scheduler": "wlc",
    "--kube-api-content-type": "application/json",
    "--kube-api-qps": "9",
    "--logging-format": "json",
    "--master": "https://10.9.8.7",
    "--metrics-bind-address": "127.0.0.1:99",
    "--vmodule": "proxier=4",
    "--nodeport-addresses": "10.9.0.0/16",
    "--pod-bridge-interface": "cbr9",
    "--pod-interface-name-prefix": "cb",
}
NOT_A_SETTING = {
    *("--cleanup", "--config", "--help", "--init-only", "--version", "--write-config-to"),
    # They have an effect beside an address without a port only.
    *("--healthz-port", "--metrics-port"),
}
ONE_VALUE = {"--proxy-mode", "apiVersion", "kind", "mode"}


@pytest.mark.parametrize("name", [*KUBE_PROXYS_FLAGS, *KUBE_PROXYS_FIELDS])
def test_it_is_honoured_or_has_a_reason(name: str) -> None:
    assert (name in HONOURED) != (name in REASONS)


def test_so_is_all_that_is_read_here() -> None:
    assert {*REASONS, *HONOURED} == {flag.name for flag in FLAGS} | {"--help"} | ZERO.keys()


@pytest.mark.parametrize("test", SHOWN_BY)
def test_the_test_that_shows_an_effect_is_there(test: str) -> None:
    path, name = test.split("::")
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def in_force(settings: Settings) -> Settings:
    """The settings that the agent acts on, without those that it only shows."""
    return msgspec.structs.replace(
        settings,
        flags=(),
        configuration=KubeProxyConfiguration(),
        config_file="",
        remarks=(),
        file_warnings=(),
    )


def example(flag: str, default: str, boolean: bool) -> str:
    if boolean:
        return "false" if default == "true" else "true"
    if re.fullmatch(r"-?\d+", default):
        return "9"
    return OTHER_VALUE.get(flag) or ("9s" if re.search(r"\ds$", default) else "other")


@pytest.mark.parametrize(
    "flag",
    [flag for flag in FLAGS if flag.name not in NOT_A_SETTING | ONE_VALUE],
    ids=lambda f: f.name,
)
def test_a_flag_makes_a_difference_or_a_remark(flag: Flag[object]) -> None:
    value = example(flag.name, flag.default, flag.is_boolean)
    mode = f"--proxy-mode={a_mode(flag)}"
    settings = parse(mode, f"{flag.name}={value}")
    differs = in_force(settings) != in_force(parse(mode))
    assert differs == (flag.name in HONOURED)
    if not differs:
        assert settings.remarks == (f"flags without effect: {flag.name} ({REASONS[flag.name]})",)


def a_mode(flag: Flag[object]) -> str:
    """Return a mode in which a flag has an effect, nftables if possible."""
    return min(flag.modes, key=lambda mode: list(ProxyMode).index(mode)).value


@pytest.mark.parametrize(
    ("flag", "mode"),
    [
        pytest.param(flag, mode.value, id=f"{flag.name}-{mode.value}")
        for flag in FLAGS
        for mode in ProxyMode
        if mode not in flag.modes
    ],
)
def test_a_flag_for_another_mode_is_told(flag: Flag[object], mode: str) -> None:
    value = example(flag.name, flag.default, flag.is_boolean)
    settings = parse(f"--proxy-mode={mode}", f"{flag.name}={value}")
    assert settings.remarks == (f"flags without effect: {flag.name} (the mode is {mode})",)


def field_values() -> Iterator[tuple[str, str, object]]:
    """Each field with a mode in which it counts, if any, and another value than the default."""
    flags = {field: flag for flag in FLAGS for field in flag.fields}
    for path, zero in ZERO.items():
        flag = flags.get(path)
        value: object = "9s" if zero == "0s" else "other"
        if flag is not None:
            value = example(flag.name, flag.default, flag.is_boolean)
            if flag.is_boolean:
                value = value == "true"
            elif isinstance(zero, int | float) or re.fullmatch("-?[0-9]+", flag.default):
                value = int(value)
        elif path.endswith(("snatNodeInternalIP", "AsService", "DSR", "CheckVip")):
            value = True
        if isinstance(zero, tuple):
            value = [value] if path != "logging.vmodule" else [{"filePattern": "p", "verbosity": 1}]
        if isinstance(zero, dict):
            value = {"AllowServiceExternalIPs": False}
        if "infoBufferSize" in path:
            value = "9Ki"
        section = path.partition(".")[0]
        yield path, section if section in {"iptables", "ipvs"} else "nftables", value


@pytest.mark.parametrize(
    ("path", "mode", "value"), [each for each in field_values() if each[0] not in ONE_VALUE]
)
def test_a_field_makes_a_difference_or_a_remark(
    tmp_path: Path, path: str, mode: str, value: object
) -> None:
    def settings(**fields: object) -> Settings:
        file = tmp_path / "config.conf"
        file.write_text(HEAD + yaml.safe_dump({"mode": mode, **fields}))
        return parse(f"--config={file}")

    *sections, last = path.split(".")
    fields = {last: value}
    for section in reversed(sections):
        fields = {section: fields}
    said, plain = settings(**fields), settings()
    differs = in_force(said) != in_force(plain)
    assert differs == (path in HONOURED)
    if not differs:
        (remark,) = set(said.remarks) - set(plain.remarks)
        assert remark.endswith(f": fields without effect: {path} ({REASONS[path]})")
