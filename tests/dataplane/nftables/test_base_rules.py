"""The base rules through the real nft: loading, reloading, listing."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyproxy_lab.namespace import LabError, Namespace

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nft.base_rules import MARKER
from pyproxy.dataplane.nft.loader import read_layout
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables.base_rules import NftablesOptions, base_rules
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.offload_devices import DeviceChoice, OffloadDevices
from pyproxy.dataplane.nftables.readback import read_table
from pyproxy.dataplane.nftables.schema import BY_NAME, OFFLOAD, TABLE
from pyproxy.model.address import (
    Address,
    Backend,
    Family,
    Mark,
    Port,
    Protocol,
    backend,
    parse_address,
    parse_network,
)
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use

OPTIONS = (
    NftablesOptions(),
    NftablesOptions(masquerade_all=True),
    NftablesOptions(pod_interface="cbr0"),
    NftablesOptions(pod_interface="veth*", mark=Mark(1)),
    NftablesOptions(pod_families=frozenset([Family.IPV4])),
    NftablesOptions(pod_families=frozenset(Family), mark=Mark(1 << 31), shield_loopback=True),
    NftablesOptions(offload=True),
)
NODE = NodeRouting(
    tuple(map(parse_network, ("10.244.0.0/16", "fd10::/16"))),
    tuple(map(parse_address, ("172.30.0.11", "fd30::11"))),
)


def nft_version() -> tuple[int, ...]:
    command = ["nft", "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", printed)
    assert found, printed
    return tuple(map(int, found.groups()))


def chains_in(namespace: Namespace) -> set[str]:
    netlink = namespace.call(Nfnetlink)
    try:
        return set(read_layout(netlink, TABLE).chains)
    finally:
        netlink.close()


def read_all(namespace: Namespace) -> Table:
    netlink = namespace.call(Nfnetlink)
    try:
        return read_table(netlink)
    finally:
        netlink.close()


def load(namespace: Namespace, text: str) -> None:
    namespace.run(["nft", "-f", "-"], text=text)


def rules_in(namespace: Namespace) -> str:
    return namespace.run(["nft", "list", "table", "inet", TABLE]).stdout


@contextmanager
def emptied(namespace: Namespace) -> Iterator[None]:
    try:
        yield
    finally:
        namespace.run(["nft", "flush", "ruleset"])


@pytest.mark.kernel
@pytest.mark.parametrize("options", OPTIONS)
def test_loading_twice_changes_nothing(namespace: Namespace, options: NftablesOptions) -> None:
    with emptied(namespace):
        load(namespace, base_rules(options).text(()))
        once = rules_in(namespace)
        load(namespace, base_rules(options).text(chains_in(namespace)))
        assert rules_in(namespace) == once
        assert {name for name in chains_in(namespace) if name.startswith(MARKER)} == {
            base_rules(options).marker()
        }


@pytest.mark.kernel
def test_other_options_replace_the_rules_completely(namespace: Namespace) -> None:
    with emptied(namespace):
        # The sets of offload are strays without it, which `finish_load` deletes.
        for options in (*(each for each in OPTIONS if not each.offload), OPTIONS[0]):
            load(namespace, base_rules(options).text(chains_in(namespace)))
            after_others = rules_in(namespace)
            load(namespace, f"delete table inet {TABLE}\n{base_rules(options).text(())}")
            assert sorted(after_others.splitlines()) == sorted(rules_in(namespace).splitlines())


def test_each_set_of_options_has_its_own_marker() -> None:
    assert len({base_rules(options).marker() for options in OPTIONS}) == len(OPTIONS)


def test_the_text_depends_on_the_options_alone() -> None:
    for options in OPTIONS:
        text = base_rules(options).text(())
        assert f"chain {base_rules(options).marker()} " in text
        assert text == base_rules(options).text({base_rules(options).marker(), "services"})
        assert all(f" {name} " in text for name in base_rules(options).kinds)
    assert base_rules(NftablesOptions(offload=True)).kinds == BY_NAME
    stale = base_rules(OPTIONS[0]).text({"ruleset-0123", "services"})
    assert f"delete chain inet {TABLE} ruleset-0123" in stale


ADDRESSES = {
    Family.IPV4: ("10.96.0.1", "192.0.2.1", "198.51.100.1"),
    Family.IPV6: ("fd96::1", "fd98::1", "fd99::1"),
}
PODS = {
    Family.IPV4: ("10.244.1.1", "10.244.1.2", "10.244.2.1"),
    Family.IPV6: ("fd10:1::1", "fd10:1::2", "fd10:2::1"),
}


def ends(family: Family, count: int) -> tuple[Backend, ...]:
    return tuple(backend(parse_address(pod), Port(8080)) for pod in PODS[family][:count])


def every_kind(*, affinity: int) -> list[ServiceRouting]:
    """Services that together fill every set and every kind of chain."""
    routings = []
    for number, external in enumerate(Use):
        ports = []
        for family in Family:
            home, balancer, outer = map(parse_address, ADDRESSES[family])
            internal = Use.LOCAL if external is Use.SPLIT else Use.CLUSTER
            if external in (Use.REJECT, Use.DROP):
                internal = external
            for protocol in Protocol:
                port = Port(1000 * number + protocol)
                frontends = tuple(
                    Frontend(scope, Address(address), port, use)
                    for scope, address, use in (
                        (Scope.CLUSTER_IP, home, internal),
                        (Scope.LOAD_BALANCER, balancer, external),
                        (Scope.EXTERNAL_IP, outer, external),
                        (Scope.NODE_PORT, b"", external),
                    )
                )
                # One, two and three endpoints make all kinds of class.
                cluster = ends(family, 1 + list(Protocol).index(protocol))
                local = cluster[:2] if protocol is not Protocol.SCTP else ()
                ports.append(
                    PortRouting(
                        "p", family, protocol, frontends, cluster, local, cluster[:2], cluster[:1]
                    )
                )
        routings.append(
            ServiceRouting(
                ObjectName("shop", external.value),
                tuple(ports),
                tuple(map(parse_network, ("203.0.113.0/24", "192.0.2.7/32", "fd40::/64"))),
                affinity,
                offload=not affinity,
            )
        )
    # Policy turns a LOCAL frontend without an endpoint on the node into DROP.
    return [each for each in routings if each.name.name != Use.LOCAL.value]


@contextmanager
def programmed(namespace: Namespace, *, affinity: int) -> Iterator[NftablesDataplane]:
    dataplane = namespace.call(
        lambda: NftablesDataplane(
            NftablesOptions(pod_interface="cbr0"), offload=OffloadDevices(DeviceChoice())
        )
    )
    try:
        plan = dataplane.plan_full(every_kind(affinity=affinity), NODE)
        with emptied(namespace):
            assert namespace.call(lambda: dataplane.commit(plan)) == ()
            yield dataplane
    finally:
        dataplane.close()


@pytest.mark.kernel
@pytest.mark.parametrize("affinity", [0, 10800])
def test_nft_lists_a_table_with_every_kind_of_element(namespace: Namespace, affinity: int) -> None:
    with programmed(namespace, affinity=affinity):
        listed = namespace.run(["nft", "list", "ruleset"]).stdout
        for word in ("10.96.0.1 . tcp . 6", "fd96::1 . udp . 17", "sctp", "shop/split:p"):
            assert word in listed
        filled = {name for name in BY_NAME if f" {name} {{" in listed}
        assert filled == BY_NAME.keys()
        unused = {name for name, (kind, _) in BY_NAME.items() if kind.learned}
        if not affinity:
            unused |= {
                "affinity-frontends4",
                "affinity-frontends6",
                "affinity-endpoints4",
                "affinity-endpoints6",
                "node-port-affinity4",
                "node-port-affinity6",
                "node-port-affinity-endpoints4",
                "node-port-affinity-endpoints6",
            }
        else:
            unused |= {kind.of(family) for kind in OFFLOAD for family in Family}
        assert read_all(namespace).keys() == BY_NAME.keys() - unused


@pytest.mark.kernel
@pytest.mark.parametrize("affinity", [0, 10800])
def test_nft_loads_its_own_listing(namespace: Namespace, affinity: int) -> None:
    with programmed(namespace, affinity=affinity):
        listed = namespace.run(["nft", "list", "ruleset"]).stdout
        if affinity and nft_version() < (1, 1):
            # nft 1.0.6 lists the rules of session affinity and cannot parse them.
            with pytest.raises(LabError, match=r"conflicting protocols|in concat expressions"):
                load(namespace, listed)
            return
        load(namespace, f"flush ruleset\n{listed}")
        assert namespace.run(["nft", "list", "ruleset"]).stdout == listed


@pytest.mark.kernel
def test_new_options_keep_every_element(namespace: Namespace) -> None:
    with programmed(namespace, affinity=10800):
        before = read_all(namespace)
        for options in OPTIONS:
            load(namespace, base_rules(options).text(chains_in(namespace)))
            assert read_all(namespace) == before
            assert base_rules(options).marker() in chains_in(namespace)
