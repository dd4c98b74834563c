"""The file of --config: what it may hold, what it means, and how a mistake in it is told."""

import contextlib
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.config import (
    Api,
    Conntrack,
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
    file,
)
from pyproxy.config.schema import KubeProxyConfiguration
from pyproxy.errors import UsageError
from pyproxy.model.address import parse_address, parse_network

from .parsing import DEFAULT, KUBEADM, parse

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

# Writes a file that says this besides its kind, and gives its path.
Written = Callable[[str], str]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def written(text: str) -> str:
        path = tmp_path / "config.conf"
        path.write_text(HEAD + text)
        return str(path)

    return written


def test_kubeadms_file_is_the_defaults_and_asks_for_nothing_in_vain() -> None:
    settings = parse(f"--config={KUBEADM}", "--hostname-override=node-a")
    assert settings == Settings(
        "node-a",
        api=Api(kubeconfig="/var/lib/kube-proxy/kubeconfig.conf"),
        local_traffic=LocalTraffic(
            cluster_networks=(parse_network("10.244.0.0/16"), parse_network("fd10::/16"))
        ),
        node_ports=NodePorts(primary=False, everywhere=True, localhost=True),
        flags=settings.flags,
        configuration=settings.configuration,
        config_file=str(KUBEADM),
    )


def test_kube_proxys_own_defaults_ask_for_nothing_in_vain() -> None:
    settings = parse(f"--config={DEFAULT}")
    assert settings.mode is ProxyMode.IPTABLES
    assert settings.pace == SyncPeriods(min_sync_period=1)
    assert settings.remarks == ()


@pytest.mark.parametrize(
    ("mode", "serves"),
    [
        ("", ProxyMode.NFTABLES),
        ("nftables", ProxyMode.NFTABLES),
        ("iptables", ProxyMode.IPTABLES),
        ("ipvs", ProxyMode.IPVS),
    ],
)
def test_a_file_has_the_mode_that_it_asks_for(
    written: Written, mode: str, serves: ProxyMode
) -> None:
    settings = parse(f"--config={written(f'mode: {json.dumps(mode)}')}")
    assert settings.mode is serves
    assert settings.remarks == ()


