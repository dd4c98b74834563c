"""URLs of servers and proxies as users write them, with their user and password taken out."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec

from pyproxy.errors import UsageError
from pyproxy.redaction import KNOWN
from pyproxy.source.credentials import basic


class ServerUrl(msgspec.Struct, frozen=True):
    """A URL without user and password, and the header that has them, empty for none."""

    url: str
    authorization: str = ""


def server_url(text: str, where: str) -> ServerUrl:
    """Return the parts of the URL of an HTTP server.

    `where` is how errors name the URL. Raises UsageError, which does not repeat it.
    """
    try:
        parts = urlsplit(text)
        userinfo, at, host = parts.netloc.rpartition("@")
        user, _, password = userinfo.partition(":")
        KNOWN.remember(userinfo, password)
        if "@" in parts.path + parts.query + parts.fragment:
            raise UsageError(
                f"{where}: user and password may not have the characters / ? # , in a URL: write "
                "%2F %3F %23 %2C"
            )
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"{where} is not of the form https://HOST:PORT")
    header = basic(unquote(user), unquote(password)) if at else ""
    return ServerUrl(urlunsplit(parts._replace(netloc=host)), header)


def proxy_url(text: str, where: str) -> ServerUrl:
    """Return the parts of the URL of an HTTP proxy. Raises UsageError, which does not repeat it."""
    if text.startswith("socks"):
        raise UsageError(
            f"{where} is a SOCKS proxy, which is not supported: give an HTTP proxy, or add the API "
            "server's address to NO_PROXY"
        )
    return server_url(text, where)
