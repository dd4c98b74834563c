import csv
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyproxy.config import (
    Api,
    Conntrack,
    IptablesSettings,
    IpvsSettings,
    ListenAddress,
    LocalMode,
    LocalTraffic,
    Masquerade,
    NodePorts,
    ProxyMode,
    Serving,
    Settings,
    SyncPeriods,
    command_line,
    durations,
    report,
    values,
)
from pyproxy.config.given import FLAGS
from pyproxy.config.schema import API_VERSION, KIND
from pyproxy.model.address import parse_address, parse_network
from pyproxy.model.flavour import Flavour
from tests.config.parsing import parse

FLAGS_FILE = Path(__file__).parents[1] / "data" / "kube-proxy-flags.tsv"

with FLAGS_FILE.open() as file:
    KUBE_PROXY_FLAGS = list(csv.DictReader(file, delimiter="\t"))

EXAMPLE_BY_TYPE = {
    "bool": "false",
    "duration": "1h0m0s",
    "float32": "5",
    "int32": "14",
    "ip": "10.0.0.1",
    "ipport": "10.0.0.1:10256",
    "Level": "2",
    "LocalMode": "NodeCIDR",
    "mapStringBool": "A=true,B=false",
    "ProxyMode": "nftables",
    "quantity": "64Ki",
    "string": "",
    "strings": "",
}


@pytest.mark.parametrize("row", KUBE_PROXY_FLAGS, ids=lambda row: row["flag"])
def test_every_flag_of_kube_proxy_is_accepted(row: dict[str, str]) -> None:
    if row["flag"] == "--help":
        with pytest.raises(SystemExit, match=r"^0$"):
            parse("--help")
        return
    value = row["default"] or EXAMPLE_BY_TYPE[row["type"]]
    flag_by_name = {flag.name: flag for flag in parse(f"{row['flag']}={value}").flags}
    assert flag_by_name[row["flag"]].value == value
    assert flag_by_name[row["flag"]].given


def test_defaults_are_kube_proxys_except_where_the_mode_differs() -> None:
    default_by_name = {flag.name: flag.default for flag in FLAGS}
    differing = {
        row["flag"]: default_by_name[row["flag"]]
        for row in KUBE_PROXY_FLAGS
        if row["default"] and default_by_name[row["flag"]] != row["default"]
    }
    # A commit here costs what changed, so nothing is gained by holding it back.
    assert differing == {
        "--iptables-min-sync-period": "0s",
        "--ipvs-min-sync-period": "0s",
    }


def test_the_defaults_of_the_flags_are_those_of_the_settings() -> None:
    plain = Settings(node_name=os.uname().nodename.lower())
    settings = parse()
    assert settings == Settings(
        plain.node_name, flags=settings.flags, configuration=settings.configuration
    )
    assert not any(flag.given for flag in settings.flags)


