"""The tracer over the kernel's elements: the options it reads, and the elements it reads."""

from __future__ import annotations

import msgspec
import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nft.loader import read_layout
from pyproxy.dataplane.nft.readback import kernel_rows
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.kernel_trace import KernelTracer, loaded_options
from pyproxy.dataplane.nftables.offload_devices import DeviceChoice
from pyproxy.dataplane.nftables.readback import read_table
from pyproxy.dataplane.nftables.schema import BY_NAME, TABLE
from pyproxy.dataplane.nftables.tracer import NftablesView, trace
from pyproxy.dataplane.packets import Packet, TraceResult
from pyproxy.errors import UsageError
from pyproxy.model.address import (
    Address,
    Family,
    Mark,
    Network,
    Port,
    Protocol,
    backend,
    parse_address,
    parse_network,
)
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.dataplane.nftables.test_dataplane import programming

pytestmark = pytest.mark.kernel

HOME, REFUSING = parse_address("10.96.0.1"), parse_address("10.96.0.2")
POD, STRANGER = parse_address("10.244.1.11"), parse_address("203.0.113.5")
NETWORKS = (parse_network("10.244.0.0/16"), parse_network("10.245.0.0/24"))
V6 = parse_network("fd10::/16")


def service(name: str, address: Address, *ends: str, use: Use = Use.CLUSTER) -> ServiceRouting:
    backends = tuple(backend(parse_address(end), Port(8080)) for end in ends)
    frontend = Frontend(Scope.CLUSTER_IP, address, Port(80), use)
    return ServiceRouting(
        ObjectName("shop", name),
        (PortRouting("", Family.IPV4, Protocol.TCP, (frontend,), backends, backends),),
    )


WEB = service("web", HOME, "10.244.1.1", "10.244.1.2", "10.244.1.3")
EMPTY = service("empty", REFUSING, use=Use.REJECT)


def program(
    namespace: Namespace, dataplane: NftablesDataplane, networks: tuple[Network, ...]
) -> None:
    plan = dataplane.plan_full([WEB, EMPTY], NodeRouting(networks))
    assert namespace.call(lambda: dataplane.commit(plan)) == ()


def traced(namespace: Namespace, packet: Packet) -> TraceResult:
    tracer = namespace.call(lambda: KernelTracer(lambda: ()))
    try:
        return tracer.trace(packet)
    finally:
        tracer.close()


@pytest.mark.parametrize(
    ("options", "networks"),
    [
        (NftablesOptions(), ()),
        (NftablesOptions(mark=Mark(1 << 31), masquerade_all=True), NETWORKS),
        (NftablesOptions(shield_loopback=True), (V6,)),
        (NftablesOptions(shield_loopback=True), (*NETWORKS, V6)),
        (NftablesOptions(pod_interface="cbr0", masquerade_all=True), ()),
        (NftablesOptions(pod_interface="veth*", shield_loopback=True), ()),
    ],
    ids=str,
)
def test_options_are_read_from_the_loaded_rules(
    namespace: Namespace, options: NftablesOptions, networks: tuple[Network, ...]
) -> None:
    wanted = msgspec.structs.replace(
        options, pod_families=frozenset(network.family for network in networks)
    )
    with programming(namespace, options) as dataplane:
        program(namespace, dataplane, networks)
        netlink = namespace.call(Nfnetlink)
        assert loaded_options(read_layout(netlink, TABLE)) == wanted
        netlink.close()


def test_a_kernel_without_a_fast_path_is_a_remark(namespace: Namespace) -> None:
    options = NftablesOptions(endpoint_counters=True)
    with programming(namespace, options, DeviceChoice(("none",))) as dataplane:
        program(namespace, dataplane, NETWORKS)
        netlink = namespace.call(Nfnetlink)
        layout = read_layout(netlink, TABLE)
        netlink.close()
        found = loaded_options(layout)
        assert found is not None
        assert found.offload
        result = traced(namespace, Packet(POD, HOME, Protocol.TCP, Port(80), "eth0"))
    # Not every kernel has flowtables, and before Linux 5.14 they are not used.
    inactive = "fast-path" not in layout.chains
    assert [each for each in result.remarks if "pyproxy status says why" in each] == (
        ["connections are not offloaded: pyproxy status says why"] if inactive else []
    )
    assert {bool(path.offload) for path in result.paths} == {not inactive}


@pytest.mark.parametrize("source", [POD, STRANGER])
@pytest.mark.parametrize("destination", [HOME, REFUSING, parse_address("10.96.0.3")])
def test_a_trace_of_single_elements_equals_one_of_the_whole_table(
    namespace: Namespace, source: Address, destination: Address
) -> None:
    packet = Packet(source, destination, Protocol.TCP, Port(80), "eth0")
    with programming(namespace) as dataplane:
        program(namespace, dataplane, NETWORKS)
        netlink = namespace.call(Nfnetlink)
        options = loaded_options(read_layout(netlink, TABLE))
        assert options is not None
        rows = kernel_rows(netlink, TABLE, BY_NAME)
        partly = trace(packet, NftablesView(rows, options, learned=rows))
        assert partly == trace(packet, NftablesView(read_table(netlink), options))
        netlink.close()
    result = partly.result()
    assert traced(namespace, packet) == result
    assert sum(result.verdicts().values()) == 1


def test_without_a_table_the_error_names_it(namespace: Namespace) -> None:
    with programming(namespace):
        pass
    with pytest.raises(UsageError, match="no table inet pyproxy"):
        traced(namespace, Packet(POD, HOME, Protocol.TCP, Port(80), "eth0"))


def test_changed_base_rules_are_a_remark_or_an_error(namespace: Namespace) -> None:
    packet = Packet(POD, HOME, Protocol.TCP, Port(80), "eth0")
    with programming(namespace) as dataplane:
        program(namespace, dataplane, NETWORKS)
        assert traced(namespace, packet).remarks == ()
        namespace.run(["nft", "insert rule inet pyproxy filter-forward drop"])
        (remark,) = traced(namespace, packet).remarks
        assert "another program has changed the base rules" in remark
        namespace.run(["nft", "flush chain inet pyproxy mark-masquerade"])
        with pytest.raises(UsageError, match="another version"):
            traced(namespace, packet)
