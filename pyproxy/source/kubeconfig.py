"""Read a kubeconfig: the server, its TLS settings and the credentials of the current context.

Facts: client-go's kubeconfig of Kubernetes v1.36. Errors name the file and the field, and repeat no
value of a credential.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import yaml
from yaml.parser import ParserError
from yaml.scanner import ScannerError

from pyproxy.errors import UsageError
from pyproxy.redaction import KNOWN, bare_urls
from pyproxy.source.access import ServerConfig
from pyproxy.source.credentials import (
    CredentialError,
    Credentials,
    StaticCredentials,
    TokenFile,
    basic,
    bearer,
)
from pyproxy.source.exec_plugin import ExecConfig, ExecPlugin
from pyproxy.source.files import read_file
from pyproxy.source.tls_files import tls_file

LARGEST_KUBECONFIG = 16 << 20
"""Bytes of a kubeconfig; one cluster with its certificates has about 10 KB."""

_T = TypeVar("_T")


class _Cluster(msgspec.Struct, rename="kebab"):
    server: str | None = None
    certificate_authority: str | None = None
    certificate_authority_data: str | None = None
    insecure_skip_tls_verify: bool | None = None
    tls_server_name: str | None = None
    proxy_url: str | None = None


class _User(msgspec.Struct, rename="kebab"):
    token: str | None = None
    token_file: str | None = msgspec.field(default=None, name="tokenFile")
    username: str | None = None
    password: str | None = None
    client_certificate: str | None = None
    client_certificate_data: str | None = None
    client_key: str | None = None
    client_key_data: str | None = None
    exec: ExecConfig | None = None
    auth_provider: Any = None


class _Context(msgspec.Struct):
    cluster: str
    user: str | None = None


class _NamedContext(msgspec.Struct):
    name: str
    context: _Context


class _Named(msgspec.Struct):
    """An element of clusters or users; the section itself is checked only if it is used."""

    name: str
    cluster: Any = None
    user: Any = None


class _KubeConfig(msgspec.Struct, rename="kebab"):
    current_context: str | None = None
    contexts: list[_NamedContext] | None = None
    clusters: list[_Named] | None = None
    users: list[_Named] | None = None


class _Merged:
    """Kubeconfigs merged as in kubectl: the first file that has a name or a value decides.

    Relative paths of a cluster or user start from the folder of its file.
    """

    def __init__(self, flag: str, paths: Sequence[str]) -> None:
        self._flag = flag
        files = [
            (_folder(path), _parsed(flag if len(paths) == 1 else f"{flag}: {path}", path))
            for path in paths
        ]
        self.current_context = next((c.current_context for _, c in files if c.current_context), "")
        self._contexts: dict[str, _Context] = {}
        self._clusters: dict[str, tuple[str, _Named]] = {}
        self._users: dict[str, tuple[str, _Named]] = {}
        for folder, config in files:
            for context in config.contexts or ():
                self._contexts.setdefault(context.name, context.context)
            for sections, known in ((config.clusters, self._clusters), (config.users, self._users)):
                for section in sections or ():
                    known.setdefault(section.name, (folder, section))

    def context(self, name: str) -> _Context:
        """Return a context, the current one for an empty name. Raises UsageError."""
        chosen = name or self.current_context
        if not chosen:
            raise UsageError(f"{self._flag}: current-context is not set")
        if chosen not in self._contexts:
            kind = "context" if name else "current-context"
            raise UsageError(f"{self._flag}: {kind} {chosen!r} is not in contexts")
        return self._contexts[chosen]

    def cluster(self, name: str) -> tuple[str, _Named]:
        """Return a cluster and its folder. Raises UsageError."""
        if name not in self._clusters:
            raise UsageError(f"{self._flag}: cluster {name!r} is not in clusters")
        return self._clusters[name]

    def user(self, name: str | None) -> tuple[str, _Named | None]:
        """Return a user and its folder; None if there is no such user."""
        return self._users.get(name or "", ("", None))


def _folder(path: str) -> str:
    return os.path.dirname(os.path.abspath(path))


def load(path: str, hosts: tuple[str, ...]) -> tuple[ServerConfig, Credentials]:
    """Read a kubeconfig, and run its exec plugin if it has one.

    `hosts` replace its server. Raises UsageError with the file and the field, without values of
    credentials.
    """
    return load_merged(f"--kubeconfig {path}", (path,), "", hosts)


def load_merged(
    flag: str, paths: Sequence[str], context_name: str, hosts: tuple[str, ...] = ()
) -> tuple[ServerConfig, Credentials]:
    """Read kubeconfigs and merge them, as `load`; an empty name is that of the current context.

    `flag` is the flag or variable that named them, for errors. Raises UsageError.
    """
    config = _Merged(flag, paths)
    context = config.context(context_name)
    cluster_folder, found = config.cluster(context.cluster)
    where = f"{flag}: clusters[name={context.cluster}].cluster"
    cluster = _section(where, found.cluster, _Cluster)
    if not cluster.server and not hosts:
        raise UsageError(f"{flag}: cluster {context.cluster!r} has no server")
    if cluster.server and not cluster.server.startswith(("http://", "https://")):
        shown = bare_urls(cluster.server)
        raise UsageError(f"{flag}: server {shown!r} of cluster {context.cluster!r} is not a URL")
    folder, named = config.user(context.user)
    where = f"{flag}: users[name={context.user}].user"
    user = _section(where, named.user if named else None, _User)
    credentials = _credentials(user, where, folder, found.cluster)
    if isinstance(credentials, ExecPlugin) and credentials.status.client_certificate_data:
        user.client_certificate_data = _base64(credentials.status.client_certificate_data)
        user.client_key_data = _base64(credentials.status.client_key_data or "")
    cluster.server = cluster.server or hosts[0]
    _resolve(cluster, ("certificate_authority",), cluster_folder)
    _resolve(user, ("client_certificate", "client_key"), folder)
    return _server_config(flag, cluster, user), credentials


def _resolve(section: _Cluster | _User, fields: Sequence[str], folder: str) -> None:
    """Make the paths of a section absolute."""
    for field in fields:
        if path := getattr(section, field):
            setattr(section, field, os.path.join(folder, path))


def _parsed(flag: str, path: str) -> _KubeConfig:
    try:
        return msgspec.convert(yaml.safe_load(read_file(path, LARGEST_KUBECONFIG)), _KubeConfig)
    except OSError as error:
        raise UsageError(f"{flag}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{flag}: not YAML: {_yaml_problem(error)}") from None
    except msgspec.ValidationError as error:
        raise UsageError(f"{flag}: not a kubeconfig: {error}") from None
    except RecursionError:
        raise UsageError(f"{flag}: not a kubeconfig: nested too deeply") from None
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise UsageError(f"{flag}: not a kubeconfig: {type(error).__name__}") from None


def _yaml_problem(error: yaml.YAMLError) -> str:
    """Return the error with its line; not its text, which repeats the line."""
    # Errors of other stages repeat names of anchors, as which a token with an asterisk is read.
    if not isinstance(error, ScannerError | ParserError):
        return type(error).__name__
    mark = error.problem_mark or error.context_mark
    line = f" on line {mark.line + 1}" if mark is not None else ""
    return " ".join(f"{error.context or ''} {error.problem or ''}{line}".split())


def _section(where: str, value: Any, of: type[_T]) -> _T:
    try:
        return msgspec.convert(value or {}, of)
    except (msgspec.ValidationError, ValueError, TypeError, RecursionError) as error:
        # Only msgspec's text is known to have types and paths, and no values.
        known = isinstance(error, msgspec.ValidationError)
        text = str(error) if known else type(error).__name__
        raise UsageError(f"{where}: invalid: {text}") from None


def _credentials(user: _User, where: str, folder: str, cluster: dict[str, Any]) -> Credentials:
    """Return the first credentials of: token file, token, exec plugin, user and password."""
    try:
        if user.auth_provider is not None:
            raise UsageError(
                f"{where}.auth-provider: not supported: use exec, as Kubernetes does from 1.26 on"
            )
        if user.token_file:
            path = os.path.join(folder, user.token_file)
            # As in client-go, the content of the file takes precedence over `token`.
            return TokenFile(path, f"{where}.tokenFile {path}", user.token or "")
        if user.token:
            return StaticCredentials(bearer(user.token, f"{where}.token"))
    except CredentialError as error:
        raise UsageError(str(error)) from None
    if user.exec is not None:
        return ExecPlugin(user.exec, f"{where}.exec", folder, cluster)
    if user.username is not None or user.password is not None:
        return StaticCredentials(basic(user.username or "", user.password or ""))
    return StaticCredentials()


def _server_config(flag: str, cluster: _Cluster, user: _User) -> ServerConfig:
    """Return the server and its TLS settings, whose files exist. Raises UsageError."""
    KNOWN.remember(user.client_key_data or "")
    host = (cluster.server or "").rstrip("/")
    authority = cert = key = ""
    # As in client-go, a server without TLS has no use for the files, which may be missing.
    if host.startswith("https"):
        try:
            authority = tls_file(cluster.certificate_authority, cluster.certificate_authority_data)
            cert = tls_file(user.client_certificate, user.client_certificate_data)
            key = tls_file(user.client_key, user.client_key_data)
        except UsageError as error:
            raise UsageError(f"{flag}: {error}") from None
        except (OSError, ValueError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or "not base64"
            raise UsageError(f"{flag}: invalid: a certificate or key: {reason}") from None
    return ServerConfig(
        host,
        authority,
        cert,
        key,
        verify=not cluster.insecure_skip_tls_verify,
        tls_server_name=cluster.tls_server_name or "",
        proxy=cluster.proxy_url or "",
    )


def _base64(text: str) -> str:
    # The plugin returns PEM, a kubeconfig has it in base64.
    return base64.b64encode(text.encode()).decode()