@pytest.mark.parametrize(
    ("text", "group", "expected"),
    [
        ("bindAddress: 10.0.0.5", "node_address", parse_address("10.0.0.5")),
        ('bindAddress: "::"', "node_address", None),
        (
            'bindAddress: "::"',
            "serving",
            Serving(
                ListenAddress(parse_address("::"), 10256),
                ListenAddress(parse_address("::1"), 10249),
            ),
        ),
        (
            'bindAddress: "fd00::1"\nmetricsBindAddress: 10.0.0.1',
            "serving",
            Serving(
                ListenAddress(parse_address("::"), 10256),
                ListenAddress(parse_address("10.0.0.1"), 10249),
            ),
        ),
        (
            'bindAddressHardFail: true\nhealthzBindAddress: "0"\nmetricsBindAddress: 0.0.0.0:80',
            "serving",
            Serving(None, ListenAddress(parse_address("0.0.0.0"), 80), hard_fail=True),
        ),
        ("clientConnection: {kubeconfig: /k}", "api", Api("/k")),
        (
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
            "local_traffic",
            LocalTraffic(LocalMode.BRIDGE_INTERFACE, bridge_interface="cni0"),
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}",
            "local_traffic",
            LocalTraffic(LocalMode.INTERFACE_NAME_PREFIX, interface_name_prefix="veth"),
        ),
        ("hostnameOverride: Node-B", "node_name", "node-b"),
        ("logging: {verbosity: 4}", "verbosity", 4),
        ("logging: {format: json, verbosity: 2}", "log_format", "json"),
        ("oomScoreAdj: 0", "oom_score_adj", 0),
        ("oomScoreAdj: null", "oom_score_adj", -999),
        ("conntrack: {maxPerCore: 0}", "conntrack", Conntrack(max_per_core=0)),
        ("conntrack: null", "conntrack", Conntrack()),
        (
            "conntrack: {maxPerCore: 1, min: 0, tcpBeLiberal: true, tcpCloseWaitTimeout: 0s, "
            "tcpEstablishedTimeout: 2h, udpStreamTimeout: 3m, udpTimeout: 30s}",
            "conntrack",
            Conntrack(1, 0, 7200, 0, tcp_be_liberal=True, udp_timeout=30, udp_stream_timeout=180),
        ),
        (
            "mode: nftables\nnftables: {syncPeriod: 1m, minSyncPeriod: 2s}",
            "pace",
            SyncPeriods(2, 60),
        ),
        ("mode: nftables\nnftables: {syncPeriod: 0m}", "pace", SyncPeriods()),
        ("iptables: {syncPeriod: 1m, minSyncPeriod: 2s}", "pace", SyncPeriods(2, 60)),
        (
            "mode: ipvs\nipvs: {syncPeriod: 1m}\niptables: {syncPeriod: 3m}",
            "pace",
            SyncPeriods(0, 60),
        ),
        ("mode: nftables\niptables: {syncPeriod: 1m, minSyncPeriod: 2s}", "pace", SyncPeriods()),
        (
            "mode: nftables\nnftables: {masqueradeAll: true, masqueradeBit: 0}",
            "masquerade",
            Masquerade(0, everything=True),
        ),
        (
            "mode: nftables\niptables: {masqueradeAll: true, masqueradeBit: 0}",
            "masquerade",
            Masquerade(),
        ),
        (
            "iptables: {masqueradeAll: true, masqueradeBit: 0}",
            "masquerade",
            Masquerade(0, everything=True),
        ),
        (
            "iptables: {masqueradeBit: 3}\nnftables: {masqueradeBit: 4}",
            "masquerade",
            Masquerade(4),
        ),
        (
            "mode: iptables\niptables: {masqueradeBit: 3}\nnftables: {masqueradeBit: 4}",
            "masquerade",
            Masquerade(3),
        ),
        (
            "mode: iptables\niptables: {syncPeriod: 1m}\nnftables: {syncPeriod: 2m}",
            "pace",
            SyncPeriods(0, 60),
        ),
        (
            "mode: iptables\niptables: {localhostNodePorts: false}",
            "node_ports",
            NodePorts(primary=False, everywhere=True, loopback=False),
        ),
        ("mode: nftables", "node_ports", NodePorts()),
        (
            "mode: ipvs\nipvs: {scheduler: wlc, strictARP: true, excludeCIDRs: [10.0.0.0/8], "
            "tcpTimeout: 15m, tcpFinTimeout: 2m, udpTimeout: 5m}",
            "ipvs",
            IpvsSettings("wlc", (parse_network("10.0.0.0/8"),), True, 900, 120, 300),
        ),
        ("mode: ipvs\niptables: {masqueradeBit: 3}", "masquerade", Masquerade(3)),
        (
            "mode: iptables",
            "node_ports",
            NodePorts(primary=False, everywhere=True, localhost=True),
        ),
        (
            "iptables: {localhostNodePorts: false}",
            "node_ports",
            NodePorts(primary=False, everywhere=True),
        ),
        (
            "mode: ipvs",
            "node_ports",
            NodePorts(primary=False, everywhere=True, loopback=False),
        ),
        (
            "nodePortAddresses: [10.0.0.0/8, primary]",
            "node_ports",
            NodePorts(networks=(parse_network("10.0.0.0/8"),)),
        ),
    ],
)
def test_fields_become_settings(written: Written, text: str, group: str, expected: object) -> None:
    assert getattr(parse(f"--config={written(text)}"), group) == expected


def test_a_file_may_be_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    document = yaml.safe_load(HEAD) | {"clusterCIDR": "10.1.0.0/16", "nodePortAddresses": None}
    path.write_text(json.dumps(document))
    networks = parse(f"--config={path}").local_traffic.cluster_networks
    assert networks == (parse_network("10.1.0.0/16"),)


