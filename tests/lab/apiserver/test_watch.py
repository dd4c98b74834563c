from __future__ import annotations

import pytest
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings

from tests.lab.api import MERGE, SERVICES, Api, Json, brief, eventually, service

ALL = "/api/v1/services"


def version(api: Api) -> str:
    return str(api.ok("GET", ALL)["metadata"]["resourceVersion"])


def label(api: Api, name: str, value: str | None) -> Json:
    change = {"metadata": {"labels": {"team": value}}}
    return api.ok("PATCH", f"{SERVICES}/{name}", change, MERGE)


def test_a_watch_goes_on_from_a_version(api: Api) -> None:
    api.ok("POST", SERVICES, service("before"))
    since = version(api)
    api.ok("POST", SERVICES, service("between"))
    with api.watch(f"{ALL}?watch=true&resourceVersion={since}") as watch:
        api.ok("POST", SERVICES, service("after"))
        events = watch.until(lambda events: len(events) == 2)
    assert brief(events) == [("ADDED", "between"), ("ADDED", "after")]


@pytest.mark.parametrize("query", ["", "&resourceVersion=0"])
def test_a_watch_from_no_version_begins_with_what_exists(api: Api, query: str) -> None:
    with api.watch(f"{ALL}?watch=true{query}") as watch:
        events = watch.until(lambda events: len(events) == 1)
    assert brief(events) == [("ADDED", "kubernetes")]


def test_a_label_selector_turns_changes_into_additions_and_deletions(api: Api) -> None:
    api.ok("POST", SERVICES, service("web"))
    path = f"{ALL}?watch=true&labelSelector=team%3Da&resourceVersion={version(api)}"
    with api.watch(path) as watch:
        api.ok("POST", SERVICES, service("other"))
        label(api, "web", "a")
        api.ok("PATCH", f"{SERVICES}/web", {"metadata": {"annotations": {"x": "1"}}}, MERGE)
        left = label(api, "web", "b")
        label(api, "web", "a")
        api.ok("DELETE", f"{SERVICES}/web")
        events = watch.until(lambda events: len(events) == 5)
    assert [kind for kind, _ in brief(events)] == [
        "ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED",
    ]  # fmt: skip
    # A selecting watch gets the object as it was last selected, with the version at which it left.
    meta = events[2]["object"]["metadata"]
    assert meta["labels"] == {"team": "a"}
    assert meta["resourceVersion"] == left["metadata"]["resourceVersion"]


def test_a_field_selector_and_a_namespace_bound_a_watch(api: Api) -> None:
    api.ok("POST", "/api/v1/namespaces", {"metadata": {"name": "other"}})
    since = version(api)
    query = f"?watch=true&fieldSelector=metadata.name%3Dweb&resourceVersion={since}"
    with api.watch(SERVICES + query) as watch:
        api.ok("POST", "/api/v1/namespaces/other/services", service("web"))
        api.ok("POST", SERVICES, service("db"))
        api.ok("POST", SERVICES, service("web"))
        events = watch.until(bool)
    assert [e["object"]["metadata"]["namespace"] for e in events] == ["default"]


def test_a_streaming_list_ends_its_initial_events_with_a_bookmark(api: Api) -> None:
    api.ok("POST", SERVICES, service("web"))
    now = version(api)
    path = (
        f"{ALL}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        "&allowWatchBookmarks=true"
    )
    with api.watch(path) as watch:
        events = watch.until(lambda events: len(events) == 3)
        api.ok("DELETE", f"{SERVICES}/web")
        events = watch.until(lambda events: len(events) == 4)
    assert brief(events) == [("ADDED", "kubernetes"), ("ADDED", "web"), ("DELETED", "web")]
    assert events[2]["type"] == "BOOKMARK"
    assert events[2]["object"]["metadata"] == {
        "resourceVersion": now,
        "annotations": {"k8s.io/initial-events-end": "true"},
    }


def test_a_streaming_list_must_say_how_old_it_may_be(api: Api) -> None:
    response = api("GET", f"{ALL}?watch=true&sendInitialEvents=true")
    assert response.status == 422
    assert "resourceVersionMatch" in response.body["message"]


