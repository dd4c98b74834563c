"""Services that claim the ports that the agent itself listens on."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network

from pyproxy.config.settings import ListenAddress, Serving
from pyproxy.model.address import Family, Port, Protocol
from pyproxy.model.objects import ObjectName, Service, ServicePort
from tests.agent.objects import Stage
from tests.builders import ip
from tests.semantics.proxied import SITE, Object, balanced, endpoint_slice, proxied, service
from tests.waiting import PATIENCE, until

HERE, HERE6 = SITE.addresses
CHECKED = 30111


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


def status(url: str) -> int:
    # No proxy of the environment stands between a node and itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=PATIENCE) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def claims() -> tuple[Object, ...]:
    """Services on the health port, by external IP, load balancer and node port, all of them old."""
    old = {"creationTimestamp": "2020-01-01T00:00:00Z"}
    ports = [
        {"name": "healthz", "port": 10256},
        {"name": "check", "port": CHECKED},
        {"name": "free", "port": 10999},
    ]
    found = []
    for name, address, spec, balancers in (
        ("external", "10.96.0.11", {"externalIPs": [HERE]}, ()),
        ("balancer", "10.96.0.12", {"type": "LoadBalancer"}, (HERE,)),
        ("node-port", "10.96.0.13", {"type": "NodePort"}, ()),
    ):
        node_port = {"nodePort": 10256} if name == "node-port" else {}
        made = service(
            name,
            address,
            ports=[ports[0] | node_port, *ports[1:]],
            status=balanced(*balancers) if balancers else None,
            **spec,
        )
        made["metadata"] |= old
        pods = endpoint_slice(name, "b2", ports=[p | {"port": 8080} for p in ports])
        found += [made, pods]
    return tuple(found)


@pytest.mark.packets
def test_probes_of_the_node_are_answered_by_the_agent(
    mode: LabMode, network: Network, tmp_path: Path
) -> None:
    checked = service(
        "checked",
        "10.96.0.20",
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        healthCheckNodePort=CHECKED,
        status=balanced("192.0.2.20"),
    )
    objects = (*claims(), checked, endpoint_slice("checked", "a1"))
    with proxied(mode, network, tmp_path / "x", objects=objects) as node:
        node.reaches("ext", f"{HERE}:10999", "b2")
        for who in ("na", "ext", "a2"):
            ask = network.namespace(who).call
            for url in (f"http://{HERE}:10256/livez", f"http://{HERE}:{CHECKED}/"):
                until(lambda: ask(partial(status, url)) == 200, f"{who} reaches {url}")  # noqa: B023
        node.reaches("a2", "10.96.0.11:10256", "b2")
        lines = node.agent.log.read_text().splitlines()
        for name in ("external", "balancer", "node-port"):
            said = " ".join(line for line in lines if f"Service shop/{name}: " in line)
            place = "node port" if name == "node-port" else f"{HERE} port"
            assert (
                f"{place} 10256/TCP is not proxied for port 'healthz': pyproxy "
                "(--healthz-bind-address) listens there"
            ) in said
        said = " ".join(line for line in lines if "Service shop/balancer: " in line)
        assert (
            f"{HERE} port {CHECKED}/TCP is not proxied for port 'check': it is the health-check "
            "node port of Service shop/checked, which precedes load balancer addresses"
        ) in said


LISTEN = Serving(ListenAddress(ip("0.0.0.0"), 10256), ListenAddress(ip("127.0.0.1"), 10249))
LOCAL = tuple(map(ip, ["172.30.0.11", "fd30::11", "10.244.1.1", "127.0.0.1"]))


@pytest.mark.parametrize(
    ("address", "port", "protocol", "served"),
    [
        ("172.30.0.11", 10256, Protocol.TCP, False),
        ("10.244.1.1", 10256, Protocol.TCP, False),
        ("172.30.0.11", 10256, Protocol.UDP, True),
        ("172.30.0.11", 10249, Protocol.TCP, True),
        ("172.30.0.12", 10256, Protocol.TCP, True),
    ],
)
def test_ports_are_reserved_where_the_agent_listens(
    address: str, port: int, protocol: Protocol, served: bool
) -> None:
    stage = Stage(serving=LISTEN)
    stage.local_addresses = LOCAL
    web = Service(
        ObjectName("shop", "web"),
        (ServicePort("", protocol, Port(port)),),
        (ip("10.96.0.1"),),
        external_ips=(ip(address),),
        families=(Family.IPV4,),
    )
    stage.begin(web)
    assert bool(stage.reported) != served
    assert stage.reasons() == ([] if served else ["FrontendConflict"])


def test_a_new_address_of_the_node_is_reserved_too() -> None:
    stage = Stage(serving=LISTEN)
    stage.local_addresses = LOCAL
    others = [
        Service(
            ObjectName("shop", f"web-{number}"),
            (ServicePort("", Protocol.TCP, Port(10256)),),
            (ip(f"10.96.0.{number}"),),
            external_ips=(ip("192.0.2.1"),) if number == 1 else (),
            families=(Family.IPV4,),
        )
        for number in range(1, 9)
    ]
    stage.begin(*others)
    assert stage.reported == []
    stage.local_addresses = (*LOCAL, ip("192.0.2.1"))
    stage.agent.addresses_changed()
    stage.settle()
    assert [each.name for each in stage.reported] == ["shop/web-1"]
    assert set(stage.recorder.commits[-1].routings) == {ObjectName("shop", "web-1")}


def test_a_cluster_ip_cannot_be_an_address_of_the_node() -> None:
    """A cluster IP rejects all other ports of its address, here those of kubelet and sshd."""
    stage = Stage()
    stage.local_addresses = LOCAL
    web = Service(
        ObjectName("shop", "web"),
        (ServicePort("", Protocol.TCP, Port(80)),),
        (ip("172.30.0.11"),),
        families=(Family.IPV4,),
    )
    stage.begin(web)
    assert [str(each) for each in stage.reported] == [
        "Service shop/web: spec.clusterIPs: 172.30.0.11 is an address of this node, which no "
        "cluster IP can be; ignored"
    ]
    assert "services4" not in stage.dataplane.kernel
