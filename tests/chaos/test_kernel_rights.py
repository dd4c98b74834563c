"""The capabilities that the agent needs, and that it drops all others."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from pyproxy_lab.cluster import Cluster
from pyproxy_lab.probe import probe
from pyproxy_lab.process import Agent, agent_command

import pyproxy
from pyproxy.agent.rights import needed
from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import ListenAddress, Serving, Settings
from pyproxy.dataplane.mode import Capability
from pyproxy.model.address import parse_address
from pyproxy.model.destination import parse_destination
from tests.agent.live import addresses, endpoint_slice, service
from tests.chaos.objects import create
from tests.chaos.test_restart import is_healthy
from tests.waiting import RESPONSE_TIMEOUT, until

pytestmark = pytest.mark.packets

NODE = "na"
NOBODY = 65534
NET_ADMIN = 1 << Capability.NET_ADMIN
ADDRESS = "10.96.8.1"
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

# Mounts all read-only in a mount namespace, except the folder of the agent's socket, as a pod
# of deploy/base has it.
READ_ONLY = (
    "sh",
    "-c",
    "mount -o remount,bind,ro / && for at in $(awk '$2 != \"/\" {print $2}' /proc/mounts); do "
    "mount -o remount,bind,ro $at 2>/dev/null; done; "
    "mount -t tmpfs none /run && mkdir /run/pyproxy && mount -t tmpfs none /run/pyproxy "
    "&& mount -o remount,bind,ro /run || exit 98; "
    "if touch /probe /tmp/probe /var/probe /run/probe 2>/dev/null; then exit 99; fi; "
    'exec "$@" --inspect-socket=/run/pyproxy/pyproxy.sock',
    "sh",
)
ONLY_NET_ADMIN = (
    *("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"),
    *("--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin"),
    *("--ambient-caps=-all,+net_admin", "--no-new-privs"),
)
ROOT_BOUNDED = ("setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all")
WITHOUT_SETPCAP = ("setpriv", "--bounding-set=-setpcap", "--inh-caps=-all")
NO_RIGHTS = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-all")


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> Cluster:
    create(cluster.client, service("rights", ADDRESS), endpoint_slice("rights", addresses("b1")))
    return cluster


@contextmanager
def started(cluster: Cluster, wrapper: Sequence[str]) -> Iterator[Agent]:
    if shutil.which("setpriv") is None:
        pytest.skip("needs the command setpriv")
    namespace = cluster.network.namespace(NODE)
    namespace.run(["nft", "flush ruleset"])
    kubeconfig = cluster.kubeconfig()
    cluster.folder.chmod(0o755)
    kubeconfig.chmod(0o644)
    command = [*wrapper, *agent_command(cluster.network.topology.site(NODE), kubeconfig)]
    log = cluster.folder / "rights.log"
    log.write_bytes(b"")
    with Agent(namespace, command, log) as agent:
        yield agent


def serving(cluster: Cluster, agent: Agent) -> str:
    """Wait until the agent serves, probe it, have it repair the table, and return its log."""
    namespace = cluster.network.namespace(NODE)
    until(lambda: is_healthy(namespace) or agent.status is not None, "the first commit")
    agent.require_alive()
    ask = partial(probe, parse_destination(f"{ADDRESS}:80"), tries=4, timeout=RESPONSE_TIMEOUT)
    seen = cluster.network.namespace("a1").call(ask)
    assert seen.reached == {"b1": 4}
    # A repair needs every right: notifications, a read-back, nft and a netlink batch.
    namespace.run(["nft", "flush ruleset"])
    log = agent.log
    until(lambda: "repaired changes by nft" in log.read_text(), "a repair")
    seen = cluster.network.namespace("a1").call(ask)
    assert seen.reached == {"b1": 4}
    return log.read_text()


def rights_of(agent: Agent) -> dict[str, set[int]]:
    """Return the capabilities of all threads, by set."""
    found: dict[str, set[int]] = {name: set() for name in SETS}
    for task in Path(f"/proc/{agent.pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name].add(int(value, 16))
    return found


def test_as_root_it_keeps_one_capability(served: Cluster) -> None:
    with started(served, ()) as agent:
        log = serving(served, agent)
        assert len(list(Path(f"/proc/{agent.pid}/task").iterdir())) > 1
        assert rights_of(agent) == {name: {NET_ADMIN} for name in SETS}
        assert "cannot give up" not in log


@pytest.mark.parametrize("wrapper", [ROOT_BOUNDED, READ_ONLY, (*READ_ONLY, *ROOT_BOUNDED)])
def test_cap_net_admin_and_a_read_only_root_are_enough(
    served: Cluster, wrapper: Sequence[str]
) -> None:
    with started(served, wrapper) as agent:
        log = serving(served, agent)
        assert rights_of(agent)["CapEff"] == {NET_ADMIN}
        expected = ("WARNING repaired", "WARNING cannot set")
        assert log.count("WARNING") == sum(map(log.count, expected))
        assert log.count(expected[1]) == 1


def test_it_runs_as_another_user_with_net_admin(served: Cluster) -> None:
    places = (sys.executable, sys.base_prefix, sys.prefix, pyproxy.__file__)
    with started(served, (*_readable(places), *READ_ONLY, *ONLY_NET_ADMIN)) as agent:
        serving(served, agent)
        assert rights_of(agent)["CapEff"] == {NET_ADMIN}
        uids = Path(f"/proc/{agent.pid}/status").read_text().partition("Uid:")[2].split()[:4]
        assert set(map(int, uids)) == {NOBODY}


def test_without_setpcap_no_new_privs_protects_its_programs(
    served: Cluster,
) -> None:
    with started(served, WITHOUT_SETPCAP) as agent:
        serving(served, agent)
        found = rights_of(agent)
        assert found["CapBnd"] != {NET_ADMIN}
        assert found["CapEff"] == found["CapPrm"] == {NET_ADMIN}
        status = Path(f"/proc/{agent.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status


def test_without_net_admin_it_ends_with_status_2(served: Cluster) -> None:
    with started(served, NO_RIGHTS) as agent:
        until(lambda: agent.status is not None, "the agent's end")
        assert agent.status == 2
        (last,) = agent.log.read_text().splitlines()[-1:]
        assert "CAP_NET_ADMIN" in last


@pytest.mark.parametrize(("port", "more"), [(10256, set()), (80, {Capability.NET_BIND_SERVICE})])
def test_a_low_port_needs_net_bind_service(port: int, more: set[Capability]) -> None:
    place = ListenAddress(parse_address("0.0.0.0"), port)
    settings = Settings("n", serving=Serving(health=place))
    assert needed(settings) == {Capability.NET_ADMIN} | more
    nowhere = Serving(health=None, metrics=None)
    assert needed(Settings("n", serving=nowhere)) == {Capability.NET_ADMIN}


@pytest.mark.parametrize(
    ("settings", "raw"),
    [
        (Settings("n"), False),
        (Settings("n", takeover=True), True),
        (Settings("n", ProxyMode.IPTABLES), True),
        (Settings("n", ProxyMode.IPVS), False),
    ],
)
def test_only_iptables_needs_net_raw(settings: Settings, raw: bool) -> None:
    assert (Capability.NET_RAW in needed(settings)) == raw


def _readable(places: Sequence[str]) -> Sequence[str]:
    """Return a command prefix that makes the folders of these files readable, as an image does."""
    closed = {
        parent
        for place in places
        for parent in Path(place).resolve().parents
        if parent.stat().st_mode & 0o005 != 0o005
    }
    steps = []
    for number, top in enumerate(sorted(each for each in closed if each.parent not in closed)):
        inside = [path for path in map(Path.resolve, map(Path, places)) if top in path.parents]
        for name in sorted({path.relative_to(top).parts[0] for path in inside}):
            kept = f"/mnt/kept-{number}"
            steps += [
                f"mount -t tmpfs none /mnt && mkdir {kept} && mount --bind {top}/{name} {kept}",
                f"mount -t tmpfs -o mode=755 none {top} && mkdir {top}/{name}",
                f"mount --bind {kept} {top}/{name}",
            ]
    return ("sh", "-c", " && ".join([*steps, 'exec "$@"']), "sh")
