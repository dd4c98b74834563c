"""Make an API client from flags: a kubeconfig, a pod's service account, or a server's URL.

Errors in flags and files are UsageErrors that name the file and the field.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import yaml
from kubernetes.client import Configuration
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

from pyproxy.errors import UsageError
from pyproxy.source.access import Access
from pyproxy.source.client import Client, RequestObserver

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


_UNUSABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)


class _Cluster(msgspec.Struct):
    server: str = ""


class _NamedCluster(msgspec.Struct):
    name: str
    cluster: _Cluster


class _Context(msgspec.Struct):
    cluster: str
    user: str | None = None


class _NamedContext(msgspec.Struct):
    name: str
    context: _Context


class _KubeConfig(msgspec.Struct, rename="kebab"):
    """The fields of a kubeconfig that are checked before the `kubernetes` package loads it."""

    current_context: str | None = None
    contexts: list[_NamedContext] | None = None
    clusters: list[_NamedCluster] | None = None


def connect(kubeconfig: str, master: str, observer: RequestObserver | None = None) -> Client:
    """Make a client from the flags --kubeconfig and --master, which are empty if not given.

    --master is one or more URLs, separated by commas, that replace the server in the kubeconfig.
    Without a kubeconfig, the service account of the pod is used if there is one. Sends nothing.
    Raises UsageError.
    """
    hosts = tuple(_server(part.strip()) for part in master.split(",")) if master else ()
    if kubeconfig:
        return Client(lambda: Access(_from_file(kubeconfig, hosts)), hosts, observer)
    # A pod with automountServiceAccountToken: false has the variable but no token.
    if SERVICE_ACCOUNT_TOKEN.exists() and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return Client(lambda: Access(_from_pod()), hosts, observer)
    if hosts:
        return Client(lambda: Access(Configuration()), hosts, observer)
    raise UsageError(
        "no API server: give --kubeconfig FILE, or --master URL, "
        "or --manifests DIR to run without one"
    )


def _server(text: str) -> str:
    """Return one URL of --master. Raises UsageError if it is invalid."""
    parts = urlsplit(text)
    try:
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"--master: {text!r} is not of the form https://HOST:PORT")
    return text


def _from_file(path: str, hosts: tuple[str, ...]) -> Configuration:
    """Read a kubeconfig. Raises UsageError."""
    _check(path, hosts)
    configuration = Configuration()
    try:
        # persist_config would write refreshed tokens into the user's file.
        load_kube_config(path, client_configuration=configuration, persist_config=False)
    except ConfigException as error:
        text = str(error).removeprefix("Invalid kube-config file. ")
        raise UsageError(f"--kubeconfig {path}: {text}") from error
    except (*_UNUSABLE, yaml.YAMLError) as error:
        # The package does not check the types of other fields, and the file may have been replaced
        # since `_check` read it.
        raise UsageError(f"--kubeconfig {path}: invalid: {error}") from error
    return configuration


def _check(path: str, hosts: tuple[str, ...]) -> None:
    """Raise UsageError for the common errors, with more detail than the package gives."""
    flag = f"--kubeconfig {path}"
    try:
        loaded = yaml.safe_load(Path(path).read_bytes())
        config = msgspec.convert(loaded, _KubeConfig)
    except OSError as error:
        raise UsageError(f"{flag}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{flag}: not YAML: {' '.join(str(error).split())}") from error
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"{flag}: not a kubeconfig: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{flag}: not a kubeconfig: nested too deeply") from error
    if not config.current_context:
        raise UsageError(f"{flag}: current-context is not set")
    context = next(
        (c.context for c in config.contexts or () if c.name == config.current_context), None
    )
    if context is None:
        raise UsageError(f"{flag}: current-context {config.current_context!r} is not in contexts")
    cluster = next((c.cluster for c in config.clusters or () if c.name == context.cluster), None)
    if cluster is None:
        raise UsageError(f"{flag}: cluster {context.cluster!r} is not in clusters")
    if not cluster.server and not hosts:
        raise UsageError(f"{flag}: cluster {context.cluster!r} has no server")
    if cluster.server and not cluster.server.startswith(("http://", "https://")):
        raise UsageError(
            f"{flag}: server {cluster.server!r} of cluster {context.cluster!r} is not a URL"
        )


def _from_pod() -> Configuration:
    """Read the service account of this pod. Raises UsageError."""
    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)
    except (ConfigException, OSError) as error:
        raise UsageError(f"the pod's service account is invalid: {error}") from error
    return configuration