def test_flags_win_where_kube_proxys_do(written: Written) -> None:
    text = "hostnameOverride: b\nlogging: {verbosity: 2}\nclusterCIDR: 10.1.0.0/16\nmode: nftables"
    config = f"--config={written(text)}"
    settings = parse(
        config,
        *("--hostname-override=A", "--v=3", "--cluster-cidr=10.2.0.0/16", "--masquerade-all"),
        *("--master=https://m", "--iptables-sync-period=9s", "--proxy-mode=ipvs"),
    )
    assert (settings.node_name, settings.verbosity) == ("a", 3)
    assert settings.api == Api("", "https://m")
    assert settings.local_traffic.cluster_networks == (parse_network("10.1.0.0/16"),)
    assert settings.masquerade == Masquerade()
    assert settings.pace == SyncPeriods()
    assert settings.remarks == (
        "flags without effect: --cluster-cidr, --iptables-sync-period, --masquerade-all, "
        "--proxy-mode (the file of --config counts instead)",
    )
    assert parse(config, "--hostname-override=").node_name == "b"
    assert parse(config).verbosity == 2


def test_fields_in_vain_are_named_once_by_reason(written: Written) -> None:
    path = written(
        "mode: nftables\n"
        "winkernel: {networkName: n, enableDSR: true}\n"
        "clientConnection: {qps: 50, burst: 10}\n"
        "logging: {flushFrequency: 5000000000, vmodule: [{filePattern: p, verbosity: 1}]}\n"
        "iptables: {masqueradeBit: 15, syncPeriod: 30s}\n"
        "ipvs: {scheduler: rr}\n"
        "udpIdleTimeout: 1s\n"
    )
    requests = "a few watches need no limit"
    assert parse(f"--config={path}").remarks == (
        f"--config {path}: fields without effect: "
        f"clientConnection.qps ({requests}); "
        "iptables.masqueradeBit, ipvs.scheduler (the mode is nftables); "
        "logging.vmodule (its patterns are names of Go source files); "
        "udpIdleTimeout (it was the userspace mode's); "
        "winkernel.enableDSR, winkernel.networkName (pyproxy runs on Linux)",
    )


