"""Replays the requests that a real kube-apiserver v1.36.2 received, and compares the answers.

Values that differ by nature are masked: uids, versions, times, allocated numbers, generated names.
metadata.managedFields is left out: this server has no field managers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyproxy_lab.apiserver.listing import decode_token
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings

from tests.lab.api import Api, Response

RECORDINGS = Path(__file__).parent.parent / "recordings" / "kube-apiserver-v1.36.2.jsonl"
RECORDED = [json.loads(line) for line in RECORDINGS.read_text().splitlines()]
SLICES = "/apis/discovery.k8s.io/v1/namespaces/rec/endpointslices"
TOKENS = {
    "a bad token": "wrong",
    "what the proxy role may not do": "proxy",
    "what it may": "proxy",
}
VARIES = {
    "uid", "resourceVersion", "creationTimestamp", "clusterIP", "nodePort", "healthCheckNodePort",
    "goVersion", "compiler", "platform", "gitCommit",
}  # fmt: skip


class Replay:
    """Sends the recorded requests in order, and knows which versions stand for which."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.revisions = {"1": "1"}
        self.admin = Api(server.url, "admin")

    def send(self, recorded: Any) -> Response:
        request = recorded["request"]
        api = Api(self.server.url, TOKENS.get(recorded["about"], "admin"))
        path = self.here(request["path"])
        return api(request["method"], path, request.get("body"), request.get("content_type") or "")

    def here(self, path: str) -> str:
        """Put this server's versions into a path in place of the recorded ones."""
        path = re.sub(
            r"resourceVersion=(\d+)",
            lambda m: "resourceVersion=" + self.revisions.get(m[1], m[1]),
            path,
        )
        return re.sub(
            r"continue=([\w-]+)", lambda m: "continue=" + self.revisions.get(m[1], m[1]), path
        )

    def learn(self, recorded: Any, received: Any) -> None:
        there, here = recorded.get("metadata", {}), received.get("metadata", {})
        for field in ("resourceVersion", "continue"):
            if field in there and field in here:
                self.revisions[there[field]] = here[field]


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    settings = Settings(token="admin", proxy_token="proxy", bookmark_interval=2.0)
    with ApiServer.running(settings) as server:
        ready = Replay(server)
        ready.admin.ok("POST", "/api/v1/namespaces", {"metadata": {"name": "rec"}})
        addresses = ["172.30.0.11", "fd30::11"]
        ready.admin.ok(
            "POST",
            "/api/v1/nodes",
            {
                "metadata": {
                    "name": "node-a",
                    "labels": {
                        "kubernetes.io/hostname": "node-a",
                        "topology.kubernetes.io/zone": "zone-1",
                    },
                },
                "spec": {"podCIDRs": ["10.244.1.0/24", "fd10:1::/64"]},
                "status": {
                    "addresses": [
                        *({"type": "InternalIP", "address": a} for a in addresses),
                        {"type": "Hostname", "address": "node-a"},
                    ]
                },
            },
        )
        yield ready


def masked(value: Any, name: str = "") -> Any:
    """Replace what varies by its type, and leave out managedFields."""
    shown = value
    if name in VARIES and value != "None":
        shown = type(value).__name__
    elif name == "clusterIPs" and value != ["None"]:
        shown = [type(address).__name__ for address in value]
    elif name == "continue":
        position = decode_token(value)
        shown = (position.v, position.start)
    elif name == "message":
        shown = re.sub(r"(too old resource version: 1) \(\d+\)", r"\1 (N)", value)
    elif isinstance(value, list):
        shown = [masked(item) for item in value]
    elif isinstance(value, dict):
        shown = {k: masked(v, k) for k, v in value.items() if k != "managedFields"}
        if "generateName" in shown:
            shown["name"] = len(shown["name"])
        if shown.get("name") == "https" and "targetPort" in shown:
            shown["targetPort"] = "the port that the server listens on"
    return shown


def test_the_answers_are_those_of_a_real_server(replay: Replay) -> None:
    """One test for all, because each request builds on those before."""
    for recorded in RECORDED:
        about = recorded["about"]
        if "stream" in recorded:
            check_stream(replay, recorded)
            continue
        response = replay.send(recorded)
        assert response.status == recorded["status"], (about, response.raw)
        for header in ("Cache-Control", "Content-Type"):
            assert response.headers.get(header) == recorded["headers"].get(header), about
        assert masked(response.body) == masked(recorded["body"]), about
        assert list(response.body)[:3] == list(recorded["body"])[:3], about
        replay.learn(recorded["body"], response.body)


def check_stream(replay: Replay, recorded: Any) -> None:
    about, api = recorded["about"], replay.admin
    if "quiet" in about:
        # Here, watches from before have just been made to expire.
        current = api.ok("GET", "/api/v1/services")["metadata"]["resourceVersion"]
        replay.revisions["1184"] = current
    path = replay.here(recorded["request"]["path"])
    if "resourceVersion=1&" in recorded["request"]["path"]:
        replay.server.expire_watches()
    changes = any(event["type"] == "MODIFIED" for event in recorded["stream"])
    if changes:
        # On a busy machine the changes may take longer than the recorded watch.
        path = path.replace("timeoutSeconds=3", "timeoutSeconds=600")
    with api.watch(path) as watch:
        assert watch.response.status == recorded["status"], about
        for header in ("Cache-Control", "Content-Type", "Transfer-Encoding"):
            assert watch.response.headers.get(header) == recorded["headers"].get(header), about
        if "initial events" in about:
            watch.until(lambda events: bool(events) and events[-1]["type"] == "BOOKMARK")
        if changes:
            make_changes(api)
            watch.until(has_bookmark_after_deletion)
            replay.server.close_watches()
        events = watch.until_ended()
    expected = recorded["stream"]
    assert [masked(e) for e in events if plain(e)] == [masked(e) for e in expected if plain(e)]
    # When bookmarks come is up to the server's clock, so what they look like is compared.
    shapes = [masked(e) for e in expected if not plain(e)]
    assert all(masked(e) in shapes for e in events if not plain(e)), about
    assert any(not plain(e) for e in events) == bool(shapes), about


def has_bookmark_after_deletion(events: list[Any]) -> bool:
    types = [event["type"] for event in events]
    return "DELETED" in types and types[-1] == "BOOKMARK"


def plain(event: Any) -> bool:
    """Whether an event is about an object, or is the bookmark that ends the initial ones."""
    return event["type"] != "BOOKMARK" or "annotations" in event["object"]["metadata"]


def make_changes(api: Api) -> None:
    """Create, change and delete the slice that the recorded watches saw."""
    made = next(r for r in RECORDED if r["about"] == "create an endpoint slice")
    body = json.loads(json.dumps(made["request"]["body"]))
    body["metadata"]["name"] = "web-2"
    body["endpoints"] = body["endpoints"][:1]
    body["endpoints"][0]["addresses"] = ["10.244.2.7"]
    body["endpoints"][0]["targetRef"]["name"] = "web-10.244.2.7"
    api.ok("POST", SLICES, body)
    body["endpoints"][0]["conditions"] = {"ready": False, "serving": True, "terminating": True}
    api.ok("PUT", f"{SLICES}/web-2", body)
    assert api.ok("DELETE", f"{SLICES}/web-2")["status"] == "Success"
