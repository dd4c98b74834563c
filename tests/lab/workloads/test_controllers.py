"""The controllers at a real API server."""

from __future__ import annotations

import asyncio
import threading

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pyproxy_lab import reflector
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.workloads.controllers import Controllers
from pyproxy_lab.workloads.work_queue import Key, WorkQueue

from tests.lab.api import SERVICES, Api, Json, service
from tests.lab.workloads.cluster_model import workload
from tests.waiting import until


def test_an_object_that_no_controller_understands_stops_no_other() -> None:
    broken = workload("broken")
    broken["metadata"]["namespace"] = "default"
    broken["spec"] = {"replicas": "many"}
    with ApiServer.running(Settings()) as server, Controllers.running(server.url):
        api = Api(server.url)
        server.load([broken])
        api.ok("POST", "/apis/apps/v1/namespaces/default/deployments", workload("web", replicas=2))
        path = "/api/v1/namespaces/default/pods"
        until(lambda: len(api.ok("GET", path)["items"]) == 2, "two pods")


def test_a_call_in_a_thread_has_ended_when_the_block_is_left() -> None:
    began, done, left = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        left.wait(0.2)
        done.set()

    with reflector.in_thread(asyncio.to_thread(work), "work"):
        assert began.wait(60)
    assert done.is_set()


def test_work_that_fails_is_logged_once_and_repeated(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Key("services", "default", "bad"), Key("services", "default", "good")
    worked: list[Key] = []

    async def work(key: Key) -> None:
        worked.append(key)
        if key == bad and worked.count(bad) in {1, 2, 4}:
            raise ValueError("no such thing")

    async def run() -> None:
        queue = WorkQueue()
        queue.add(bad)
        queue.add(good)
        task = asyncio.create_task(queue.process(work))
        async with asyncio.timeout(60):
            for tries in (3, 5):
                while worked.count(bad) < tries:
                    await asyncio.sleep(0.01)
                queue.add(bad)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert worked[:2] == [bad, good]
    # Once for the first two failures, and once for the one after a success.
    assert caplog.messages.count("cannot reconcile services default/bad: trying again") == 2


def test_a_change_that_a_callback_does_not_understand_ends_no_watch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found: list[str] = []

    def changed(old: Json, new: Json) -> None:
        name = (new or old)["metadata"]["name"]
        if name == "bad":
            raise KeyError(name)
        found.append(name)

    async def follow(url: str) -> None:
        async with reflector.session(url, "") as session, asyncio.TaskGroup() as group:
            await reflector.follow(session, group, [("/api/v1/services", {}, changed)])

    message = "cannot handle a change of /api/v1/services default/bad"
    with ApiServer.running(Settings()) as server:
        api = Api(server.url)
        api.ok("POST", SERVICES, service("bad"))
        with reflector.in_thread(follow(server.url), "follow"):
            until(lambda: message in caplog.messages, "the list's failure")
            patch = {"metadata": {"labels": {"a": "b"}}}
            api.ok("PATCH", f"{SERVICES}/bad", patch, "application/merge-patch+json")
            api.ok("POST", SERVICES, service("good"))
            until(lambda: "good" in found, "the watch after two failures")
    assert caplog.messages.count(message) == 1


def test_a_list_that_cannot_be_read_is_asked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    lists = iter(
        [
            b'{"items": [{}]}',
            b'{"items": [{}]}',
            b'{"items": [], "metadata": {"resourceVersion": "1"}}',
        ]
    )

    async def respond(request: web.Request) -> web.Response:
        if "watch" in request.query:
            await asyncio.Event().wait()
        return web.Response(body=next(lists))

    async def run() -> None:
        application = web.Application()
        application.router.add_get("/api/v1/pods", respond)
        async with TestServer(application) as server, asyncio.timeout(60):
            listed = asyncio.Event()
            async with reflector.session(str(server.make_url("")), "") as session:
                following = reflector.Reflector(
                    session, "/api/v1/pods", {}, reflector.unnoticed, listed
                )
                task = asyncio.create_task(following.run())
                await listed.wait()
                task.cancel()

    asyncio.run(run())
    assert caplog.messages == ["cannot follow /api/v1/pods: listing again"]