def test_what_a_file_says_for_its_own_mode_is_not_in_vain(written: Written) -> None:
    path = written("mode: ipvs\nipvs: {syncPeriod: 1m, minSyncPeriod: 2s, scheduler: rr}")
    assert parse(f"--config={path}").remarks == ()
    path = written("iptables: {localhostNodePorts: false, syncPeriod: 1m, masqueradeAll: true}")
    assert parse(f"--config={path}").remarks == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conntrack: {maxPerCore: many}", "conntrack.maxPerCore: expected int | null, got str"),
        ("conntrack: {maxPerCore: 1.5}", "conntrack.maxPerCore: expected int | null, got float"),
        (
            "conntrack: {maxPerCore: -1}",
            "conntrack.maxPerCore: '-1' is not a whole number from 0 to 2147483647",
        ),
        ("conntrack: 1", "conntrack: expected object, got int"),
        ("conntrack: {udpTimeout: 30}", "conntrack.udpTimeout: expected str, got int"),
        (
            "conntrack: {udpTimeout: 30 s}",
            "conntrack.udpTimeout: '30 s' is not a duration: write it as 500ms, 30s or 1h0m0s",
        ),
        (
            "conntrack: {tcpEstablishedTimeout: -1s}",
            "conntrack.tcpEstablishedTimeout: '-1s' is too short: use 0s or more",
        ),
        ("featureGates: {A: maybe}", "featureGates[...]: expected bool, got str"),
        ("nodePortAddresses: primary", "nodePortAddresses: expected array, got str"),
        ("nodePortAddresses: [1]", "nodePortAddresses[0]: expected str, got int"),
        (
            "nodePortAddresses: [eth0]",
            "nodePortAddresses: 'eth0' is not a CIDR: use CIDRs, primary, all or localhost",
        ),
        (
            "clusterCIDR: 10.0.0.0",
            "clusterCIDR: '10.0.0.0' is not a CIDR: write it as 10.244.0.0/16 or fd10::/16",
        ),
        ("bindAddress: here", "bindAddress: 'here' is not an IP address"),
        ("clientConnection: {qps: .nan}", "clientConnection.qps: 'nan' is not a number"),
        ("clientConnection: {qps: .inf}", "clientConnection.qps: 'inf' is not a number"),
        ("oomScoreAdj: -1001", "oomScoreAdj: '-1001' is not a whole number from -1000 to 1000"),
        ("mode: userspace", "mode: 'userspace' is not one of nftables, iptables, ipvs"),
        ("mode: 3", "mode: expected str, got int"),
        (
            "mode: nftables\niptables: {masqueradeBit: 32}",
            "iptables.masqueradeBit: '32' is not a whole number from 0 to 31",
        ),
        (
            "iptables: {syncPeriod: -1s}",
            "iptables.syncPeriod: '-1s' is too short: use 1ms or more",
        ),
        (
            "nftables: {minSyncPeriod: 1h}",
            "nftables.minSyncPeriod: it is longer than nftables.syncPeriod: make it shorter, or "
            "that longer",
        ),
        (
            "iptables: {minSyncPeriod: 1h}",
            "iptables.minSyncPeriod: it is longer than nftables.syncPeriod: make it shorter, or "
            "that longer",
        ),
        (
            "detectLocalMode: BridgeInterface",
            "detectLocalMode: BridgeInterface needs detectLocal.bridgeInterface: give it",
        ),
        (
            "logging: {options: {json: {infoBufferSize: big}}}",
            "logging.options.json.infoBufferSize: 'big' is not a quantity: write it as 65536 or "
            "64Ki",
        ),
        ("logging: {format: xml}", "logging.format: 'xml' is not one of text, json"),
        (
            "ipvs: {scheduler: best}",
            "ipvs.scheduler: 'best' is not one of rr, wrr, lc, wlc, lblc, lblcr, sh, dh, sed, nq, "
            "mh, fo, ovf, twos",
        ),
        (
            "ipvs: {excludeCIDRs: [10.0.0.0]}",
            "ipvs.excludeCIDRs: '10.0.0.0' is not a CIDR: write it as 10.244.0.0/16 or fd10::/16",
        ),
        ("ipvs: {tcpTimeout: -1s}", "ipvs.tcpTimeout: '-1s' is too short: use 0s or more"),
        ("mode: ipvs\nmode: userspace", "mode: 'userspace' is not one of nftables, iptables, ipvs"),
        ("featureGates: {A: null}", "featureGates[...]: expected bool, got null"),
        ("? [a]\n: 1", "line 3: the name of a field is not text"),
        ("mode: &a [*a]", "line 3: an alias is inside its own anchor"),
        ("ipvs: &a {<<: *a}", "line 3: an alias is inside its own anchor"),
        (
            "logging: {vmodule: [{filePattern: p}]}",
            "logging.vmodule[0]: object missing required field verbosity",
        ),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n"
                for old, new in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            "line 8: aliases repeat more than 500,000 values",
        ),
    ],
)
def test_a_mistake_is_one_line_with_the_fields_path(
    written: Written, text: str, message: str
) -> None:
    path = written(text)
    with pytest.raises(UsageError) as mistake:
        parse(f"--config={path}")
    assert str(mistake.value) == f"--config {path}: {message}"


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        ("metadata:\n  name: config", ["line 3: unknown field metadata is ignored"]),
        (
            "conntrack:\n  max: null\nipvs:\n  masqueradeAll: true\nresourceContainer: /kube-proxy",
            [
                "line 4: unknown field conntrack.max is ignored: did you mean "
                "conntrack.maxPerCore?",
                "line 6: unknown field ipvs.masqueradeAll is ignored: did you mean "
                "iptables.masqueradeAll?",
                "line 7: unknown field resourceContainer is ignored",
            ],
        ),
        # Names are case-sensitive in kube-proxy too.
        (
            "clusterCidr: 10.1.0.0/16",
            ["line 3: unknown field clusterCidr is ignored: did you mean clusterCIDR?"],
        ),
        (
            "conntrac: {a: 1}",
            ["line 3: unknown field conntrac is ignored: did you mean conntrack?"],
        ),
        (
            "masqueradeBit: 3",
            [
                "line 3: unknown field masqueradeBit is ignored: did you mean "
                "iptables.masqueradeBit?"
            ],
        ),
        (
            "logging: {vmodule: [{filePattern: p, verbosity: 1, level: 2}]}",
            ["line 3: unknown field logging.vmodule[0].level is ignored"],
        ),
        ("1: 2", ["line 3: unknown field 1 is ignored"]),
        ('"a\\nb": 2', ["line 3: unknown field a\\nb is ignored"]),
        ("ipvs: {}\nipvs: null", ["line 4: ipvs replaces its value in line 3"]),
        (
            "iptables:\n  syncPeriod: 30s\n  syncPeriod: 30s",
            ["line 5: iptables.syncPeriod replaces its value in line 4"],
        ),
        (
            "featureGates:\n  AllowServiceExternalIPs: false\n  AllowServiceExternalIPs: true",
            ["line 5: featureGates.AllowServiceExternalIPs replaces its value in line 4"],
        ),
        (
            "true: 1\n~: 2",
            ["line 3: unknown field true is ignored", "line 4: unknown field ~ is ignored"],
        ),
        (
            "---\nkind: KubeletConfiguration",
            ["line 3: another document begins here: only the first one counts"],
        ),
        ("...\n", []),
        (
            "x-base: &base {min: 1}\nconntrack: {<<: *base, min: 2}",
            ["line 3: unknown field x-base is ignored"],
        ),
    ],
)
def test_what_kube_proxy_ignores_is_one_warning(
    written: Written, text: str, warnings: list[str]
) -> None:
    path = written(text)
    remarks = [each for each in parse(f"--config={path}").remarks if "without effect" not in each]
    assert remarks == [f"--config {path}: {warning}" for warning in warnings]


