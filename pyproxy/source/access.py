"""Credentials for an API server, and the pool of connections that uses them.

Both come from the `kubernetes` package: its Configuration, its token hooks, its connection pool.
Its API and model classes are not used, because they decode in Python what `wire` decodes with
msgspec.

Importing the package takes a quarter of the CPU time of a start, so this module is imported only
by commands that need an API server.
"""

from __future__ import annotations

import logging
import os
import socket

import urllib3
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import ConfigException
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError

from pyproxy.errors import UsageError

log = logging.getLogger(__name__)

SOCKET_OPTIONS = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    # A dead peer is detected after 15 s without data and 3 probes 5 s apart.
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
]
"""Socket options with which the kernel detects a dead peer within 30 seconds.

Keepalive probes cover a connection that only receives, such as a watch. TCP_USER_TIMEOUT covers a
request in flight, during which no keepalive is sent. Neither detects a process that hangs while
its kernel still acknowledges: read timeouts do.
"""


class Access:
    """Credentials as they were read at one time from a kubeconfig or a service account.

    Raises UsageError if no connection can be made with them.
    """

    def __init__(self, configuration: Configuration) -> None:
        # Set first: the constructor of the pool copies them.
        configuration.socket_options = SOCKET_OPTIONS
        try:
            self.pool: urllib3.PoolManager = RESTClientObject(configuration).pool_manager
        except (OSError, ValueError, TypeError, AttributeError, HTTPError) as error:
            # The package does not check the types of a kubeconfig's values.
            raise UsageError(f"the API server's configuration is invalid: {error}") from error
        self._files = _file_states(configuration)
        self._configuration = configuration

    @property
    def host(self) -> str:
        """The URL of the server."""
        return str(self._configuration.host)

    def is_outdated(self) -> bool:
        """Return whether a certificate or key file has changed since it was read."""
        return self._files != _file_states(self._configuration)

    def authorization(self) -> str:
        """Return the value of the Authorization header, refreshed by the package's hook.

        May block, because the hook reads a token file or runs the exec plugin of a kubeconfig.
        """
        try:
            settings = self._configuration.auth_settings()
        except (OSError, ValueError, ConfigException) as error:
            # The token file may be in the middle of a replacement; the old token may still work.
            log.warning("cannot refresh the token, using the previous one: %s", error)
            return str(self._configuration.api_key.get("BearerToken", ""))
        return str(settings.get("BearerToken", {}).get("value") or "")


def _file_states(configuration: Configuration) -> tuple[tuple[int, ...], ...]:
    """Return inode, mtime in ns and size of each file that the configuration names."""
    state = []
    # Not the token of a service account, which the package's hook reads again by itself.
    for path in (configuration.cert_file, configuration.key_file, configuration.ssl_ca_cert):
        try:
            found = os.stat(path) if path else None
        except OSError:  # the file is being replaced
            found = None
        state.append((found.st_ino, found.st_mtime_ns, found.st_size) if found else ())
    return tuple(state)
