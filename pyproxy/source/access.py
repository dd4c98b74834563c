"""A server of the API, the credentials for it, and the pool of connections that uses them."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError

from pyproxy.errors import UsageError
from pyproxy.redaction import KNOWN
from pyproxy.source.credentials import Credentials, StaticCredentials
from pyproxy.source.server_urls import ServerUrl

SOCKET_OPTIONS = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    # A dead peer is detected after 15 s without data and 3 probes 5 s apart.
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", 15),
            ("TCP_KEEPINTVL", 5),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 30_000),
        )
        # The kubectl plugin runs on systems that lack some of them.
        if hasattr(socket, name)
    ),
]
"""Socket options with which the kernel detects a dead peer within 30 seconds.

Keepalive probes cover a connection that only receives, such as a watch. TCP_USER_TIMEOUT covers a
request in flight, during which no keepalive is sent. Neither detects a process that hangs while
its kernel still acknowledges: read timeouts do.
"""


_POOL_SIZE = 10
"""Connections that a pool keeps: one for each thread that sends requests, and some more."""

_NO_PROXY = ServerUrl("")


class ServerConfig(msgspec.Struct, frozen=True):
    """The URL of a server and its TLS settings; a text is empty if it is not set.

    The files are paths of PEM files, which are read for each connection. Without `ca_file` the
    system's authorities are trusted. `proxy` is the URL of the HTTP proxy on the way.
    """

    host: str = "http://localhost"
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    verify: bool = True
    tls_server_name: str = ""
    proxy: str = ""


class Access:
    """Servers and credentials as they were read at one time from flags, kubeconfig or pod.

    `proxies` has the HTTP proxy for the URLs of servers that need one. `kubeconfig` is the state of
    that file before it was read, None without one. Raises UsageError if no connection can be made
    with them.
    """

    def __init__(
        self,
        config: ServerConfig,
        credentials: Credentials | None = None,
        kubeconfig: FileState | None = None,
        proxies: Mapping[str, ServerUrl] | None = None,
    ) -> None:
        self._proxies = proxies or {}
        self._pools = {
            proxy: _pool(config, proxy) for proxy in {_NO_PROXY, *self._proxies.values()}
        }
        # Not a token file, which is read again by time. The pool reads its files when it connects.
        named = (config.cert_file, config.key_file, config.ca_file)
        self.files = tuple(file_state(path) for path in named if path)
        """The states of the files that were read."""
        if kubeconfig is not None:
            self.files += (kubeconfig,)
        self.host = config.host
        """The URL of the server."""
        self._credentials = credentials or StaticCredentials()

    @property
    def pools(self) -> Iterable[urllib3.PoolManager]:
        """All pools of connections."""
        return self._pools.values()

    def pool(self, host: str) -> urllib3.PoolManager:
        """Return the pool for the URL of a server."""
        return self._pools[self._proxies.get(host, _NO_PROXY)]

    def proxy(self, host: str) -> str:
        """Return the URL of the HTTP proxy for the URL of a server; empty for none."""
        return self._proxies.get(host, _NO_PROXY).url

    def is_outdated(self) -> bool:
        """Return whether one of the files has changed, or the credentials have expired."""
        return self._credentials.is_outdated or self.files != self.files_now()

    def files_now(self) -> tuple[FileState, ...]:
        """Return the states of the same files now. Any thread; does not block for long."""
        return tuple(file_state(old.path, old) for old in self.files)

    def authorization(self) -> str:
        """Return the value of the Authorization header, empty for none.

        May block, because it reads a token file or runs an exec plugin. Raises CredentialError.
        """
        return self._credentials.authorization()


class FileState(msgspec.Struct, frozen=True):
    """A file at one time, by inode, mtime in ns and size; all 0 for a file that does not exist.

    A renamed file and a symbolic link to another file, as of a ConfigMap, differ in the inode.
    """

    path: str
    inode: int = 0
    modified: int = 0
    size: int = 0


def file_state(path: str, missing: FileState | None = None) -> FileState:
    """Return the state of a file; `missing` if it does not exist and that is given.

    A file that is gone is being replaced, and its former content stays in use.
    """
    try:
        found = os.stat(path)
    except OSError:
        return missing or FileState(path)
    return FileState(path, found.st_ino, found.st_mtime_ns, found.st_size)


def _pool(config: ServerConfig, proxy: ServerUrl) -> urllib3.PoolManager:
    options: dict[str, Any] = {
        "maxsize": _POOL_SIZE,
        "socket_options": SOCKET_OPTIONS,
        "cert_reqs": ssl.CERT_REQUIRED if config.verify else ssl.CERT_NONE,
        "ca_certs": config.ca_file or None,
        "cert_file": config.cert_file or None,
        "key_file": config.key_file or None,
    }
    if config.tls_server_name:
        options["server_hostname"] = config.tls_server_name
    try:
        if not proxy.url:
            return urllib3.PoolManager(**options)
        header = proxy.authorization
        headers = {"Proxy-Authorization": header} if header else None
        return urllib3.ProxyManager(proxy.url, proxy_headers=headers, **options)
    except (OSError, ValueError, TypeError, AttributeError, HTTPError) as error:
        text = KNOWN.redact(str(error))
        raise UsageError(f"the API server's configuration is invalid: {text}") from None