def test_fields_that_no_version_needs_are_no_mistakes(written: Written) -> None:
    path = written("metadata: {name: config}\nresourceContainer: /x\nmetdata: 1")
    settings = parse(f"--config={path}")
    assert len(settings.remarks) == 3
    assert settings.file_warnings == settings.remarks[2:]


BOMB = "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise("abcdefgh")
)
DIGITS = "9" * 5000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iptables:\n\tmasqueradeAll: true", "not YAML: line 4: .* cannot start any token"),
        ("mode: *PLANTED", "not YAML: line 3: found undefined alias"),
        ("mode: \x07", "not YAML: .*control characters are not allowed, position 80"),
        ("iptables: {<<: 3}", "line 3: only maps can be merged with <<"),
        ("iptables: &a\n  <<: *a", "line 3: an alias is inside its own anchor"),
        (f"a: &a [1]\n{BOMB}", "line 9: aliases repeat more than 500,000 values"),
        (f"oomScoreAdj: {DIGITS}", "line 3: oomScoreAdj has a value that no field has"),
        ("hostnameOverride: 2020-13-01", "line 3: hostnameOverride has a value that no field has"),
        ("mode: !!bool PLANTED", "line 3: mode has a value that no field has"),
        ("mode: !!timestamp PLANTED", "line 3: mode has a value that no field has"),
        ("mode: !PLANTED x", "line 3: mode has a value that no field has"),
        ("? [a]\n: b", "line 3: the name of a field is not text"),
        ("x: " + "[" * 100_000, "not YAML: line 3: .*exceeded maximum nesting depth"),
        (f"kind: PLANTED{DIGITS}", "kind: 'PLANTED9{93}' is not KubeProxyConfiguration$"),
        (
            "kind: KubeletConfiguration\n---\nmode: nftables",
            "kind: 'KubeletConfiguration' is not KubeProxyConfiguration; only the first document",
        ),
        ("kind: [PLANTED]", "kind: its value is not KubeProxyConfiguration"),
    ],
)
def test_what_is_no_configuration_is_one_short_line(
    written: Written, text: str, message: str
) -> None:
    path = written(text)
    with pytest.raises(UsageError, match=f"^--config {path}: {message}") as caught:
        parse(f"--config={path}")
    assert len(str(caught.value)) < len(path) + 200
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_and_line_ends(written: Written, encoding: str) -> None:
    path = written("")
    text = f"{HEAD}mode: iptables\t\n# a comment\n".replace("\n", "\r\n")
    Path(path).write_bytes(text.encode(encoding))
    assert parse(f"--config={path}").mode is ProxyMode.IPTABLES
    assert parse(f"--config={path}").remarks == ()


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ('mode: ""\nclusterCIDR: 10.244.0.0/16\nmode: nftables', "nftables"),
        ("mode: ipvs\n---\nmode: nftables", "ipvs"),
        ("Mode: ipvs\nmode: iptables", "iptables"),
    ],
)
def test_the_last_value_of_the_first_document_counts(
    written: Written, text: str, mode: str
) -> None:
    assert parse(f"--config={written(text)}").mode.value == mode


