"""Other proxies are found by what they have left in a real kernel."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.hostnet.packet import FirstPacket, Origin, PacketPath, ServicePaths
from pyproxy.hostnet.path_facts import PathFacts
from pyproxy.hostnet.proxies import OtherProxy, ProxyFacts, read_proxies
from pyproxy.inspect.explain.path_proxies import proxies
from pyproxy.inspect.explain.step import Result
from pyproxy.model.destination import parse_destination
from tests.builders import ip, pod, slice_of, web
from tests.inspect.facts import agent_facts, facts
from tests.namespaces import empty_namespace
from tests.takeover.scenes import MODES, leave, make_foreign

SERVED = {
    "10.96.77.1:80": "10.96.77.1:80/tcp",
    "10.96.77.2:53/udp": "10.96.77.2:53/udp",
    "172.30.0.11:30777": "172.30.0.11:30777/tcp",
    "[fd00:10:96::7:1]:80": "[fd00:10:96::7:1]:80/tcp",
}
NOT_SERVED = (
    "10.96.77.1:81",
    "10.96.77.1:80/udp",
    "10.96.77.9:80",
    "172.30.0.12:30777",
    "[fd00:10:96::7:9]:80",
)
NODE_ADDRESSES = (ip("172.30.0.11"), ip("fd30::11"))
PLACES = {
    "nftables": ["nftables table ip kube-proxy", "nftables table ip6 kube-proxy"],
    "iptables-legacy": ["iptables-legacy nat", "ip6tables-legacy nat"],
    "iptables-nft": ["iptables-nft nat", "ip6tables-nft nat"],
}


@pytest.fixture
def here() -> Iterator[Namespace]:
    with empty_namespace("proxies") as made:
        made.ip(["link set lo up"])
        make_foreign(made)
        yield made


def paths(*frontends: str, owns_iptables: bool = False) -> ServicePaths:
    found = []
    for each in map(parse_destination, frontends):
        packet = FirstPacket(each.protocol, None, each.address, each.port)
        found.append(PacketPath(Origin.NODE, packet, packet))
    return ServicePaths(tuple(found), node_addresses=NODE_ADDRESSES, owns_iptables=owns_iptables)


def read(here: Namespace, wanted: ServicePaths) -> ProxyFacts:
    return here.call(partial(read_proxies, wanted))


@pytest.mark.kernel
@pytest.mark.parametrize("left", MODES)
def test_frontends_of_kube_proxy_are_found(here: Namespace, left: str) -> None:
    leave(here, left)
    found = read(here, paths(*SERVED, *NOT_SERVED))
    assert [each.where for each in found.serving] == PLACES[left]
    assert {each.name for each in found.serving} == {"kube-proxy"}
    texts = [text for each in found.serving for text in each.frontends]
    assert sorted(texts) == sorted(SERVED.values())
    assert not found.unread


@pytest.mark.kernel
def test_a_node_without_another_proxy_has_none(here: Namespace) -> None:
    assert read(here, paths(*SERVED)) == ProxyFacts()


@pytest.mark.kernel
def test_rules_of_the_own_mode_are_not_another_proxy(here: Namespace) -> None:
    leave(here, "iptables-nft")
    assert read(here, paths(*SERVED, owns_iptables=True)) == ProxyFacts()


@pytest.mark.kernel
def test_devices_of_other_programs_are_found(here: Namespace) -> None:
    here.ip(["link add cilium_host type veth peer name cilium_net"])
    assert read(here, paths(*SERVED)) == ProxyFacts(devices=("cilium_host",))


@pytest.mark.kernel
def test_looking_creates_no_legacy_table() -> None:
    with empty_namespace("proxies") as here:
        read(here, paths(*SERVED))
        # The file is missing as long as no namespace has used iptables-legacy.
        assert not here.run(["cat", "/proc/net/ip_tables_names"], check=False).stdout


KUBE_PROXY = OtherProxy("kube-proxy", "iptables-nft nat", ("10.96.77.1:80/tcp",))
STEPS = {
    "none": (ProxyFacts(), Result.OK, "no other proxy serves these addresses"),
    "kube-proxy": (
        ProxyFacts((KUBE_PROXY,)),
        Result.FAILED,
        "kube-proxy serves 10.96.77.1:80/tcp too (iptables-nft nat)",
    ),
    "Cilium": (
        ProxyFacts(devices=("cilium_host",)),
        Result.UNDECIDED,
        "Cilium runs on this node; where it replaces kube-proxy",
    ),
    "unread": (ProxyFacts(unread=("EPERM: x",)), Result.UNDECIDED, "not read: EPERM: x"),
}


@pytest.mark.parametrize("case", STEPS)
def test_the_step_names_the_other_proxy(case: str) -> None:
    part, result, message = STEPS[case]
    agent = agent_facts(web(), [slice_of(pod("a1"))])
    step = proxies(facts(agent, PathFacts(proxies=part)))
    assert step.result is result
    assert message in step.message
