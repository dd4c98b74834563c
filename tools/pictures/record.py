"""Record a lab: five nodes, changes, and faults one after the other, with Prometheus scraping."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Event

import msgspec
from playwright.sync_api import sync_playwright
from pyproxy_lab.client import ENDPOINT_SLICES, SERVICES, ApiClient, JsonObject, collection
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.relay import relaying
from pyproxy_lab.topology import numbered_site

from tools.pictures import prometheus
from tools.pictures.faults import FAULTS, MINUTES, NAMESPACE, NFT_WRAPPER, NODES, Stage, service

_SERVICES = 200
_ENDPOINTS = 4
_CHANGES_PER_SECOND = 2
_SHOWN = "PyproxySyncFailing"
_METRICS = ("127.0.0.1", 10249)
_ALERTS = Path("deploy/monitoring/alerts.yaml")


class Recording(msgspec.Struct, frozen=True):
    """The times at which a recording began, its first fault began, and it ended, since 1970."""

    start: float
    first_fault: float
    end: float


def record(program: prometheus.Program, folder: Path, minute: float) -> None:
    """Run the lab to its end; `folder` gets Prometheus' data, times.json and alerts.png (root).

    `minute` is the length of a minute in seconds: with less than 60 fewer alerts fire.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "data", ignore_errors=True)
    ended = Event()
    with ExitStack() as stack:
        stage = stack.enter_context(_lab(folder / "lab", ended))
        stack.callback(ended.set)
        sites = [numbered_site(number + 1) for number in range(NODES)]
        targets = {
            site.node: stack.enter_context(_metrics(stage.namespace(site.name))) for site in sites
        }
        _create(stage.api)
        stage.every(1 / _CHANGES_PER_SECOND, partial(_change, stage.api, random.Random(1)))
        shutil.copy(_ALERTS, folder)
        scraping = prometheus.configuration(targets, _ALERTS.name)
        log = folder / "prometheus.log"
        server = stack.enter_context(prometheus.running(program, folder / "data", log, scraping))
        start = time.time()
        for fault in FAULTS:
            _wait_until(start + minute * fault.minute)
            fault.begin(stage, fault.node)
            print(f"minute {fault.minute}: {fault.begin.__name__[1:]} {fault.node}", flush=True)
        _wait_until(start + minute * MINUTES)
        times = Recording(start, start + minute * FAULTS[0].minute, time.time())
        (folder / "times.json").write_bytes(msgspec.json.encode(times))
        _photograph(f"{server.url}/classic/alerts", folder)


@contextmanager
def _lab(folder: Path, ended: Event) -> Iterator[Stage]:
    """Run `pyproxy lab up` in which nft can be broken, and give what the faults need."""
    tools = folder.with_name("bin")
    tools.mkdir(exist_ok=True)
    for old in tools.glob("broken-*"):
        old.unlink()
    wrapper = tools / "nft"
    wrapper.write_text(NFT_WRAPPER.format(folder=tools.absolute(), nft=shutil.which("nft")))
    wrapper.chmod(0o755)
    command = [sys.executable, "-m", "pyproxy", "lab", "up", "--nodes", str(NODES)]
    path = f"{tools.absolute()}:{os.environ['PATH']}"
    process = subprocess.Popen(
        [*command, "--state", str(folder.absolute())],
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if process.stdout is None or "ready" not in process.stdout.readline():
            raise RuntimeError("the lab has not started")
        yield Stage(process.pid, _api(folder / "admin.conf"), tools, ended)
    finally:
        process.terminate()
        process.wait()


def _api(path: Path) -> ApiClient:
    kubeconfig = msgspec.json.decode(path.read_bytes())
    server = kubeconfig["clusters"][0]["cluster"]["server"]
    return ApiClient(server, kubeconfig["users"][0]["user"]["token"])


@contextmanager
def _metrics(node: Namespace) -> Iterator[str]:
    """Relay an address of this machine to the metrics of a node's agent."""
    listener = socket.create_server(("127.0.0.1", 0))
    with ExitStack() as stack:
        node.call(lambda: stack.enter_context(relaying(listener, _METRICS)))
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def _create(api: ApiClient) -> None:
    api.ensure("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    for number in range(_SERVICES):
        api.create(collection(NAMESPACE, SERVICES), service(f"s{number}"))
        api.create(collection(NAMESPACE, ENDPOINT_SLICES), _slice(number, random.Random(number)))


def _change(api: ApiClient, choice: random.Random) -> None:
    """Replace the endpoints of a Service, as a rolling update does."""
    number = choice.randrange(_SERVICES)
    api.replace(f"{collection(NAMESPACE, ENDPOINT_SLICES)}/s{number}-1", _slice(number, choice))


def _slice(number: int, choice: random.Random) -> JsonObject:
    """Return a slice with the time of its change, as the EndpointSlice controller writes it."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    hosts = choice.sample(range(20, 250), _ENDPOINTS)
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"s{number}-1",
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": f"s{number}"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": now},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [
            {"addresses": [f"10.244.{host % NODES + 1}.{host}"], "conditions": {"ready": True}}
            for host in hosts
        ],
    }


def _wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


def _photograph(url: str, folder: Path) -> None:
    """Save what Chromium shows of Prometheus' page of alerts, and of one alert on it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1100, "height": 700})
        page.goto(url)
        page.screenshot(path=folder / "alerts.png", full_page=True)
        page.click("div.show-annotations")
        page.click(f"text={_SHOWN}")
        rows = page.locator("tr.alert_details:visible").bounding_box()
        head = page.locator(f"tr.alert_header:has-text('{_SHOWN}')").bounding_box()
        if rows is None or head is None:
            raise RuntimeError(f"{url} does not show {_SHOWN}")
        height = head["height"] + rows["height"]
        page.screenshot(path=folder / "alert.png", full_page=True, clip={**head, "height": height})
        browser.close()
