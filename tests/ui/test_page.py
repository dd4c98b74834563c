"""The page of a real agent, and of a fake one with hostile names, in a real browser."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
from playwright.sync_api import Page, expect

from pyproxy.config.settings import ListenAddress
from pyproxy.inspect.turns import Turns
from pyproxy.model.address import parse_address
from pyproxy.ui.server import PageServer
from tests.agent.live import endpoint_slice, service
from tests.inspect.node import SITE, InspectedNode, inspected_node

from . import snapshots
from .browser import chromium, page
from .snapshots import HOSTILE, FakeAgent

PORT = 10260
T = TypeVar("T")

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(chromium() is None, reason="needs chromium"),
]


@pytest.fixture(scope="module")
def node() -> Iterator[InspectedNode]:
    with inspected_node(f"--ui-bind-address={PORT}", "--endpoint-counters") as made:
        made.create(
            service("web", "10.96.7.1"),
            endpoint_slice("web", ["10.244.1.11", "10.244.2.11"]),
            service("idle", "10.96.7.2"),
        )
        yield made


def look(node: InspectedNode, see: Callable[[Page], T], *, dark: bool = False) -> T:
    """Run `see` on a browser page, in the node's network namespace."""

    def there() -> T:
        with page(PORT, dark=dark) as made:
            return see(made)

    return node.cluster.network.namespace(SITE).call(there)


def test_the_search_refreshes_while_typing(node: InspectedNode) -> None:
    def see(made: Page) -> None:
        made.goto("/")
        rows = made.locator("[data-part=services] tbody tr")
        expect(rows.filter(has_text="shop/idle")).to_have_count(1)
        made.keyboard.press("/")
        made.keyboard.type("shop/we")
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("shop/web")
        assert made.url.endswith("?q=shop%2Fwe&filter=")
        made.get_by_label("Search").fill("shop")
        made.get_by_label("Show").select_option("no-endpoints")
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("no endpoint")

    look(node, see)


def test_the_diagram_of_a_service_connects_addresses_and_endpoints(node: InspectedNode) -> None:
    def see(made: Page) -> None:
        made.goto("/")
        link = made.get_by_role("link", name="shop/web")
        link.focus()
        made.keyboard.press("Enter")
        diagram = made.locator("svg.diagram")
        expect(diagram).to_have_attribute("aria-label", "http: 1 addresses, 2 of 2 endpoints used")
        expect(diagram.locator(".box.frontend")).to_contain_text("10.96.7.1:80")
        expect(diagram.locator(".box.used")).to_have_count(2)
        expect(diagram.locator(".line.used")).to_have_count(2)

    look(node, see)


def test_a_change_is_shown_without_a_reload(node: InspectedNode) -> None:
    def see(made: Page) -> None:
        made.goto("/services/shop/web")
        boxes = made.locator("svg.diagram .box.used")
        expect(boxes).to_have_count(2)
        changed = endpoint_slice("web", ["10.244.1.11"])
        node.api.replace(node.path(changed), changed)
        expect(boxes).to_have_count(1)
        made.goto("/")
        expect(made.locator("[data-chart] canvas")).to_have_count(3)

    look(node, see)


def test_the_page_shows_the_steps_of_explain(node: InspectedNode) -> None:
    steps = node.command("explain", "shop/idle", "-o", "json").json["steps"]
    wanted = [(step["name"], step["result"], step["message"]) for step in steps]

    def see(made: Page) -> list[tuple[str, ...]]:
        made.goto("/services/shop/idle")
        made.get_by_role("link", name="Explain the path").click()
        expect(made.get_by_role("heading", level=1)).to_have_text("shop/idle")
        expect(made.locator(".note.bad")).to_have_text("the Service has no EndpointSlice")
        rows = made.locator("tbody tr")
        return [tuple(row.locator("td").all_inner_texts()) for row in rows.all()]

    shown = look(node, see)
    # The page does not query the API server.
    differing = [step for step, row in zip(wanted, shown, strict=True) if step != row]
    assert [name for name, _, _ in differing] == ["selector"]


def test_the_theme_can_be_switched_and_is_kept(node: InspectedNode) -> None:
    def background(made: Page) -> str:
        return str(made.evaluate("getComputedStyle(document.body).backgroundColor"))

    def see(made: Page) -> tuple[str, str, str]:
        made.goto("/")
        first = background(made)
        made.get_by_label("Switch between light and dark").click()
        second = background(made)
        made.reload()
        return first, second, background(made)

    light, dark, kept = look(node, see)
    assert dark == kept != light
    assert look(node, see, dark=True) == (dark, light, light)


def test_foreign_hosts_and_other_methods_are_rejected(node: InspectedNode) -> None:
    def status(method: str, path: str, host: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
        connection.request(method, path, headers={"Host": host})
        return connection.getresponse().status

    def statuses() -> list[int]:
        return [
            status("GET", "/", f"127.0.0.1:{PORT}"),
            status("GET", "/", "evil.example"),
            status("GET", "/static/../../cli.py", "localhost"),
            status("GET", "/services/shop/none", "localhost"),
            status("GET", "/?page=many", "localhost"),
            status("POST", "/", "localhost"),
            status("DELETE", "/services/shop/web", "localhost"),
        ]

    seen = node.cluster.network.namespace(SITE).call(statuses)
    assert seen == [200, 403, 404, 404, 404, 501, 501]


@contextmanager
def serving(agent: FakeAgent) -> Iterator[int]:
    server = PageServer(ListenAddress(parse_address("127.0.0.1"), 0), agent, Turns())
    server.start()
    try:
        yield server.port
    finally:
        server.stop()


def test_a_hostile_name_is_text() -> None:
    agent = FakeAgent(snapshots.snapshot(snapshots.service(HOSTILE)))
    with serving(agent) as port, page(port) as made:
        made.goto("/")
        link = made.get_by_role("link", name=f"shop/{HOSTILE}")
        expect(link).to_be_visible()
        link.click()
        expect(made.get_by_role("heading", level=1)).to_have_text(f"shop/{HOSTILE}")
        assert made.locator("main img, main script").count() == 0
        assert made.title() == f"pyproxy: shop/{HOSTILE}"
