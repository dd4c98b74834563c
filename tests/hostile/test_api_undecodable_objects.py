"""One undecodable object in a list or a watch: all other Services are followed, and it is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pyproxy_lab.apiserver.faults import Rewrite

from pyproxy.model.events import Delete, InvalidObject
from pyproxy.model.objects import EndpointSlice, Kind, ObjectName
from pyproxy.source.decode import decode_object
from pyproxy.source.media_types import JSON_TYPE
from pyproxy.source.stream import event, object_list
from tests.agent.live import SHOP, endpoint_slice, service
from tests.chaos.objects import numbered_service
from tests.chaos.table_agent import agent, api_server
from tests.source.scripted import (
    NODES,
    SERVICES,
    Exchange,
    a_service,
    end_of_list,
    following,
    listed,
    quiet,
    serving,
)
from tests.source.scripted import services as only_services

MARK = b'"MARK"'
FIELDS: dict[str, bytes] = {
    "lone high surrogate": rb'"\ud800"',
    "lone low surrogate": rb'"\udc00x"',
    "invalid UTF-8": b'"\xff\xfe"',
    "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "control character": b'"\x01"',
    "NaN": b"NaN",
    "infinity": b"-Infinity",
    "number out of range": b"1e400",
    "huge integer": b"9" * 5000,
    "deep arrays": b"[" * 5000 + b"]" * 5000,
    "deep objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "object for a string": b'{"x":1}',
    "missing value": b"",
}
"""Values that no Kubernetes object has; each is put in place of MARK."""


def bad_service() -> dict[str, Any]:
    """Return a Service with MARK in a field that is decoded."""
    made = service("bad", "10.96.9.9")
    made["metadata"]["annotations"] = {"pyproxy.io/ipvs-scheduler": "MARK"}
    return made


@pytest.mark.parametrize("what", FIELDS)
def test_other_services_are_followed(what: str) -> None:
    bad, good = ObjectName(SHOP, "bad"), ObjectName(SHOP, "s1")
    with api_server(more=[bad_service()]) as server:
        server.faults.set(Rewrite(MARK, FIELDS[what]))
        with agent(server, accept=JSON_TYPE) as rig:
            state = rig.agent.cluster_state
            rig.until(lambda: good in state.services, "the list")
            rig.until(lambda: rig.reported, "the problem")
            assert bad not in state.services
            # The same in a watch, and a change of another Service after it.
            server.load([bad_service(), numbered_service(7)])
            rig.until(lambda: ObjectName(SHOP, "s7") in state.services, "a change")
            assert bad not in state.services
            server.faults.clear()
            server.load([service("bad", "10.96.9.8")])
            rig.until(lambda: bad in state.services, "the mended object")
    assert {(problem.kind, problem.name) for problem in rig.reported} == {
        ("Service", f"{SHOP}/bad")
    }
    assert all(len(str(problem)) < 500 for problem in rig.reported)


ITEMS: dict[str, tuple[bytes, str]] = {
    "null": (b"null", "(no name)"),
    "number": (b"7", "(no name)"),
    "array": (b"[]", "(no name)"),
    "no metadata": (b"{}", "(no name)"),
    "metadata is null": (b'{"metadata":null}', "(no name)"),
    "name is a number": (b'{"metadata":{"name":7,"namespace":"shop"}}', "(no name)"),
    "name with a surrogate": (rb'{"metadata":{"name":"a\ud800","namespace":"shop"}}', "(no name)"),
    "name with a newline": (rb'{"metadata":{"name":"a\nb","namespace":"s"}}', r"'s/a\nb'"),
    "name with a slash": (rb'{"metadata":{"name":"a/b","namespace":"s"}}', "'s/a/b'"),
    "name of 1 MB": (b'{"metadata":{"name":"%b","namespace":"s"}}' % (b"n" * 10**6), "'s/nnn"),
    "namespace with a newline": (rb'{"metadata":{"name":"a","namespace":"s\n"}}', r"'s\n/a'"),
    "surrogate in a member's name": (
        rb'{"\ud800":1,"metadata":{"name":"odd","namespace":"shop"}}',
        "shop/odd",
    ),
    "members twice": (
        rb'{"metadata":{"name":"a","name":"odd","namespace":"shop","x":"\ud800"},"spec":1}',
        "shop/odd",
    ),
    "brackets in strings": (
        rb'{"a":"]}\"[{","metadata":{"name":"odd","namespace":"shop"},"b":"\udc00"}',
        "shop/odd",
    ),
}


@pytest.mark.parametrize("what", ITEMS)
def test_items_of_lists_and_objects_of_events(what: str) -> None:
    data, label = ITEMS[what]
    good = json.dumps(a_service("good")).encode()
    page = b'{"kind":"ServiceList","metadata":{"resourceVersion":"5"},"items":[%b,%b,%b]}'
    items = object_list(page % (good, data, good), "ServiceList").items
    assert items is not None
    first, bad, last = (decode_object(Kind.SERVICE, item) for item in items)
    assert first == last
    assert first.name == ObjectName("shop", "good")
    found = event(memoryview(b'{"type":"ADDED","object":%b}' % data)) if data[:1] == b"{" else None
    for decoded in (bad, decode_object(Kind.SERVICE, found.object) if found else bad):
        text = str(decoded.value)
        assert text.startswith(f"Service {label}")
        assert "the whole object is ignored" in text
        assert "\n" not in text
        assert len(text) < 600


def test_an_object_of_another_kind_does_not_remove_a_service() -> None:
    pod = a_service("a", "6") | {"kind": "Pod"}

    def script(exchange: Exchange) -> None:
        if not exchange.query.get("watch"):
            exchange.respond(listed(SERVICES, [a_service("a")], "5"))
        elif exchange.query.get("sendInitialEvents"):
            exchange.fail(422)
        else:
            exchange.begin()
            exchange.events([("MODIFIED", pod), ("DELETED", pod), ("ADDED", a_service("b", "7"))])
            exchange.hold()

    with serving(only_services(script)) as server, following(server.url) as (recorder, _):
        seen = recorder.until(lambda seen: "+b" in seen)
    assert seen == ["+a", "=a", "!shop/a", "!shop/a", "+b"]


def test_events_of_other_nodes_are_ignored() -> None:
    def nodes(exchange: Exchange) -> None:
        if exchange.query.get("watch"):
            exchange.fail(422) if exchange.query.get("sendInitialEvents") else exchange.hold()
            return
        items = [{"metadata": {"name": name}} for name in ("node-b", "node-a")]
        exchange.respond({"kind": "NodeList", "metadata": {"resourceVersion": "1"}, "items": items})

    def script(exchange: Exchange) -> None:
        (nodes if exchange.route.endswith("/nodes") else only_services(nodes))(exchange)

    with serving(script) as server, following(server.url) as (recorder, _):
        recorder.until(lambda _: any("node-a" in str(each) for each in recorder.events))
    assert not any("node-b" in str(each) for each in recorder.events)


def test_an_undecodable_node_keeps_its_last_version() -> None:
    """A node that is not deleted stays eligible for load balancers."""
    bad = rb'{"type":"MODIFIED","object":{"kind":"Node","metadata":{"name":"node-a","a":"\ud800"}}}'

    def script(exchange: Exchange) -> None:
        if exchange.route != NODES:
            quiet(exchange)
            return
        exchange.begin()
        exchange.events([("ADDED", {"metadata": {"name": "node-a"}}), end_of_list("5")])
        exchange.chunk(bad + b"\n")
        exchange.hold()

    with serving(script) as server, following(server.url) as (recorder, _):
        recorder.until(lambda _: any(isinstance(each, InvalidObject) for each in recorder.events))
    assert not any(isinstance(each, Delete) for each in recorder.events)


def test_the_split_is_linear() -> None:
    """A malformed page costs one pass, whatever its size and nesting."""
    odd = rb'{"metadata":{"name":"odd","namespace":"shop"},"x":"\ud800"}'
    page = b'{"kind":"ServiceList","metadata":{"resourceVersion":"5"},"items":[%b]}'
    count = 20_000
    items = object_list(page % b",".join([odd] * count), "ServiceList").items
    assert items is not None
    assert len(items) == count
    assert {bytes(memoryview(item)) for item in items} == {odd}


@pytest.mark.parametrize("text", ["\x1b[2J\x1b[31mroot", "a\nb", "\u202egpj", "z" * 1000])
def test_a_zone_cannot_write_to_a_terminal(text: str) -> None:
    """The API server accepts any text as an endpoint's zone."""
    obj = endpoint_slice("web", ["10.244.1.11", "10.244.1.12"])
    obj["endpoints"][0]["zone"] = text
    value = decode_object(Kind.ENDPOINT_SLICE, json.dumps(obj).encode()).value
    assert isinstance(value, EndpointSlice)
    assert [(each.zone, each.node) for each in value.endpoints] == [("", ""), ("", "node-a")]
    (problem,) = value.problems
    assert problem.field == "endpoints[0]"
    assert str(problem).isprintable()