@pytest.mark.parametrize(
    ("arguments", "group", "expected"),
    [
        (["--hostname-override", " Node-A "], "node_name", "node-a"),
        (["--hostname-override="], "node_name", os.uname().nodename.lower()),
        (["--bind-address=10.0.0.5"], "node_address", parse_address("10.0.0.5")),
        (["--bind-address=::"], "node_address", None),
        (["--bind-address="], "node_address", None),
        (["--manifests", "/etc/pods"], "manifests", "/etc/pods"),
        (["--v=4"], "verbosity", 4),
        (["-v", "5"], "verbosity", 5),
        (["-v=6"], "verbosity", 6),
        (["--kubeconfig", "f", "--master=https://m"], "api", Api("f", "https://m")),
        (["--kubeconfig", "--v", "--v", "1"], "api", Api("--v")),
        (
            ["--cluster_cidr=10.244.0.0/16, fd10::/16"],
            "local_traffic",
            LocalTraffic(
                cluster_networks=(parse_network("10.244.0.0/16"), parse_network("fd10::/16"))
            ),
        ),
        (
            ["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0"],
            "local_traffic",
            LocalTraffic(mode=LocalMode.BRIDGE_INTERFACE, bridge_interface="cni0"),
        ),
        (
            ["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=veth"],
            "local_traffic",
            LocalTraffic(mode=LocalMode.INTERFACE_NAME_PREFIX, interface_name_prefix="veth"),
        ),
        (
            ["--detect-local-mode", "NodeCIDR"],
            "local_traffic",
            LocalTraffic(mode=LocalMode.NODE_CIDR),
        ),
        (["--masquerade-all"], "masquerade", Masquerade(everything=True)),
        (["--masquerade-all=false"], "masquerade", Masquerade()),
        (["--masquerade-all", "--masquerade-all=F"], "masquerade", Masquerade()),
        (["--iptables-masquerade-bit=31"], "masquerade", Masquerade(bit=31)),
        (["--nodeport-addresses="], "node_ports", NodePorts()),
        (["--nodeport-addresses=all"], "node_ports", NodePorts(primary=False, everywhere=True)),
        (
            ["--nodeport-addresses=primary,localhost"],
            "node_ports",
            NodePorts(primary=True, localhost=True),
        ),
        (
            ["--nodeport-addresses=10.0.0.0/8", "--nodeport-addresses", "fd00::/8"],
            "node_ports",
            NodePorts(
                primary=False, networks=(parse_network("10.0.0.0/8"), parse_network("fd00::/8"))
            ),
        ),
        (
            ["--healthz-bind-address=", "--metrics-bind-address=0"],
            "serving",
            Serving(health=None, metrics=None),
        ),
        (
            [
                "--healthz-bind-address=[fd00::1]:80",
                "--metrics-bind-address=::1",
                "--bind-address-hard-fail",
            ],
            "serving",
            Serving(
                health=ListenAddress(parse_address("fd00::1"), 80),
                metrics=ListenAddress(parse_address("::1"), 10249),
                hard_fail=True,
            ),
        ),
        (["--healthz-port=80", "--metrics-port=10249"], "serving", Serving()),
        (
            ["--healthz-port=80", "--healthz-bind-address=::1", "--metrics-port=0"],
            "serving",
            Serving(health=ListenAddress(parse_address("::1"), 80), metrics=None),
        ),
        (
            ["--metrics-port=9101", "--metrics-bind-address=0.0.0.0", "--healthz-bind-address="],
            "serving",
            Serving(health=None, metrics=ListenAddress(parse_address("0.0.0.0"), 9101)),
        ),
        (["--logging-format=json"], "log_format", "json"),
        (["--logging-format="], "log_format", "text"),
        (
            ["--min-sync-period=500ms", "--sync-period", "1h0m0s"],
            "pace",
            SyncPeriods(min_sync_period=0.5, sync_period=3600),
        ),
        (
            ["--iptables-min-sync-period=1s", "--iptables-sync-period=1m"],
            "pace",
            SyncPeriods(min_sync_period=1, sync_period=60),
        ),
        (
            ["--conntrack-max-per-core=0", "--conntrack-min=7", "--conntrack-tcp-be-liberal"],
            "conntrack",
            Conntrack(max_per_core=0, min=7, tcp_be_liberal=True),
        ),
        (
            [
                "--conntrack-tcp-timeout-established=2h",
                "--conntrack-tcp-timeout-close-wait=1m",
                "--conntrack-udp-timeout=30s",
                "--conntrack-udp-timeout-stream=3m",
            ],
            "conntrack",
            Conntrack(
                tcp_established_timeout=7200,
                tcp_close_wait_timeout=60,
                udp_timeout=30,
                udp_stream_timeout=180,
            ),
        ),
        (["--oom-score-adj=-998"], "oom_score_adj", -998),
        (["--proxy-mode=ipvs"], "mode", ProxyMode.IPVS),
        (["--proxy-mode="], "mode", ProxyMode.NFTABLES),
        (
            ["--proxy-mode="],
            "node_ports",
            NodePorts(primary=False, everywhere=True, localhost=True),
        ),
        (
            ["--proxy-mode=", "--iptables-localhost-nodeports=false"],
            "node_ports",
            NodePorts(primary=False, everywhere=True),
        ),
        (
            ["--proxy-mode=iptables"],
            "node_ports",
            NodePorts(primary=False, everywhere=True, localhost=True),
        ),
        (
            ["--proxy-mode=iptables", "--iptables-localhost-nodeports=false"],
            "node_ports",
            NodePorts(primary=False, everywhere=True, loopback=False),
        ),
        (
            ["--proxy-mode=iptables", "--nodeport-addresses=primary"],
            "node_ports",
            NodePorts(),
        ),
        (
            [
                *("--proxy-mode=iptables", "--iptables-localhost-nodeports=false"),
                "--nodeport-addresses=primary,localhost",
            ],
            "node_ports",
            NodePorts(localhost=True, loopback=False),
        ),
        (
            ["--proxy-mode=ipvs"],
            "node_ports",
            NodePorts(primary=False, everywhere=True, loopback=False),
        ),
        (
            ["--proxy-mode=ipvs", "--ipvs-sync-period=9s", "--iptables-sync-period=8s"],
            "pace",
            SyncPeriods(sync_period=9),
        ),
        (
            ["--proxy-mode=iptables", "--ipvs-sync-period=9s", "--iptables-sync-period=8s"],
            "pace",
            SyncPeriods(sync_period=8),
        ),
        (
            ["--proxy-mode=iptables", "--iptables-flavour=nft"],
            "iptables",
            IptablesSettings(Flavour.NFT),
        ),
        (
            [
                *("--proxy-mode=ipvs", "--ipvs-scheduler=mh", "--ipvs-exclude-cidrs=10.0.0.0/8"),
                *("--ipvs-exclude-cidrs=fd00::/8", "--ipvs-strict-arp", "--ipvs-tcp-timeout=15m"),
                *("--ipvs-tcpfin-timeout=2m", "--ipvs-udp-timeout=5m"),
            ],
            "ipvs",
            IpvsSettings(
                "mh",
                (parse_network("10.0.0.0/8"), parse_network("fd00::/8")),
                strict_arp=True,
                tcp_timeout=900,
                tcp_fin_timeout=120,
                udp_timeout=300,
            ),
        ),
        (["--sync-period=10s", "--iptables-sync-period=20s"], "pace", SyncPeriods(sync_period=10)),
    ],
)
def test_flags_become_settings(arguments: list[str], group: str, expected: object) -> None:
    assert getattr(parse(*arguments), group) == expected


