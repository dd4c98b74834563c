"""An agent in ipvs mode on a node where other programs use and change IPVS."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest
from pyproxy_lab import modes
from pyproxy_lab.network import Network

from tests.semantics.proxied import Proxied, endpoint_slice, proxied, service
from tests.waiting import RESPONSE_TIMEOUT, until

pytestmark = [pytest.mark.packets, pytest.mark.vm]

PATIENCE = 30.0
FLAGS = ("--cluster-cidr=10.244.0.0/16,fd10::/16", "--metrics-bind-address=0")
WEB = "10.96.7.1:80"
NODE_PORT = "172.30.0.11:30777"
QUIET = "10.96.7.2:80"
QUIET_NODE_PORT = "172.30.0.11:30778"
PODS = {"a1": "10.244.1.11:8080", "b1": "10.244.2.11:8080"}
OBJECTS = [
    service("web", "10.96.7.1", ports=[{"port": 80, "nodePort": 30777}], type="NodePort"),
    endpoint_slice("web", *PODS),
    service("quiet", "10.96.7.2", ports=[{"port": 80, "nodePort": 30778}], type="NodePort"),
    endpoint_slice("quiet", *PODS),
]
DATABASE = "172.30.0.11:5432"
THEIRS = (
    f"-A -t {DATABASE} -s wrr",
    f"-a -t {DATABASE} -r {PODS['b1']} -m -w 3",
    "-A -f 7 -s lc -p 120",
)
"""Other programs' virtual services, as ipvsadm reads and lists them."""

SYSCTLS = (
    "net.ipv4.vs.conntrack",
    "net.ipv4.vs.conn_reuse_mode",
    "net.ipv4.vs.expire_nodest_conn",
    "net.ipv4.vs.expire_quiescent_template",
    "net.ipv4.ip_forward",
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    folder = tmp_path_factory.mktemp("ipvs") / "x"
    with Network() as network:
        network.namespace("na").run(["sh", "-c", "; ".join(f"ipvsadm {each}" for each in THEIRS)])
        with proxied(modes.IPVS, network, folder, *FLAGS, objects=OBJECTS) as node:
            yield node


def sh(node: Proxied, command: str) -> str:
    return node.network.namespace("na").run(["sh", "-c", command]).stdout


def counted(node: Proxied) -> dict[str, dict[str, int]]:
    """Return the connections of each virtual service, by server; '' has the service's own."""
    found: dict[str, dict[str, int]] = {}
    of = ""
    for line in sh(node, "ipvsadm -Ln --stats").splitlines():
        if seen := re.match(r"(TCP|UDP|  ->) +(\d\S+) +(\d+)", line):
            kind, place, count = seen.groups()
            of = of if kind == "  ->" else place
            found.setdefault(of, {})["" if kind != "  ->" else place] = int(count)
    return found


def state(node: Proxied) -> list[str]:
    """Return all that the agent sets: IPVS, the device's addresses and sysctls."""
    output = sh(node, f"ipvsadm -Sn; ip -br addr show kube-ipvs0; sysctl {' '.join(SYSCTLS)}")
    return sorted(" ".join(sorted(line.split())) for line in output.splitlines())


def theirs(node: Proxied) -> list[str]:
    """Return the virtual services of other programs that are still there."""
    there = sh(node, "ipvsadm -Sn").splitlines()
    return [each for each in THEIRS if each in map(str.strip, there)]


def test_ipvsadm_counts_each_connection_once_at_its_server(node: Proxied) -> None:
    seen = node.once("a2", QUIET, tries=20, timeout=RESPONSE_TIMEOUT)
    assert seen.reached == {"a1": 10, "b1": 10}
    # The kernel sums its per-CPU counters every two seconds.
    until(lambda: counted(node)[QUIET][""] == 20, "the kernel has counted", PATIENCE, pause=0.3)
    assert counted(node)[QUIET] == {"": 20} | dict.fromkeys(PODS.values(), 10)
    assert counted(node)[QUIET_NODE_PORT] == {"": 0} | dict.fromkeys(PODS.values(), 0)


@pytest.mark.parametrize(
    "harm",
    [
        "ip link del kube-ipvs0",
        f"ipvsadm -D -t {WEB}; ipvsadm -d -t {NODE_PORT} -r {PODS['a1']}",
        f"sysctl -w {'=0 '.join(SYSCTLS)}=0",
    ],
    ids=["device", "services", "sysctls"],
)
def test_changes_by_other_programs_are_repaired(node: Proxied, harm: str) -> None:
    expected = state(node)
    assert sum(line.startswith("1 = net.ipv4") for line in expected) == len(SYSCTLS)
    sh(node, harm)
    until(lambda: state(node) == expected, f"{harm} is repaired", PATIENCE, pause=0.3)
    node.reaches("a2", WEB, *PODS)
    node.reaches("ext", NODE_PORT, *PODS)


def test_other_programs_virtual_services_survive_start_changes_and_cleanup(node: Proxied) -> None:
    assert theirs(node) == [*THEIRS]
    node.reaches("a2", DATABASE, "b1")
    node.apply(endpoint_slice("web", "b2"))
    node.reaches("a2", WEB, "b2")
    assert theirs(node) == [*THEIRS]
    node.delete("Service", "web")
    node.is_refused("ext", NODE_PORT)
    assert theirs(node) == [*THEIRS]
    # This test must be the module's last, because it ends the agent.
    node.agent.stop()
    sh(node, f"{sys.executable} -m pyproxy cleanup")
    assert sorted(map(str.strip, sh(node, "ipvsadm -Sn").splitlines())) == sorted(THEIRS)
    assert "kube-ipvs0" not in sh(node, "ip link")
    # Cleanup restores the 0 that another program wrote while the agent served.
    sh(node, "sysctl -w net.ipv4.ip_forward=1")
    node.reaches("a2", DATABASE, "b1")
