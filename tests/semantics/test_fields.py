"""Holds the list of the API's fields against the API's client, the decoder and the documentation.

The list is fields.yaml. A new field of the API fails the first test until a developer decides what
becomes of it; a decision that the code does not follow fails the others.
"""

from __future__ import annotations

import copy
import importlib
import re
from pathlib import Path
from typing import Any

import kubernetes.client
import msgspec
import pytest
import yaml

from pyproxy.model.objects import Kind
from pyproxy.source import wire
from pyproxy.source.decode import DecodedObject, decode_object

ROOT = Path(__file__).parents[2]
FIELDS: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(
    Path(__file__).with_name("fields.yaml").read_text(encoding="utf-8")
)

BASES: dict[Kind, dict[str, Any]] = {
    Kind.SERVICE: {
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.1",
            "clusterIPs": ["10.96.0.1"],
            "ports": [{"port": 80}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}},
    },
    Kind.ENDPOINT_SLICE: {
        "metadata": {
            "name": "web-1",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.1.1"], "nodeName": "node-a"}],
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    },
}


class Place(msgspec.Struct):
    """Where a type of the API stands in an object, and the struct that reads it, if any does."""

    kind: Kind
    path: tuple[str | int, ...]
    struct: type[msgspec.Struct] | None


SERVICE, SLICE = Kind.SERVICE, Kind.ENDPOINT_SLICE
BALANCER = ("status", "loadBalancer")
HINTS = ("endpoints", 0, "hints")

PLACES = {
    "Service": Place(SERVICE, (), wire.Service),
    "ObjectMeta": Place(SERVICE, ("metadata",), wire.Meta),
    "ServiceSpec": Place(SERVICE, ("spec",), wire.ServiceSpec),
    "ServicePort": Place(SERVICE, ("spec", "ports", 0), wire.ServicePort),
    "SessionAffinityConfig": Place(
        SERVICE, ("spec", "sessionAffinityConfig"), wire.SessionAffinityConfig
    ),
    "ClientIPConfig": Place(
        SERVICE, ("spec", "sessionAffinityConfig", "clientIP"), wire.ClientIPConfig
    ),
    "ServiceStatus": Place(SERVICE, ("status",), wire.ServiceStatus),
    "LoadBalancerStatus": Place(SERVICE, BALANCER, wire.LoadBalancerStatus),
    "LoadBalancerIngress": Place(SERVICE, (*BALANCER, "ingress", 0), wire.Ingress),
    "PortStatus": Place(SERVICE, (*BALANCER, "ingress", 0, "ports", 0), None),
    "EndpointSlice": Place(SLICE, (), wire.EndpointSlice),
    "Endpoint": Place(SLICE, ("endpoints", 0), wire.Endpoint),
    "EndpointConditions": Place(SLICE, ("endpoints", 0, "conditions"), wire.Conditions),
    "EndpointHints": Place(SLICE, HINTS, wire.Hints),
    "ForNode": Place(SLICE, (*HINTS, "forNodes", 0), wire.Hint),
    "ForZone": Place(SLICE, (*HINTS, "forZones", 0), wire.Hint),
    "EndpointPort": Place(SLICE, ("ports", 0), wire.SlicePort),
}

ALL = [(api_type, field) for api_type, fields in FIELDS.items() for field in fields]
HANDLED = [(t, f) for t, f in ALL if "handled" in FIELDS[t][f]]
IGNORED = [(t, f) for t, f in ALL if "ignored" in FIELDS[t][f]]


def client_fields(api_type: str) -> set[str]:
    name = {"EndpointPort": "DiscoveryV1EndpointPort"}.get(api_type, f"V1{api_type}")
    return set(getattr(kubernetes.client, name).attribute_map.values())


