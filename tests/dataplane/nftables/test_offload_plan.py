"""Plans of the fast path, and the devices that are chosen: values in, values out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.dataplane.nftables.offload_devices import (
    DeviceChoice,
    choose_devices,
    must_bind_ends,
)
from pyproxy.dataplane.nftables.offload_plan import NOTHING, Held, OffloadPlan, plan_offload
from pyproxy.netlink.device_monitor import Devices
from pyproxy.netlink.links import Link

DEVICES = Devices(
    (
        Link(1, "lo"),
        Link(2, "eth0"),
        Link(3, "eth1"),
        Link(4, "cni0", kind="bridge"),
        Link(5, "vethport", kind="veth", master=4, peer_elsewhere=True),
        Link(6, "vethpod", kind="veth", peer_elsewhere=True),
        Link(7, "vethhere", kind="veth"),
        Link(8, "docker0", kind="bridge"),
        Link(9, "flannel.1", kind="vxlan"),
        Link(10, "kube-ipvs0", kind="dummy"),
        Link(11, "bond0", kind="bond"),
        Link(12, "eth2", master=11),
        Link(13, "lxc1", kind="netkit", peer_elsewhere=True),
        Link(14, "red", kind="vrf"),
        Link(15, "eth3", master=14),
        Link(16, "br0", kind="bridge"),
        Link(17, "bond0.100", kind="vlan", lower=11, master=16),
        Link(18, "eth1.7", kind="vlan", lower=3),
        Link(19, "elsewhere", kind="vlan", lower=99),
    ),
    frozenset({2, 11}),
)


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        # Pods by their kind, the bridge of a pod instead of its port, uplinks and tunnels.
        (DeviceChoice(), {"eth0", "cni0", "vethpod", "flannel.1", "bond0", "lxc1"}),
        (
            DeviceChoice(pod_interface="vethp*"),
            {"eth0", "vethport", "vethpod", "flannel.1", "bond0"},
        ),
        (DeviceChoice(pod_interface="cni0"), {"eth0", "cni0", "flannel.1", "bond0"}),
        (DeviceChoice(("eth1", "lo")), {"eth1"}),
        # A packet passes a port and its bridge, and would be looked up twice. A VRF has no ports.
        (
            DeviceChoice(("eth*", "bond0", "red")),
            {"eth0", "eth1", "bond0", "eth3", "eth1.7", "red"},
        ),
        (DeviceChoice(("veth*", "cni0")), {"vethpod", "vethhere", "cni0"}),
        (DeviceChoice(("missing", "eth")), set()),
        # The ends of a bridge or a VLAN take its place, at any depth.
        (DeviceChoice(ends=True), {"eth0", "vethport", "vethpod", "flannel.1", "bond0", "lxc1"}),
        (DeviceChoice(("br0", "eth1.7", "elsewhere"), ends=True), {"bond0", "eth1", "elsewhere"}),
        (DeviceChoice(("cni0", "docker0", "vethport"), ends=True), {"vethport"}),
    ],
)
def test_the_devices_that_are_bound(choice: DeviceChoice, wanted: set[str]) -> None:
    assert choose_devices(DEVICES, choice) == wanted


def test_a_loop_of_devices_ends() -> None:
    loop = Devices((Link(1, "a", kind="vlan", lower=2), Link(2, "b", kind="vlan", lower=1)))
    assert choose_devices(loop, DeviceChoice(("a",), ends=True)) == set()


@pytest.mark.parametrize(
    ("release", "expected"),
    [("5.10.0-30-amd64", False), ("7.1.9", False), ("7.2+deb14-amd64", True), ("10.0.1", True)],
)
def test_newer_kernels_ask_for_the_devices_at_the_ends(release: str, expected: bool) -> None:
    assert must_bind_ends(release) is expected


names = st.frozensets(st.sampled_from(["eth0", "veth1", "veth2", "cni0"]))
held_states = st.builds(
    lambda devices, chain, complete: Held(
        devices, chain and devices is not None, chain and complete and devices is not None
    ),
    st.none() | names,
    st.booleans(),
    st.booleans(),
)


def applied(held: Held, plan: OffloadPlan) -> Held:
    devices, chain, complete = held.devices, held.chain, held.complete
    if plan.delete_chain or plan.replace_chain:
        assert chain
        chain = complete = False
    if plan.delete_flowtable:
        assert devices is not None
        # The kernel refuses to delete a flowtable that a rule uses.
        assert not chain
        devices = None
    if plan.create_flowtable:
        assert devices is None
        devices = frozenset()
    if plan.write_chain:
        assert devices is not None
        chain = complete = True
    if plan.bind or plan.release:
        assert devices is not None
        assert devices.isdisjoint(plan.bind)
        assert devices.issuperset(plan.release)
        devices = (devices | {*plan.bind}) - {*plan.release}
    return Held(devices, chain, complete)


@given(held_states, st.none() | names)
def test_a_plan_leads_to_what_is_wanted_and_a_second_one_is_empty(
    held: Held, wanted: frozenset[str] | None
) -> None:
    after = applied(held, plan_offload(held, wanted))
    assert after == (Held() if wanted is None else Held(wanted, True, True))
    assert plan_offload(after, wanted) == NOTHING
    assert not plan_offload(after, wanted)


def test_a_plan_is_printed_counted_and_packed() -> None:
    plan = plan_offload(Held(frozenset({"gone"})), frozenset({"eth0", "veth1"}))
    assert list(plan.lines()) == [
        "add chain inet pyproxy fast-path",
        "add chain inet pyproxy fast-path-add",
        "add flowtable inet pyproxy fast-path { devices = { eth0, veth1 }; }",
        "delete flowtable inet pyproxy fast-path { devices = { gone }; }",
    ]
    assert plan.counts() == {"chain": 2, "flowtable": 0, "device": 3}
    # Proportional to the devices that change: a message for each.
    named = [device for device, _ in plan.messages() if device]
    assert named == ["gone", "eth0", "veth1"]
    left = plan.without(frozenset({"eth0", "gone"}))
    assert (left.bind, left.release, left.write_chain) == (("veth1",), (), True)
    # A device that is about to be bound is a change, and nothing else has to be written.
    pending = plan_offload(Held(frozenset(), True, True), frozenset({"eth0"}))
    assert pending
    assert not pending.without(frozenset({"eth0"}))
