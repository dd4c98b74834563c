"""The choice of an HTTP proxy is that of Go's programs."""

from __future__ import annotations

import json
import re

import pytest

from pyproxy.errors import UsageError
from pyproxy.source.client import ApiStatusError
from pyproxy.source.connect import connect
from pyproxy.source.http_proxy import proxy_for

from .scripted import Script, serving

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
        ("https://10.0.0.1:6443", "10.0.0.0/255.0.0.0,10.0.0.0/0.255.255.255", False),
        ("https://10.0.0.1:6443", "::ffff:10.0.0.1", True),
        ("https://[::ffff:10.0.0.1]:6443", "10.0.0.0/8", True),
        ("https://10.0.0.1:6443", "fd00::/8", False),
        ("https://[fd00::1]:6443", "[fd00::1]", False),
        ("https://api.example.com:6443", "*example.com,*", True),
        ("https://api.example.com:6443", "*example.com", False),
        ("https://api.example.com:6443", "*:6443,*.", False),
    ],
)
def test_no_proxy(url: str, entries: str, direct: bool) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        found = proxy_for(url, {"HTTPS_PROXY": PROXY, name: entries})
        assert found == ("" if direct else PROXY)


def answer(name: str) -> Script:
    return lambda exchange: exchange.respond({"from": name, "path": exchange.path})


def test_each_server_has_its_own_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(answer("proxy")) as proxy, serving(answer("server")) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        client = connect("", f"http://192.0.2.1:8080,{server.url}")
        assert json.loads(client.get("/version", {}).read())["from"] == "proxy"
        assert client.proxy == proxy.url
        # After a refusal of the proxy, the next server is asked directly.
        proxy.script = lambda exchange: exchange.fail(503)
        with pytest.raises(ApiStatusError):
            client.get("/version", {})
        assert client.proxy == proxy.url
        assert json.loads(client.get("/version", {}).read())["from"] == "server"
        assert client.proxy == ""


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("socks5://proxy:1080", "the variable HTTPS_PROXY is a SOCKS proxy, which is not supp"),
        ("ftp://proxy:21", "the variable HTTPS_PROXY is not of the form https://HOST:PORT"),
        ("http://proxy:x", "the variable HTTPS_PROXY is not of the form https://HOST:PORT"),
        ("http://[proxy", "the variable HTTPS_PROXY is not of the form https://HOST:PORT"),
    ],
)
def test_an_unusable_proxy_is_a_usage_error(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", variable)
    with pytest.raises(UsageError, match=f"^{re.escape(text)}"):
        connect("", "https://192.0.2.1:6443")


def test_all_servers_have_the_same_user() -> None:
    with pytest.raises(UsageError, match="all URLs must have the same user and password"):
        connect("", "https://jo:pw@a:1,https://b:1")
