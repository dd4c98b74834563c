"""Flow offload: its settings, its chain and its flowtable."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import msgspec
import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.config.settings import FlowOffload, NftablesSettings
from pyproxy.dataplane.interface import Changes, FlowOffloadState, NodeRouting
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.offload_devices import DeviceChoice, OffloadDevices
from pyproxy.errors import UsageError
from pyproxy.model.address import Port, backend, parse_address
from tests.config.parsing import parse
from tests.dataplane.nftables.test_base_rules import emptied
from tests.dataplane.nftables.test_kernel_trace import HOME, service

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


HAS_FLOWTABLES = Path("/proc/sys/net/netfilter/nf_flowtable_tcp_timeout").exists()
OFFLOADED = msgspec.structs.replace(
    service("web", HOME, "10.244.1.11", "10.244.2.11"), offload=True
)
LEAVING = backend(parse_address("10.244.3.11"), Port(8080))
DRAINING = msgspec.structs.replace(
    OFFLOADED,
    ports=(msgspec.structs.replace(OFFLOADED.ports[0], draining=(LEAVING,)),),
)


def elements(namespace: Namespace, name: str) -> str:
    listed = namespace.run(["nft", "list", "set", "inet", "pyproxy", name]).stdout
    return listed.partition("elements = {")[2]


@pytest.mark.kernel
def test_a_kernel_without_flowtables_is_named_once_and_serves(
    namespace: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    """On a kernel that has them, the same steps end on the fast path."""
    with (
        closing(
            namespace.call(
                lambda: NftablesDataplane(NftablesOptions(), offload=OffloadDevices(DeviceChoice()))
            )
        ) as dataplane,
        emptied(namespace),
    ):
        for _ in range(2):
            plan = dataplane.plan_full([OFFLOADED], NodeRouting())
            assert namespace.call(partial(dataplane.commit, plan)) == ()
        assert "10.96.0.1 . tcp . 80" in elements(namespace, "offload-services4")
        # Endpoints that terminate are rows of their own, which come and go with them.
        for routing, is_draining in ((DRAINING, True), (OFFLOADED, False)):
            change = dataplane.plan(Changes({routing.name: routing}))
            assert change.counts() == {"element": 1}
            assert dataplane.commit(change) == ()
            held = elements(namespace, "draining-endpoints4")
            assert ("10.96.0.1 . tcp . 80 . 10.244.3.11 . 8080" in held) is is_draining
        state = namespace.call(dataplane.flow_offload)
        assert isinstance(state, FlowOffloadState)
        warnings = [each for each in caplog.messages if "flow offload is not active" in each]
        if HAS_FLOWTABLES:
            assert (state.inactive, warnings) == ("", [])
        else:
            assert len(warnings) == 1
            assert state.inactive in warnings[0]
            assert state.devices == ()
        # A restart finds nothing to write.
        before = dataplane.messages_sent
        namespace.call(dataplane.devices_changed)
        again = dataplane.plan_full([OFFLOADED], NodeRouting())
        assert not again
        assert dataplane.messages_sent == before
