"""Credentials for an API server, and the pool of connections that uses them.

The pool comes from the `kubernetes` package. Its API and model classes are not used, because they
decode in Python what `wire` decodes with msgspec.

Importing the package takes a quarter of the CPU time of a start, so this module is imported only
by commands that need an API server.
"""

from __future__ import annotations

import os
import socket
from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec
import urllib3
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError

from pyproxy.errors import UsageError
from pyproxy.redaction import KNOWN, without_userinfo
from pyproxy.source.credentials import Credentials, StaticCredentials, basic

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


class Access:
    """Server and credentials as they were read at one time from a kubeconfig or service account.

    `kubeconfig` is the state of that file before it was read, None without one. Raises UsageError
    if no connection can be made with them.
    """

    def __init__(
        self,
        configuration: Configuration,
        credentials: Credentials | None = None,
        kubeconfig: FileState | None = None,
    ) -> None:
        # Set first: the constructor of the pool copies them.
        configuration.socket_options = SOCKET_OPTIONS
        _authenticate_to_proxy(configuration)
        try:
            self.pool: urllib3.PoolManager = RESTClientObject(configuration).pool_manager
        except (OSError, ValueError, TypeError, AttributeError, HTTPError) as error:
            text = KNOWN.redact(str(error))
            raise UsageError(f"the API server's configuration is invalid: {text}") from None
        # Not a token file, which is read again by time. The pool reads its files when it connects.
        named = (configuration.cert_file, configuration.key_file, configuration.ssl_ca_cert)
        self.files = tuple(file_state(path) for path in named if path)
        """The states of the files that were read."""
        if kubeconfig is not None:
            self.files += (kubeconfig,)
        self._configuration = configuration
        self._credentials = credentials or StaticCredentials()

    @property
    def proxy(self) -> str:
        """The URL of the HTTP proxy, without user and password; empty for none."""
        return without_userinfo(str(self._configuration.proxy or ""))

    @property
    def host(self) -> str:
        """The URL of the server."""
        return str(self._configuration.host)

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


def split_userinfo(url: str) -> tuple[str, str]:
    """Return a URL without its user and password, and the header with them, empty for none."""
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, ""
    user, _, password = userinfo.partition(":")
    header = basic(unquote(user), unquote(password))
    KNOWN.remember(userinfo, password)
    return urlunsplit(parts._replace(netloc=host)), header


def _authenticate_to_proxy(configuration: Configuration) -> None:
    """Move user and password from the URL of an HTTP proxy to a header, which urllib3 needs."""
    # A SOCKS proxy gets them from its URL.
    if configuration.proxy and configuration.proxy.startswith(("http://", "https://")):
        configuration.proxy, header = split_userinfo(configuration.proxy)
        if header:
            configuration.proxy_headers = {"Proxy-Authorization": header}
