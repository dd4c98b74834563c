"""Who sends where, as a person names it: what `--from` and `--to` say."""

from __future__ import annotations

from pyproxy.agent.trace_source import NODE, OUTSIDE
from pyproxy.config.settings import Settings
from pyproxy.errors import UsageError
from pyproxy.model.address import family_of, parse_address
from pyproxy.model.destination import Destination, parse_destination
from pyproxy.model.objects import ObjectName

FORM = f"ADDRESS|NAMESPACE/POD|{NODE}|{OUTSIDE}"


def destination_of(given: str) -> Destination:
    """Read `--to`. Raises UsageError."""
    try:
        return parse_destination(given)
    except ValueError as error:
        raise UsageError(f"--to: {error}") from error


def sender_of(given: str, target: Destination, settings: Settings) -> str:
    """Give `--from` as an address, NODE or OUTSIDE: a pod's address is asked of the API.

    It is the pod's address in the family of `target`. Raises UsageError, SourceError.
    """
    if "/" not in given:
        return given
    namespace, _, name = given.partition("/")
    if not namespace or not name or "/" in name:
        raise UsageError(f"--from {given}: write a pod as NAMESPACE/NAME")
    # Who names an address does not wait for a client.
    from pyproxy.agent.sources import client_of  # noqa: PLC0415
    from pyproxy.source.lookup import pod_addresses  # noqa: PLC0415

    client = client_of(settings, None)
    if client is None:
        raise UsageError(
            f"--from {given}: the folder {settings.manifests} is served in the API's place and "
            "says nothing of pods: give the pod's address"
        )
    found = pod_addresses(client, ObjectName(namespace, name))
    if not found:
        raise UsageError(
            f"--from {given}: the API knows no address of such a pod: look with kubectl get pods "
            f"-n {namespace}, and give the address where it has one"
        )
    family = family_of(target.address)
    for address in found:
        if family_of(parse_address(address)) is family:
            return address
    raise UsageError(
        f"--from {given}: the pod has no {family.label} address, but {', '.join(found)}: "
        "ask with --to of that family"
    )