def test_the_masquerade_mark_is_the_bit_alone() -> None:
    assert Masquerade(bit=14).mark == 0x4000
    assert Masquerade(bit=31).mark == 0x80000000


def test_a_boolean_does_not_take_the_next_argument() -> None:
    assert list(command_line.go_style(["--masquerade-all", "true"])) == [
        "--masquerade-all=true",
        "true",
    ]


def test_flags_in_vain_are_named_once_by_reason() -> None:
    settings = parse("--ipvs-scheduler=lc", "--ipvs-strict-arp", "--profiling", "--v=1")
    assert settings.remarks == (
        "flags without effect: --ipvs-scheduler, --ipvs-strict-arp (the mode is nftables); "
        "--profiling (pyproxy has no profiling pages)",
    )
    assert parse("--v=1", "--profiling=false", "--ipvs-scheduler=rr").remarks == ()
    assert parse("--proxy-mode=", "--iptables-localhost-nodeports=false").remarks == ()


def test_deprecated_flags_are_named() -> None:
    settings = parse("--healthz-port=10256", "--metrics-port=10249", "--vmodule=proxier=4")
    assert settings.remarks == (
        "flags without effect: --vmodule (its patterns are names of Go source files)",
        "deprecated flags: --healthz-port (use --healthz-bind-address); --metrics-port (use "
        "--metrics-bind-address)",
    )


