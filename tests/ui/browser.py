"""Chromium without a screen, which tells whatever a page does that it must not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, Request, sync_playwright

# It would look for Google's hosts at every start, and has no sandbox for root.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str | None:
    return shutil.which("chromium")


@contextmanager
def page(port: int, *, dark: bool = False) -> Iterator[Page]:
    """Open a browser's page; at the end it must have told of no error and asked nobody else."""
    wrong: list[str] = []
    ours = f"http://127.0.0.1:{port}/"

    def asked(request: Request) -> None:
        if not request.url.startswith(ours):
            wrong.append(f"asked {request.url}")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=_ARGUMENTS)
        made = browser.new_page(
            base_url=ours,
            viewport={"width": 1200, "height": 900},
            color_scheme="dark" if dark else "light",
        )
        made.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        made.on("pageerror", lambda error: wrong.append(str(error)))
        made.on("request", asked)
        try:
            yield made
        finally:
            browser.close()
    assert not wrong
