"""No text of the API gets into the text for nft."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nft.base_rules import MARKER
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables.base_rules import NftablesOptions, base_rules
from pyproxy.dataplane.nftables.compile import add_service
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.model.address import Family, parse_network
from pyproxy.model.objects import EndpointSlice, Kind, ObjectName, Service
from pyproxy.netlink.elements import COMMENT_LIMIT, Tag
from pyproxy.policy.endpoints import route_service
from pyproxy.policy.routing import ServiceRouting
from pyproxy.source.decode import decode_object
from tests.examples import examples
from tests.fuzz.objects import HOSTILE

SAFE = re.compile(r"[-A-Za-z0-9._/:?]*")
hostile = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40), st.text(min_size=110))
NETWORKS = (parse_network("10.244.0.0/16"),)


def objects(text: str, other: str, number: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """A valid Service and slice with hostile names."""
    address = f"10.96.{number >> 8}.{number & 255}"
    meta = {"name": f"{text}", "namespace": other or "n", "uid": text, "labels": {text: other}}
    service = {
        "metadata": meta,
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": address,
            "clusterIPs": [address, text],
            "externalIPs": [other, f"198.51.{number >> 8}.{number & 255}"],
            "loadBalancerSourceRanges": [text, "192.0.2.0/24"],
            "ports": [
                {"name": text, "protocol": "TCP", "port": 80, "nodePort": 0},
                {"name": other, "protocol": "UDP", "port": 81},
            ],
            "sessionAffinity": "ClientIP",
        },
        "status": {"loadBalancer": {"ingress": [{"ip": text}, {"ip": "203.0.113.9"}]}},
    }
    part = {
        "metadata": {
            "name": other + "-1",
            "namespace": other or "n",
            "labels": {"kubernetes.io/service-name": text},
        },
        "addressType": "IPv4",
        "ports": [{"name": text, "port": 8080}, {"name": other, "protocol": "UDP", "port": 8081}],
        "endpoints": [
            {"addresses": [text]},
            {"addresses": ["10.244.1.7"], "nodeName": text, "zone": other},
        ],
    }
    return service, part


def routing_of(text: str, other: str, number: int = 1) -> ServiceRouting | None:
    """The routing of such objects, or None if the Service cannot be decoded."""
    a_service, a_slice = objects(text, other, number)
    encoded = [json.dumps(each).encode() for each in (a_service, a_slice)]
    service, part = (
        decode_object(Kind.SERVICE, encoded[0]).value,
        decode_object(Kind.ENDPOINT_SLICE, encoded[1]).value,
    )
    if not isinstance(service, Service):
        return None
    parts = [part] if isinstance(part, EndpointSlice) else []
    return route_service(service, parts, None, "node-a")


def comments(table: Table) -> list[str]:
    return [tag.comment for rows in table.values() for tag in rows.values() if isinstance(tag, Tag)]


@given(text=hostile, other=hostile)
@settings(max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_comments_contain_no_nft_syntax(text: str, other: str) -> None:
    found = routing_of(text, other)
    if found is None:
        return
    table: Table = {}
    add_service(found, table)
    for comment in comments(table):
        assert SAFE.fullmatch(comment), comment
        assert len(comment.encode()) <= COMMENT_LIMIT
    targets = {
        tag.target for rows in table.values() for tag in rows.values() if isinstance(tag, Tag)
    }
    assert all(re.fullmatch(r"[a-z0-9-]*", target) for target in targets), targets


@pytest.mark.parametrize("name", [name for name in HOSTILE if set(name) - set("abcdef")])
def test_names_of_foreign_chains_are_not_part_of_the_text(name: str) -> None:
    """The text is made of NftablesOptions and the names of chains in the table."""
    assert base_rules(_options()).text({name, MARKER + name}) == base_rules(_options()).text(())


def _options() -> NftablesOptions:
    return NftablesOptions(pod_families=frozenset({Family.IPV4}))


@pytest.mark.kernel
def test_hostile_objects_in_a_real_kernel(namespace: Namespace) -> None:
    """Commit all of them: nft lists one table, with harmless comments."""

    def commit() -> int:
        dataplane = NftablesDataplane(_options())
        try:
            dataplane.prepare()
            held: dict[ObjectName, ServiceRouting] = {}
            for number, text in enumerate(HOSTILE, 1):
                for other in (text, "plain"):
                    found = routing_of(text, other, number if other == text else number + 256)
                    if found is not None:
                        held[found.name] = found
            plan = dataplane.plan_full(held.values(), NodeRouting(NETWORKS))
            assert dataplane.commit(plan) == ()
            assert not dataplane.plan_full(held.values(), NodeRouting(NETWORKS))
            return len(held)
        finally:
            dataplane.close()

    assert namespace.call(commit) > len(HOSTILE)
    listed = namespace.run(["nft", "list", "ruleset"]).stdout
    assert re.findall(r"^table .*", listed, re.MULTILINE) == ["table inet pyproxy {"]
    written = re.compile(r'comment "(.*?)"')
    own = set(written.findall(base_rules(_options()).text(())))
    found = [comment for comment in written.findall(listed) if comment not in own]
    assert len(found) > len(HOSTILE)
    for comment in found:
        assert SAFE.fullmatch(comment), comment
    assert "evil" not in re.sub(r'"[^"]*"', "", listed)
