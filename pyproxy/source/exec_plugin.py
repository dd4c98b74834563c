"""Run the exec plugin of a kubeconfig, with bounds on its time and output.

Facts: the API client.authentication.k8s.io and plugin/pkg/client/auth/exec of client-go v0.36.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from pyproxy.redaction import KNOWN
from pyproxy.source.credentials import CredentialError, bearer

log = logging.getLogger(__name__)

TIMEOUT = 30.0
"""Seconds after which a plugin is killed."""

LARGEST_OUTPUT = 1 << 20
"""Bytes of a plugin's output; a token and a certificate have a few KB."""

SHORTEST_INTERVAL = 10.0
"""Seconds between two runs of one plugin whose token expires."""

_LEEWAY = 10.0


class _Variable(msgspec.Struct):
    name: str
    value: str = ""


class ExecConfig(msgspec.Struct, rename="camel"):
    """The section `exec` of a kubeconfig's user."""

    command: str
    api_version: str
    args: list[str] | None = None
    env: list[_Variable] | None = None
    provide_cluster_info: bool = False


class ExecStatus(msgspec.Struct, rename="camel"):
    """The part of a plugin's output with the credentials."""

    token: str | None = None
    client_certificate_data: str | None = None
    client_key_data: str | None = None
    expiration_timestamp: str | None = None


class _ExecCredential(msgspec.Struct, rename="camel"):
    api_version: str
    kind: str
    status: ExecStatus


class ExecPlugin:
    """Credentials from a program.

    `where` is how messages name the section, `folder` the kubeconfig's, and `cluster` the cluster's
    section for plugins that ask for it. The constructor runs the plugin. If that fails, the
    credentials are outdated from the start and raise the error, so that each request tries again.
    """

    def __init__(
        self,
        config: ExecConfig,
        where: str,
        folder: str,
        cluster: dict[str, Any],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._where = where
        self._folder = folder
        self._info = _exec_info(config, cluster)
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._header = ""
        self._refresh_at: float | None = None
        self._logged = ""
        self.status = ExecStatus()
        self._error = ""
        try:
            self._refresh()
        except CredentialError as error:
            self._error = str(error)

    @property
    def is_outdated(self) -> bool:
        """Whether the first run has failed, or a client certificate has expired."""
        expired = self._refresh_at is not None and self._wall_clock() >= self._refresh_at
        return bool(self._error) or (expired and not self._header)

    def authorization(self) -> str:
        """Return the header, after another run of the plugin if the token expires."""
        if self._error:
            raise CredentialError(self._error)
        with self._lock:
            due = self._refresh_at is not None and self._wall_clock() >= self._refresh_at
            if due and self._header:
                try:
                    self._refresh()
                except CredentialError as error:
                    self._refresh_at = self._wall_clock() + SHORTEST_INTERVAL
                    if str(error) != self._logged:
                        log.warning("cannot get a new token, using the previous one: %s", error)
                    self._logged = str(error)
                else:
                    self._logged = ""
            return self._header

    def _refresh(self) -> None:
        status = self._parsed(self._run())
        # The values of the last line of defence, before anything can fail with them.
        KNOWN.remember(status.token or "", status.client_key_data or "")
        if status.token:
            self._header = bearer(status.token, f"{self._where}: output of {self._config.command}")
        elif not (status.client_certificate_data and status.client_key_data):
            raise self._failed("returned neither a token nor a certificate with its key")
        self.status = status
        self._refresh_at = self._expiry(status.expiration_timestamp)

    def _expiry(self, text: str | None) -> float | None:
        if not text:
            return None
        try:
            expires = datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError):
            raise self._failed("returned an expirationTimestamp that is not RFC 3339") from None
        return max(expires - _LEEWAY, self._wall_clock() + SHORTEST_INTERVAL)

    def _parsed(self, output: bytes) -> ExecStatus:
        try:
            found = msgspec.json.decode(output, type=_ExecCredential)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # Without the decoder's text, because the output contains a credential.
            raise self._failed("did not return an ExecCredential in JSON") from None
        if found.kind != "ExecCredential" or found.api_version != self._config.api_version:
            raise self._failed(f"did not return an ExecCredential of {self._config.api_version}")
        return found.status

    def _run(self) -> bytes:
        """Run the plugin and return its output. Its stderr may have credentials, and is dropped."""
        variables = {each.name: each.value for each in self._config.env or ()}
        try:
            process = subprocess.Popen(
                [self._config.command, *(self._config.args or ())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=self._folder or None,
                env={**os.environ, **variables, "KUBERNETES_EXEC_INFO": self._info},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "invalid arguments"
            raise self._failed(f"cannot be started: {reason}") from None
        deadline = time.monotonic() + TIMEOUT
        try:
            output = self._output(process, deadline)
            status = process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise self._failed(f"did not end within {TIMEOUT:.0f} s") from None
        finally:
            _release(process)
        if status:
            raise self._failed(f"exited with status {status}: run it to see its messages")
        return output

    def _output(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        assert process.stdout is not None  # noqa: S101 (it is a PIPE)
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        output = bytearray()
        while True:
            rest = deadline - time.monotonic()
            if rest <= 0 or not poll.poll(rest * 1000):
                raise subprocess.TimeoutExpired(self._config.command, TIMEOUT)
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                return bytes(output)
            output += chunk
            if len(output) > LARGEST_OUTPUT:
                raise self._failed(f"returned more than {LARGEST_OUTPUT} bytes")

    def _failed(self, what: str) -> CredentialError:
        return CredentialError(f"{self._where}: {self._config.command} {what}")


def _release(process: subprocess.Popen[bytes]) -> None:
    """Kill a plugin that has not ended, with its children, and close its pipe."""
    # The number of a process that was not waited for is still its own.
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _exec_info(config: ExecConfig, cluster: dict[str, Any]) -> str:
    """Return the value of the variable KUBERNETES_EXEC_INFO."""
    spec: dict[str, Any] = {"interactive": False}
    if config.provide_cluster_info:
        extensions = cluster.get("extensions") or ()
        named = {
            each.get("name"): each.get("extension") for each in extensions if isinstance(each, dict)
        }
        known = {key: value for key, value in cluster.items() if key != "extensions"}
        spec["cluster"] = known | {"config": named.get("client.authentication.k8s.io/exec")}
    info = {"apiVersion": config.api_version, "kind": "ExecCredential", "spec": spec}
    return msgspec.json.encode(info).decode()
