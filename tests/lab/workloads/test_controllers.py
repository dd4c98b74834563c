"""The controllers at a real API server."""

from __future__ import annotations

import asyncio
import threading

from pyproxy_lab import reflector
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.workloads.controllers import Controllers

from tests.lab.api import Api
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
