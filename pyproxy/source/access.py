"""Who we are to an API server, and the pool of connections that the server knows us by.

Both are the `kubernetes` package's: its Configuration, its token hooks, its connection pool. Its
API and model classes are left alone, for they decode with Python what `wire` decodes with msgspec.

The package takes a quarter of a start's CPU time to import, so who asks no server does without
this module.
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
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
]
"""A peer that is gone without a word is noticed by the kernel within 30 seconds.

Keepalive probes speak for a connection that only receives, as a watch does; TCP_USER_TIMEOUT for
one with a request on its way, which keepalive does not cover. Neither notices a process that
hangs while its kernel goes on acknowledging: that is what read timeouts are for.
"""


class Access:
    """What was read from a kubeconfig or a pod's service account at one time.

    Raises UsageError where no connection could ever be made with it.
    """

    def __init__(self, configuration: Configuration) -> None:
        configuration.socket_options = SOCKET_OPTIONS
        try:
            self.pool: urllib3.PoolManager = RESTClientObject(configuration).pool_manager
        except (OSError, ValueError, TypeError, AttributeError, HTTPError) as error:
            # A kubeconfig's values reach this far as they stand there, whatever their type.
            raise UsageError(f"the API server's configuration is not usable: {error}") from error
        self._files = _state_of_files(configuration)
        self._configuration = configuration

    @property
    def host(self) -> str:
        """The server's address."""
        return str(self._configuration.host)

    def is_outdated(self) -> bool:
        """Tell whether a certificate or key that was read has changed on disk."""
        return self._files != _state_of_files(self._configuration)

    def authorization(self) -> str:
        """Give the credentials as a header's value, refreshed by the package's own hook."""
        try:
            settings = self._configuration.auth_settings()
        except (OSError, ValueError, ConfigException) as error:
            # A token file is being exchanged just now: what was read from it last may still do.
            log.warning("the token cannot be refreshed, the last one is used: %s", error)
            return str(self._configuration.api_key.get("BearerToken", ""))
        return str(settings.get("BearerToken", {}).get("value") or "")


def _state_of_files(configuration: Configuration) -> tuple[tuple[int, ...], ...]:
    """Tell the files apart that a configuration names from what they were before or after."""
    state = []
    for path in (configuration.cert_file, configuration.key_file, configuration.ssl_ca_cert):
        try:
            found = os.stat(path) if path else None
        except OSError:  # it is being exchanged just now
            found = None
        state.append((found.st_ino, found.st_mtime_ns, found.st_size) if found else ())
    return tuple(state)
