"""The choice of an HTTP proxy is that of Go's programs."""

from __future__ import annotations

import pytest

from pyproxy.source.http_proxy import proxy_for

PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    ("url", "variables", "expected"),
    [
        ("https://api:6443", {}, ""),
        ("https://api:6443", {"HTTPS_PROXY": PROXY}, PROXY),
        ("https://api:6443", {"https_proxy": PROXY}, PROXY),
        ("https://api:6443", {"HTTPS_PROXY": "http://a:1", "https_proxy": PROXY}, "http://a:1"),
        ("https://api:6443", {"HTTPS_PROXY": "proxy:3128"}, PROXY),
        ("https://api:6443", {"HTTPS_PROXY": "socks5://proxy:1080"}, "socks5://proxy:1080"),
        ("https://api:6443", {"HTTP_PROXY": PROXY, "ALL_PROXY": PROXY}, ""),
        ("http://api:8080", {"HTTP_PROXY": PROXY}, PROXY),
        ("http://api:8080", {"HTTP_PROXY": PROXY, "REQUEST_METHOD": "GET"}, ""),
        ("https://localhost:6443", {"HTTPS_PROXY": PROXY}, ""),
        ("https://127.0.0.2:6443", {"HTTPS_PROXY": PROXY}, ""),
        ("https://[::1]:6443", {"HTTPS_PROXY": PROXY}, ""),
    ],
)
def test_the_variable_follows_the_scheme(
    url: str, variables: dict[str, str], expected: str
) -> None:
    assert proxy_for(url, variables) == expected


@pytest.mark.parametrize(
    ("url", "entries", "direct"),
    [
        ("https://10.0.0.1:6443", "10.0.0.0/8", True),
        ("https://10.0.0.1:6443", "192.168.0.0/16, 10.0.0.0/24", True),
        ("https://11.0.0.1:6443", "10.0.0.0/8", False),
        ("https://[fd00::1]:6443", "fd00::/8", True),
        ("https://10.0.0.1:6443", "10.0.0.1", True),
        ("https://10.0.0.1:6443", "10.0.0.1:6443", True),
        ("https://10.0.0.1:6443", "10.0.0.1:443", False),
        ("https://[fd00::1]:6443", "[fd00::1]:6443", True),
        ("https://[fd00::1]:6443", "fd00::1", True),
        ("https://[fd00::1]:6443", "[fd00::1]:443", False),
        ("https://10.0.0.11:6443", "0.0.11", False),
        ("https://10.0.0.1:6443", ".1", False),
        ("https://api.example.com:6443", "example.com", True),
        ("https://example.com:6443", "example.com", True),
        ("https://api.example.com:6443", ".example.com", True),
        ("https://example.com:6443", ".example.com", False),
        ("https://api.example.com:6443", "*.example.com", True),
        ("https://example.com:6443", "*.example.com", False),
        ("https://notexample.com:6443", "example.com", False),
        ("https://API.Example.com:6443", "EXAMPLE.com", True),
        ("https://api.example.com:6443", "example.com:6443", True),
        ("https://api.example.com", "example.com:443", True),
        ("https://api.example.com:6443", "example.com:443", False),
        ("https://api:6443", "*", True),
        ("https://api:6443", ", ,/,:6443,10.0.0.0/99,other", False),
    ],
)
def test_no_proxy(url: str, entries: str, direct: bool) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        found = proxy_for(url, {"HTTPS_PROXY": PROXY, name: entries})
        assert found == ("" if direct else PROXY)
