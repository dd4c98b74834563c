"""Flow offload: its settings, its chain and its flowtable."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyproxy.config.settings import FlowOffload, NftablesSettings
from pyproxy.errors import UsageError
from tests.config.parsing import parse

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
FIELDS = "nftables: {flowOffload: services, flowOffloadInterfaces: [eth0, veth*]}\n"


def test_the_options_are_those_of_the_settings(tmp_path: Path) -> None:
    wanted = NftablesSettings(
        flow_offload=FlowOffload.SERVICES, offload_interfaces=("eth0", "veth*")
    )
    flags = ("--flow-offload=services", "--flow-offload-interfaces=eth0,veth*")
    file = tmp_path / "config.conf"
    assert parse(*flags).nftables == wanted
    file.write_text(HEAD + FIELDS)
    assert parse(f"--config={file}").nftables == wanted
    # Unlike kube-proxy's own flags, these override a file that both programs may use.
    file.write_text(HEAD)
    assert parse(f"--config={file}", *flags).nftables == wanted
    assert parse().nftables == NftablesSettings()


@pytest.mark.parametrize(
    "name", ["e*th", "*", "with space", "sixteen-letters0", "a/b", "..", "a:1"]
)
def test_no_name_of_an_interface(name: str) -> None:
    with pytest.raises(UsageError, match="is not an interface: use a name of 15 bytes at most"):
        parse(f"--flow-offload-interfaces={name}")
