"""The tracer over the rules that iptables-save prints, in both flavours."""

from __future__ import annotations

from fractions import Fraction

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.iptables.base_rules import IptablesOptions
from pyproxy.dataplane.iptables.kernel_trace import IptablesTracer
from pyproxy.dataplane.packets import (
    Delivered,
    Dropped,
    DropReason,
    Masquerade,
    Packet,
    Rejected,
    RejectWith,
    TraceResult,
    Untouched,
)
from pyproxy.errors import UsageError
from pyproxy.model.address import Address, Port, Protocol, backend, parse_address, parse_network
from pyproxy.model.flavour import Flavour
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.dataplane.iptables.programming import program, programming
from tests.dataplane.nftables.test_kernel_trace import EMPTY, HOME, POD, REFUSING, STRANGER, WEB

pytestmark = pytest.mark.kernel

BALANCED, SILENT = parse_address("192.0.2.1"), parse_address("192.0.2.2")
NODE = NodeRouting((parse_network("10.244.0.0/16"),))
ENDS = tuple(backend(parse_address(f"10.244.1.{number}"), Port(8080)) for number in (1, 2, 3))


def balanced() -> ServiceRouting:
    """A Service with load balancer addresses, of which one has no endpoint that it may use."""
    frontends = (
        Frontend(Scope.LOAD_BALANCER, BALANCED, Port(80), Use.CLUSTER),
        Frontend(Scope.EXTERNAL_IP, SILENT, Port(80), Use.DROP),
    )
    port = PortRouting("", WEB.ports[0].family, Protocol.TCP, frontends, ENDS, ())
    ranges = (parse_network("10.244.0.0/16"),)
    return ServiceRouting(ObjectName("shop", "balanced"), (port,), source_ranges=ranges)


def traced(
    namespace: Namespace, flavour: Flavour | None, source: Address, to: Address, port: int = 80
) -> TraceResult:
    packet = Packet(source, to, Protocol.TCP, Port(port), "eth0")
    return namespace.call(lambda: IptablesTracer(lambda: (), flavour).trace(packet))


def test_verdicts_and_steps_are_those_of_the_kernels_rules(
    namespace: Namespace, flavour: Flavour
) -> None:
    with programming(namespace, flavour, IptablesOptions(shield_loopback=True)) as dataplane:
        routings = [WEB, EMPTY, balanced()]
        program(namespace, dataplane, routings, NODE)
        assert not namespace.call(lambda: dataplane.plan_full(routings, NODE))
    result = traced(namespace, None, POD, HOME)
    assert {verdict: round(share, 8) for verdict, share in result.verdicts().items()} == {
        Delivered(end): round(Fraction(1, 3), 8) for end in ENDS
    }
    assert result.remarks == ()
    shield, portals, *_ = result.shared_steps()
    assert shield.chain == "mangle PREROUTING"
    assert (portals.chain, portals.action, portals.by) == (
        "nat PREROUTING",
        "jump to KUBE-SERVICES",
        '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    )
    ends = {path.steps[-1].action for path in result.paths}
    assert {text.partition(" by ")[0] for text in ends} == {"translated to an endpoint"}

    def verdicts(source: Address, to: Address, port: int = 80) -> set[object]:
        return set(traced(namespace, flavour, source, to, port).verdicts())

    assert verdicts(STRANGER, HOME) == {Delivered(end, Masquerade.MARK) for end in ENDS}
    assert verdicts(POD, HOME, 81) == {Rejected(RejectWith.TCP_RESET)}
    assert verdicts(POD, REFUSING) == {Rejected(RejectWith.TCP_RESET)}
    assert verdicts(POD, BALANCED) == {Delivered(end, Masquerade.MARK) for end in ENDS}
    assert verdicts(STRANGER, BALANCED) == {Dropped(DropReason.SOURCE_RANGES)}
    assert verdicts(POD, SILENT) == {Dropped(DropReason.POLICY)}
    assert verdicts(STRANGER, parse_address("127.0.0.1")) == {Dropped(DropReason.LOOPBACK)}
    assert verdicts(POD, STRANGER) == {Untouched()}


def test_rules_of_other_programs_are_ignored_with_a_remark(
    namespace: Namespace, flavour: Flavour
) -> None:
    with programming(namespace, flavour) as dataplane:
        program(namespace, dataplane, [WEB], NODE)
    in_nat = [f"iptables-{flavour.value}", "--wait", "-t", "nat"]
    namespace.run([*in_nat, "-I", "PREROUTING", "-p", "udp", "-j", "ACCEPT"])
    namespace.run([*in_nat, "-A", "KUBE-SERVICES", "-o", "lo", "-j", "ACCEPT"])
    result = traced(namespace, flavour, POD, REFUSING)
    assert set(result.verdicts()) == {Untouched()}
    assert result.remarks == (
        "ignored a rule that pyproxy did not write, in table nat: -A KUBE-SERVICES -o lo -j ACCEPT",
        "ignored 1 rule of other programs in built-in chains",
    )


def test_a_node_without_pyproxys_chains_is_a_usage_error(
    namespace: Namespace, flavour: Flavour
) -> None:
    with pytest.raises(UsageError, match="have no chains of pyproxy's"):
        traced(namespace, flavour, POD, HOME)
