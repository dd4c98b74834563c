"""Make an API client from flags: a kubeconfig, a pod's service account, or a server's URL.

Errors in flags and files are UsageErrors that name the file and the field.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from pyproxy.errors import UsageError
from pyproxy.source.access import Access, FileState, ServerConfig, file_state
from pyproxy.source.client import Client, RequestObserver
from pyproxy.source.credentials import Credentials, StaticCredentials, TokenFile
from pyproxy.source.http_proxy import proxy_for
from pyproxy.source.server_urls import ServerUrl, proxy_url, server_url

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


def connect(kubeconfig_path: str, master: str, observer: RequestObserver | None = None) -> Client:
    """Make a client from the flags --kubeconfig and --master, which are empty if not given.

    --master is one or more URLs, separated by commas, that replace the server in the kubeconfig.
    Without a kubeconfig, the service account of the pod is used if there is one. Sends nothing.
    Raises UsageError.
    """
    hosts = _masters(master)
    urls = tuple(host.url for host in hosts)
    if kubeconfig_path:
        return Client(lambda: _from_file(kubeconfig_path, hosts), urls, observer)
    # A pod with automountServiceAccountToken: false has the variable but no token.
    if SERVICE_ACCOUNT_TOKEN.exists() and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return Client(_from_pod, urls, observer)
    if hosts:
        return Client(
            lambda: _access(ServerConfig(), StaticCredentials(), hosts, "--master"), urls, observer
        )
    raise UsageError(
        "no API server: give --kubeconfig FILE, or --master URL, "
        "or --manifests DIR to run without one"
    )


def connect_as_kubectl(kubeconfig: str, context: str, environ: Mapping[str, str]) -> Client:
    """Make a client from the kubeconfig that kubectl would read.

    That is `kubeconfig`, else the files of KUBECONFIG that exist, else ~/.kube/config; without any
    of them the service account of the pod. An empty `context` is the current one.
    Raises UsageError.
    """
    flag, paths = "--kubeconfig", [kubeconfig] if kubeconfig else []
    if not paths and (listed := environ.get("KUBECONFIG", "")):
        flag, paths = "KUBECONFIG", [each for each in listed.split(os.pathsep) if each]
        paths = [each for each in paths if os.path.exists(each)] or paths[:1]
    usual = os.path.join(environ.get("HOME") or "/", ".kube", "config")
    if not paths and os.path.exists(usual):
        flag, paths = "kubeconfig", [usual]
    if not paths and not context and SERVICE_ACCOUNT_TOKEN.exists():
        return connect("", "")
    if not paths:
        raise UsageError("no kubeconfig: give --kubeconfig FILE, or set KUBECONFIG")
    if len(paths) == 1:
        flag = f"{flag} {paths[0]}"

    def load() -> Access:
        from pyproxy.source import kubeconfig as files  # noqa: PLC0415

        return _access(*files.load_merged(flag, paths, context), (), flag)

    return Client(load)


def _masters(text: str) -> tuple[ServerUrl, ...]:
    """Return the URLs of --master. Raises UsageError if one is invalid."""
    parts = [part.strip() for part in text.split(",")] if text else []
    # A comma in a password splits it, so a part may be a password too.
    named = (f"URL {i}" if "@" in text else repr(part) for i, part in enumerate(parts, 1))
    found = tuple(
        server_url(part.rstrip("/"), f"--master: {name}")
        for part, name in zip(parts, named, strict=True)
    )
    if len({each.authorization for each in found}) > 1:
        raise UsageError("--master: all URLs must have the same user and password")
    return found


def _from_flag(hosts: tuple[ServerUrl, ...]) -> Access:
    return _access(ServerConfig(), StaticCredentials(), hosts, "--master")


def _from_file(path: str, hosts: tuple[ServerUrl, ...]) -> Access:
    """Read a kubeconfig. Raises UsageError."""
    # A pod with a service account needs neither this module nor exec plugins.
    from pyproxy.source import kubeconfig  # noqa: PLC0415

    # First, so that a change while the file is read is noticed later.
    state = file_state(path)
    config, credentials = kubeconfig.load(path, tuple(host.url for host in hosts))
    return _access(config, credentials, hosts, f"--kubeconfig {path}", state)


def _from_pod() -> Access:
    """Read the service account of this pod. Raises UsageError."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "").strip()
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "").strip()
    authority = SERVICE_ACCOUNT_TOKEN.with_name("ca.crt")
    invalid = "the pod's service account is invalid"
    if not port:
        raise UsageError(f"{invalid}: the variable KUBERNETES_SERVICE_PORT is not set")
    if not authority.is_file():
        raise UsageError(f"{invalid}: {authority} does not exist")
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    config = ServerConfig(server, str(authority))
    credentials = TokenFile(str(SERVICE_ACCOUNT_TOKEN), f"service account {SERVICE_ACCOUNT_TOKEN}")
    return _access(config, credentials, (), invalid)


def _access(
    config: ServerConfig,
    credentials: Credentials,
    hosts: tuple[ServerUrl, ...],
    source: str,
    state: FileState | None = None,
) -> Access:
    """Take user and password out of the server's URL; as in Go, other credentials go first.

    `source` names the origin of `config` in errors. Raises UsageError.
    """
    hosts = hosts or (server_url(config.host.rstrip("/"), f"{source}: the server"),)
    config = msgspec.structs.replace(config, host=hosts[0].url)
    proxies: dict[str, ServerUrl] = {}
    for host in hosts:
        # proxy-url of a kubeconfig precedes the environment, NO_PROXY included.
        if config.proxy:
            proxies[host.url] = proxy_url(config.proxy, f"{source}: proxy-url")
        elif found := proxy_for(host.url, os.environ):
            name = f"{urlsplit(host.url).scheme.upper()}_PROXY"
            proxies[host.url] = proxy_url(found, f"the variable {name}")
    header = hosts[0].authorization
    if header and isinstance(credentials, StaticCredentials) and not credentials.authorization():
        credentials = StaticCredentials(header)
    return Access(config, credentials, state, proxies)
