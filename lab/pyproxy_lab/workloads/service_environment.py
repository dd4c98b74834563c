"""The environment variables of Services in a pod, as a kubelet sets them.

Facts: the Kubernetes documentation, "Accessing the Service", and makeEnvironmentVariables with
pkg/kubelet/envvars of Kubernetes v1.36.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyproxy_lab.client import JsonObject
from pyproxy_lab.reflector import name_of

_API = ("default", "kubernetes")


def variables(pod: JsonObject, services: Iterable[JsonObject]) -> dict[str, str]:
    """Return the variables of the Services with a cluster IP in the pod's namespace.

    Those of the API server's Service are always among them, and are alone if the pod's
    enableServiceLinks is false.
    """
    namespace = pod["metadata"]["namespace"]
    linked = pod["spec"].get("enableServiceLinks", True)
    found = {name_of(each): each["spec"] for each in services if _has_address(each)}
    api = {_API[1]: found[_API]} if _API in found else {}
    own = {name: spec for (home, name), spec in found.items() if linked and home == namespace}
    return {key: value for name, spec in (api | own).items() for key, value in _of(name, spec)}


def _has_address(service: JsonObject) -> bool:
    return service["spec"].get("clusterIP") not in (None, "", "None")


def _of(name: str, spec: JsonObject) -> Iterator[tuple[str, str]]:
    prefix, address, ports = _upper(name), spec["clusterIP"], spec.get("ports") or []
    if not ports:
        return
    yield f"{prefix}_SERVICE_HOST", address
    yield f"{prefix}_SERVICE_PORT", str(ports[0]["port"])
    for port in ports:
        if port.get("name"):
            yield f"{prefix}_SERVICE_PORT_{_upper(port['name'])}", str(port["port"])
    yield f"{prefix}_PORT", _url(address, ports[0])
    for port in ports:
        protocol, number = port.get("protocol", "TCP"), str(port["port"])
        link = f"{prefix}_PORT_{number}_{protocol}"
        yield link, _url(address, port)
        yield f"{link}_PROTO", protocol.lower()
        yield f"{link}_PORT", number
        yield f"{link}_ADDR", address


def _upper(name: str) -> str:
    return name.upper().replace("-", "_")


def _url(address: str, port: JsonObject) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"{port.get('protocol', 'TCP').lower()}://{host}:{port['port']}"
