"""The arguments `--from` and `--to` of `pyproxy trace`."""

from __future__ import annotations

from pyproxy.agent.trace_source import NODE, OUTSIDE
from pyproxy.config.settings import Settings
from pyproxy.errors import UsageError
from pyproxy.model.address import Port, family_of, parse_address
from pyproxy.model.destination import Destination, parse_destination
from pyproxy.model.objects import ObjectName

SENDER_FORM = f"ADDRESS|NAMESPACE/POD|{NODE}|{OUTSIDE}"


def destination_of(text: str) -> Destination:
    """Parse `--to`. Raises UsageError."""
    try:
        return parse_destination(text)
    except ValueError as error:
        raise UsageError(f"--to: {error}") from error


def port_of(text: str) -> Port:
    """Parse `--source-port`. Raises UsageError."""
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 0 < number < 1 << 16:
        raise UsageError(f"--source-port: {text!r} is not a port: use 1 to 65535")
    return Port(number)


def sender_of(text: str, target: Destination, settings: Settings) -> str:
    """Return `--from` with a pod's name replaced by its address in the family of `target`.

    Queries the API server for a pod. Raises UsageError, SourceError.
    """
    # No address contains a slash, so one means a pod.
    if "/" not in text:
        return text
    namespace, _, name = text.partition("/")
    if not namespace or not name or "/" in name:
        raise UsageError(f"--from {text}: write a pod as NAMESPACE/NAME")
    # Imports urllib3, which an address does without.
    from pyproxy.agent.sources import client_of  # noqa: PLC0415
    from pyproxy.source.lookup import pod_addresses  # noqa: PLC0415

    client = client_of(settings, None)
    if client is None:
        raise UsageError(
            f"--from {text}: the agent reads manifests from {settings.manifests}, which have no "
            "pods: use the pod's address"
        )
    addresses = pod_addresses(client, ObjectName(namespace, name))
    if not addresses:
        raise UsageError(
            f"--from {text}: the API server has no address of this pod: check kubectl get pods "
            f"-n {namespace} -o wide, or use the pod's address"
        )
    family = family_of(target.address)
    for address in addresses:
        if family_of(parse_address(address)) is family:
            return address
    raise UsageError(
        f"--from {text}: the pod has no {family.label} address, only {', '.join(addresses)}: "
        "use a --to of that family"
    )
