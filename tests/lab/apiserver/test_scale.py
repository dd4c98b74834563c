"""Many objects and many changes, by counts."""

from __future__ import annotations

from collections.abc import Iterator

from pyproxy_lab.apiserver.server import ApiServer

from tests.lab.api import MERGE, SLICES, Api, Json

SERVICES = 3_000
ENDPOINTS = 10
CHANGES = 500


def many() -> Iterator[Json]:
    for number in range(SERVICES):
        name = f"s{number:05}"
        yield {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"ports": [{"port": 80}]},
        }
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"{name}-a", "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": [f"10.244.{number % 250}.{n + 1}"], "conditions": {"ready": True}}
                for n in range(ENDPOINTS)
            ],
        }


def changes(events: list[Json]) -> list[tuple[str, str]]:
    """Return name and annotation of each changed object."""
    objects = [each["object"]["metadata"] for each in events if each["type"] == "MODIFIED"]
    return [(each["name"], each["annotations"]["n"]) for each in objects]


def test_thousands_of_services_and_a_stream_of_changes(server: ApiServer, api: Api) -> None:
    assert server.load(many()) == 2 * SERVICES
    listed = api.ok("GET", "/api/v1/services?resourceVersion=0")
    assert len(listed["items"]) == SERVICES + 1
    addresses = {item["spec"]["clusterIP"] for item in listed["items"]}
    assert len(addresses) == SERVICES + 1

    pages, token = 0, ""
    found: list[str] = []
    while pages == 0 or token:
        page = api.ok("GET", f"{SLICES}?limit=500&continue={token}")
        found += [item["metadata"]["name"] for item in page["items"]]
        token = page["metadata"].get("continue", "")
        pages += 1
    assert found == [f"s{number:05}-a" for number in range(SERVICES)]
    assert pages == SERVICES // 500

    stream = (
        f"{SLICES}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        "&allowWatchBookmarks=true"
    )
    with api.watch(stream) as one, api.watch(stream) as two:
        for watch in (one, two):
            events = watch.until(lambda events: len(events) > SERVICES)
            assert events[-1]["type"] == "BOOKMARK"
        for number in range(CHANGES):
            path = f"{SLICES}/s{number % 100:05}-a"
            api.ok("PATCH", path, {"metadata": {"annotations": {"n": str(number)}}}, MERGE)
        last = f"s{(CHANGES - 1) % 100:05}-a", str(CHANGES - 1)
        for watch in (one, two):
            # On a loaded machine there are bookmarks between the changes.
            events = watch.until(lambda events: last in changes(events[-2:]))[SERVICES:]
            assert [number for _, number in changes(events)] == [*map(str, range(CHANGES))]
            versions = [int(e["object"]["metadata"]["resourceVersion"]) for e in events]
            assert versions == sorted(versions)
