"""Headless Chromium that fails a test on script errors and on requests to other hosts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, Request, expect, sync_playwright

from tests.waiting import PATIENCE

# Without these Chromium connects to Google's hosts; its sandbox does not work for root.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


_MILLISECONDS = 1000
# Playwright's own limit of five seconds is too short on a loaded machine.
expect.set_options(timeout=PATIENCE * _MILLISECONDS)


def chromium() -> str | None:
    return shutil.which("chromium")


@contextmanager
def page(port: int, *, dark: bool = False) -> Iterator[Page]:
    """Open a page; fail at the end on any error and on any request to another host."""
    faults: list[str] = []
    base_url = f"http://127.0.0.1:{port}/"

    def on_request(request: Request) -> None:
        if not request.url.startswith(base_url):
            faults.append(f"requested {request.url}")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=_ARGUMENTS, timeout=PATIENCE * _MILLISECONDS
        )
        made = browser.new_page(
            base_url=base_url,
            viewport={"width": 1200, "height": 900},
            color_scheme="dark" if dark else "light",
        )
        made.set_default_timeout(PATIENCE * _MILLISECONDS)
        made.on(
            "console",
            lambda message: faults.append(message.text) if message.type == "error" else None,
        )
        made.on("pageerror", lambda error: faults.append(str(error)))
        made.on("request", on_request)
        try:
            yield made
        finally:
            browser.close()
    assert not faults