def test_a_merged_mapping_gives_way_to_the_fields_beside_it(written: Written) -> None:
    text = "x: &x {min: 1, maxPerCore: 5}\ny: &y {min: 2}\nconntrack: {min: 3, <<: [*x, *y]}"
    assert parse(f"--config={written(text)}").conntrack == Conntrack(5, 3)


def test_many_unknown_fields_are_counted(written: Written) -> None:
    path = written("".join(f"field{number}: 1\n" for number in range(20_000)))
    *named, last = parse(f"--config={path}").remarks
    assert len(named) == 20
    assert last == f"--config {path}: 19,980 more unknown or repeated fields are ignored"


@pytest.mark.parametrize("text", ["x: " + "[" * 100_000, "- " * 100_000, "x: " + "{a: " * 5000])
def test_deep_nesting_is_one_line(written: Written, text: str) -> None:
    path = written(text)
    with pytest.raises(UsageError, match=f"^--config {path}: .*(depth|YAML|deeply)"):
        parse(f"--config={path}")


def test_a_file_that_no_config_map_can_hold_is_refused(written: Written) -> None:
    path = written("# " + "x" * 2**20)
    with pytest.raises(UsageError, match="it is larger than 1 MiB"):
        parse(f"--config={path}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it holds no object: a KubeProxyConfiguration has fields"),
        ("[]", "it holds no object: a KubeProxyConfiguration has fields"),
        ("{}", "apiVersion: '' is not kubeproxy.config.k8s.io/v1alpha1"),
        (
            "apiVersion: kubeproxy.config.k8s.io/v1alpha2",
            "apiVersion: 'kubeproxy.config.k8s.io/v1alpha2' is not "
            "kubeproxy.config.k8s.io/v1alpha1",
        ),
        (
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeletConfiguration",
            "kind: 'KubeletConfiguration' is not KubeProxyConfiguration",
        ),
    ],
)
def test_what_is_no_configuration_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.conf"
    path.write_text(text)
    with pytest.raises(UsageError) as mistake:
        file.load(str(path))
    assert str(mistake.value) == f"--config {path}: {message}"


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: (HEAD + text).encode()))
def test_any_content_is_read_or_refused_with_one_line(content: bytes) -> None:
    with contextlib.suppress(yaml.YAMLError, ValueError, TypeError, RecursionError):
        assert isinstance(file.parse(content).configuration, KubeProxyConfiguration)