def merge(into: Any, more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def make(api_type: str, field: str, *, with_example: bool) -> DecodedObject:
    """Read the base object, with the field set to its example or with the place that it has."""
    entry, place = FIELDS[api_type][field], PLACES[api_type]
    raw = copy.deepcopy(BASES[place.kind])
    merge(raw, entry.get("given", {}))
    at: Any = raw
    for step, following in zip(place.path, (*place.path[1:], ""), strict=False):
        if isinstance(step, int):
            if len(at) <= step:
                at.append({})
        elif at.get(step) is None:
            at[step] = [] if isinstance(following, int) else {}
        at = at[step]
    if with_example:
        at[field] = entry["example"]
    return decode_object(place.kind, msgspec.json.encode(raw))


def values_at(value: object, path: str) -> list[object]:
    """Find all values of an attribute, named as `module.Struct.field`, in a decoded object."""
    owner, _, attribute = path.rpartition(".")
    found: list[object] = []
    pending: list[object] = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, tuple):
            pending += item
        elif isinstance(item, msgspec.Struct):
            if f"{type(item).__module__}.{type(item).__name__}" == f"pyproxy.{owner}":
                found.append(getattr(item, attribute))
            pending += [getattr(item, name) for name in item.__struct_fields__]
    return found


@pytest.mark.parametrize("api_type", PLACES)
def test_every_field_of_the_api_is_listed(api_type: str) -> None:
    unnamed = client_fields(api_type) - FIELDS[api_type].keys()
    assert not unnamed, f"decide what becomes of {api_type}'s {sorted(unnamed)} in fields.yaml"


def test_every_type_has_its_place() -> None:
    assert FIELDS.keys() == PLACES.keys()


@pytest.mark.parametrize(("api_type", "field"), ALL)
def test_each_field_is_handled_or_ignored_for_a_reason(api_type: str, field: str) -> None:
    entry = FIELDS[api_type][field]
    assert ("handled" in entry) != ("ignored" in entry)
    assert entry.keys() <= {"handled", "ignored", "given", "example"}
    assert "example" in entry
    assert entry.get("handled") or len(entry["ignored"]) > 10


@pytest.mark.parametrize("api_type", [t for t in PLACES if t != "ObjectMeta"])
def test_the_decoder_reads_what_is_handled_and_nothing_else(api_type: str) -> None:
    # ObjectMeta is left out: its struct serves Nodes too, of which more is read.
    struct = PLACES[api_type].struct
    reads = set(struct.__struct_encode_fields__) if struct else set()
    assert reads == {field for t, field in HANDLED if t == api_type}


@pytest.mark.parametrize(("api_type", "field"), HANDLED)
def test_a_handled_field_makes_the_difference_that_is_named(api_type: str, field: str) -> None:
    without = make(api_type, field, with_example=False)
    with_it = make(api_type, field, with_example=True)
    assert with_it != without
    for path in FIELDS[api_type][field]["handled"]:
        module, _, attribute = path.rpartition(".")
        if not re.search(r"\.[A-Z]\w*$", module):
            assert hasattr(importlib.import_module(f"pyproxy.{module}"), attribute), path
        else:
            assert values_at(with_it, path) != values_at(without, path), path


@pytest.mark.parametrize(("api_type", "field"), IGNORED)
def test_an_ignored_field_makes_none(api_type: str, field: str) -> None:
    without = make(api_type, field, with_example=False)
    assert make(api_type, field, with_example=True) == without


def documented_path(api_type: str, field: str) -> str:
    place = PLACES[api_type]
    steps = "".join("[]" if isinstance(s, int) else f".{s}" for s in (*place.path, field))
    return steps.lstrip(".")


def test_the_documentation_has_a_row_for_each_field_and_says_the_same() -> None:
    text = (ROOT / "docs" / "reference" / "semantics.md").read_text(encoding="utf-8")
    rows: dict[tuple[Kind, str], str] = {}
    kind = Kind.SERVICE
    for line in text.splitlines():
        if heading := re.match(r"## The (Service|EndpointSlice)$", line):
            kind = Kind(heading[1])
        elif row := re.match(r"\| `([^`]+)` \| (.*?) \|", line):
            rows[kind, row[1]] = row[2]
    wanted = {(PLACES[t].kind, documented_path(t, f)): (t, f) for t, f in ALL}
    assert wanted.keys() - rows.keys() == set()
    for place, said in rows.items():
        if place in wanted:
            assert said.startswith("ignored") == (wanted[place] in IGNORED), place