def test_a_file_counts_instead_of_deprecated_flags(tmp_path: Path) -> None:
    path = tmp_path / "config.conf"
    path.write_text(f"apiVersion: {API_VERSION}\nkind: {KIND}\n")
    settings = parse(f"--config={path}", "--healthz-port=0")
    assert settings.serving == Serving()
    assert settings.remarks == (
        "flags without effect: --healthz-port (the file of --config counts instead)",
    )


def test_flags_of_older_kube_proxies_are_named_once() -> None:
    settings = parse(
        *("--logtostderr=false", "--alsologtostderr", "--log-file=/var/log/kube-proxy.log"),
        *("--resource-container=/kube-proxy", "--stderrthreshold=INFO", "--v=2"),
    )
    assert settings.remarks == (
        "flags without effect: --alsologtostderr, --log-file, --logtostderr, --resource-container, "
        "--stderrthreshold (kube-proxy v1.36 has no such flag)",
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("-0", 0),
        ("0s", 0),
        ("1h0m0s", 3600),
        ("2h22m", 8520),
        ("500ms", 0.5),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("1.s", 1),
        ("10us", 1e-5),
        ("10µs", 1e-5),
        ("10μs", 1e-5),
        ("7ns", 7e-9),
        ("-1m", -60),
        ("+1m", 60),
        ("1m1m", 120),
    ],
)
def test_durations_are_read_as_go_reads_them(text: str, seconds: float) -> None:
    assert durations.parse(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "s",
        ".s",
        "1 s",
        "1d",
        "1s2",
        "--1s",
        "1,5s",
        "\N{ARABIC-INDIC DIGIT ONE}s",
        "1e3s",
        "9999999999h",
    ],
)
def test_what_go_calls_no_duration_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: write it as 500ms, 30s or 1h0m0s"):
        durations.parse(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (1e-9, "1ns"),
        (1.5e-6, "1.5µs"),
        (0.5, "500ms"),
        (0.0000011, "1.1µs"),
        (1, "1s"),
        (61.5, "1m1.5s"),
        (3600, "1h0m0s"),
        (100 * 3600 + 1e-3, "100h0m0.001s"),
        (-60, "-1m0s"),
    ],
)
def test_durations_are_written_as_go_writes_them(seconds: float, text: str) -> None:
    assert durations.text(seconds) == text


# Seconds as a float are exact to the nanosecond for the first 13 days.
@given(st.integers(-(2**50), 2**50))
@example(999_999_999)
@example(60 * 10**9)
@example(3_599_999_999_999)
def test_a_duration_written_reads_back_the_same(nanoseconds: int) -> None:
    text = durations.text(nanoseconds / 10**9)
    assert round(durations.parse(text) * 10**9) == nanoseconds


@given(st.text(max_size=12) | st.from_regex(r"[-+]?(\d*\.?\d*[a-zµ]{0,2}){0,3}", fullmatch=True))
def test_a_duration_is_read_or_refused_and_nothing_else_happens(text: str) -> None:
    try:
        seconds = durations.parse(text)
    except ValueError:
        return
    assert durations.parse(durations.text(seconds)) == pytest.approx(seconds)


@given(st.text(max_size=30))
def test_a_listen_address_is_read_or_refused_and_nothing_else_happens(text: str) -> None:
    try:
        where = values.listen_address(80)(text)
    except ValueError:
        return
    if where is not None:
        assert values.listen_address(81)(str(where)) == where


@pytest.mark.parametrize("text", ["1Ki", "0", "1.5G", "10e3", "100m", "+5"])
def test_quantities(text: str) -> None:
    assert values.quantity(text) == text


def test_flagz_has_no_passwords() -> None:
    text = report.flagz(parse("--master=https://jo:secret@192.0.2.1:6443,http://x:secret@b"))
    assert "master https://192.0.2.1:6443,http://b" in text.splitlines()


def test_flagz_has_a_line_a_flag() -> None:
    lines = report.flagz(parse("--v=7")).splitlines()
    assert "v 7" in lines
    assert "cluster-cidr" in lines
    assert len(lines) == 3 + len(FLAGS)
