"""Hosts that the page trusts; test_page.py has the server itself."""

from __future__ import annotations

import pytest

from pyproxy.ui.server import is_trusted_host


@pytest.mark.parametrize(
    ("host", "trusted"),
    [
        ("127.0.0.1:10260", True),
        ("localhost:10260", True),
        ("[::1]:10260", True),
        ("10.0.0.7", True),
        ("evil.example:10260", False),
        ("", False),
    ],
)
def test_only_addresses_and_localhost_are_trusted_hosts(host: str, trusted: bool) -> None:
    assert is_trusted_host(host) is trusted
