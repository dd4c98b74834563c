"""The configuration in force as a file: it loads to the same settings, in kube-proxy's format."""

import json
from pathlib import Path

import pytest
import yaml

from pyproxy.config import Settings, file, report

from .parsing import DEFAULT, KUBEADM, flat, parse


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (f"--config={KUBEADM}",),
        (f"--config={DEFAULT}",),
        (
            *("--hostname-override=a", "--healthz-bind-address=", "--nodeport-addresses=all"),
            *("--nodeport-addresses=10.0.0.0/8", "--cluster-cidr=10.1.0.0/16,fd00::/8"),
            *("--iptables-sync-period=5s", "--masquerade-all=T", "--oom-score-adj=+5"),
            *("--feature-gates=A=true,B=false", "--ipvs-exclude-cidrs=10.0.0.0/8", "--v=2"),
            *("--conntrack-udp-timeout=.5s", "--kube-api-qps=7.5", "--ipvs-sync-period=3s"),
        ),
    ],
)
def test_what_is_in_force_loads_again_to_the_same(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    first = parse(*arguments)
    path = tmp_path / "again.yaml"
    path.write_text(file.yaml_text(first.configuration))
    again = parse(f"--config={path}")
    for name in Settings.__struct_fields__:
        if name not in {"flags", "config_file", "remarks", "file_warnings"}:
            assert getattr(again, name) == getattr(first, name), name


def test_configz_is_kube_proxys_default_but_for_what_follows_from_the_mode() -> None:
    in_force = json.loads(report.configz(parse()))
    theirs = yaml.safe_load(DEFAULT.read_text())
    ours = in_force.pop("kubeproxy.config.k8s.io")
    assert in_force == {}
    differing = {
        path: value for path, value in flat(ours).items() if flat(theirs).get(path) != value
    }
    assert differing == {
        "mode": "nftables",
        "nodePortAddresses": ["primary"],
        # The defaults of a mode are there whatever the mode is, as the flags have them.
        "ipvs.syncPeriod": "30s",
        "ipvs.excludeCIDRs": [],
        "iptables.masqueradeBit": None,
        "iptables.minSyncPeriod": "0s",
        "nftables.syncPeriod": "30s",
        # pyproxy's own. kube-proxy reads a file that has them, with a warning.
        "nftables.flowOffload": "none",
        "nftables.flowOffloadInterfaces": [],
        # Fields of other versions, and those that kube-proxy leaves out where they say nothing.
        "featureGates": {},
        "logging.options.json.splitStream": False,
        "logging.options.text.splitStream": False,
        "logging.vmodule": [],
        "udpIdleTimeout": "0s",
        "windowsRunAsService": False,
    }
    assert flat(theirs).keys() <= flat(ours).keys()