def revision(obj: Json) -> int:
    return int(obj["metadata"]["resourceVersion"])


def test_bookmarks_come_at_intervals_and_only_when_asked_for() -> None:
    with ApiServer.running(Settings(bookmark_interval=0.6)) as server:
        api = Api(server.url)
        now = version(api)
        path = f"{ALL}?watch=true&resourceVersion={now}"
        with api.watch(path) as silent, api.watch(f"{path}&allowWatchBookmarks=true") as watch:
            made = api.ok("POST", "/api/v1/nodes", {"metadata": {"name": "n"}})
            # A bookmark gives the version that other kinds have moved on to.
            events = watch.until(
                lambda events: len(events) > 1 and revision(events[-1]["object"]) >= revision(made)
            )
            assert silent.events == []
        assert {e["type"] for e in events} == {"BOOKMARK"}


def test_a_watch_from_forgotten_history_is_refused(server: ApiServer, api: Api) -> None:
    since = version(api)
    api.ok("POST", SERVICES, service("web"))
    server.forget_history()
    with api.watch(f"{ALL}?watch=true&resourceVersion={since}") as watch:
        events = watch.until_ended()
    assert [e["type"] for e in events] == ["ERROR"]
    assert (events[0]["object"]["code"], events[0]["object"]["reason"]) == (410, "Expired")
    with api.watch(f"{ALL}?watch=true&resourceVersion={version(api)}&timeoutSeconds=1") as watch:
        assert watch.until_ended() == []


def test_history_is_bounded() -> None:
    with ApiServer.running(Settings(history=5)) as server:
        api = Api(server.url)
        first = version(api)
        for number in range(6):
            api.ok("POST", SERVICES, service(f"s{number}"))
        with api.watch(f"{ALL}?watch=true&resourceVersion={first}") as watch:
            assert watch.until_ended()[0]["object"]["reason"] == "Expired"


def test_a_watch_from_the_future_is_refused(api: Api) -> None:
    response = api("GET", f"{ALL}?watch=true&resourceVersion=999999")
    assert response.status == 504
    assert response.body["reason"] == "Timeout"


def test_watches_can_be_ended_and_their_places_are_freed(server: ApiServer, api: Api) -> None:
    with api.watch(f"{ALL}?watch=true") as watch, api.watch(f"{ALL}?watch=true") as other:
        eventually(lambda: server.watch_count == 2)
        server.close_watches()
        watch.until_ended()
        other.until_ended()
    with api.watch(f"{ALL}?watch=true"):
        eventually(lambda: server.watch_count == 1)
    # The client left: nothing is sent, and still the watch must not stay.
    eventually(lambda: server.watch_count == 0)


def test_a_change_that_changes_nothing_is_no_event(api: Api) -> None:
    label(api, api.ok("POST", SERVICES, service("web"))["metadata"]["name"], "a")
    since = version(api)
    with api.watch(f"{ALL}?watch=true&resourceVersion={since}") as watch:
        label(api, "web", "a")
        api.ok("PUT", f"{SERVICES}/web", api.ok("GET", f"{SERVICES}/web"))
        assert version(api) == since
        label(api, "web", "b")
        events = watch.until(bool)
    assert len(events) == 1


def test_all_watchers_see_the_same_changes_in_the_same_order(server: ApiServer, api: Api) -> None:
    since = version(api)
    path = f"{ALL}?watch=true&resourceVersion={since}"
    with api.watch(path) as one, api.watch(path) as two, api.watch(path) as three:
        api.ok("POST", SERVICES, service("web"))
        for number in range(300):
            label(api, "web", f"v{number}")
        seen = [watch.until(lambda events: len(events) == 301) for watch in (one, two, three)]
    assert seen[0] == seen[1] == seen[2]
    values = [e["object"]["metadata"].get("labels", {}).get("team") for e in seen[0]]
    assert values == [None, *(f"v{number}" for number in range(300))]
