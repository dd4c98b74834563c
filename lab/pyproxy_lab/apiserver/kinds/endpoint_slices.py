"""EndpointSlices: defaults and checks."""

from __future__ import annotations

from pyproxy_lab.apiserver.kinds.addresses import (
    address_errors,
    address_family,
    non_special_errors,
)
from pyproxy_lab.apiserver.kinds.rules import Rules, unchanged_errors
from pyproxy_lab.apiserver.names import (
    dns_label_problem,
    dns_subdomain_problem,
    label_value_problem,
)
from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.status import (
    FieldError,
    duplicate,
    invalid_value,
    required,
    too_many,
    unsupported,
)

_ADDRESS_TYPES = ("FQDN", "IPv4", "IPv6")
_PROTOCOLS = ("SCTP", "TCP", "UDP")
_MOST_ENDPOINTS = 1000
_MOST_PORTS = 20000
_MOST_ADDRESSES = 100
_MOST_HINTS = 8


class EndpointSliceRules(Rules):
    """Rules for endpointslices."""

    has_generation = True

    def default(self, obj: Object) -> None:
        """Fill in ports' names and protocols; a list of endpoints is always there."""
        obj["endpoints"] = obj.get("endpoints") or []
        obj["ports"] = obj.get("ports") or []
        for port in obj["ports"]:
            port.setdefault("name", "")
            port.setdefault("protocol", "TCP")
        for endpoint in obj["endpoints"]:
            endpoint.setdefault("conditions", {})

    def errors(self, obj: Object) -> list[FieldError]:
        """Check the address type, endpoints and ports."""
        kind = obj.get("addressType", "")
        errors: list[FieldError] = []
        if not kind:
            errors.append(required("addressType"))
        elif kind not in _ADDRESS_TYPES:
            errors.append(unsupported("addressType", kind, _ADDRESS_TYPES))
        if len(obj["endpoints"]) > _MOST_ENDPOINTS:
            return [*errors, too_many("endpoints", len(obj["endpoints"]), _MOST_ENDPOINTS)]
        for index, endpoint in enumerate(obj["endpoints"]):
            errors += _endpoint_errors(endpoint, kind, f"endpoints[{index}]")
        return errors + _ports_errors(obj["ports"])

    def update_errors(self, new: Object, old: Object) -> list[FieldError]:
        """The address type stays."""
        return unchanged_errors(new, old, "addressType")


def _endpoint_errors(endpoint: Object, kind: str, field: str) -> list[FieldError]:
    errors: list[FieldError] = []
    addresses = endpoint.get("addresses") or []
    if not addresses:
        errors.append(required(f"{field}.addresses", "must contain at least 1 address"))
    elif len(addresses) > _MOST_ADDRESSES:
        errors.append(too_many(f"{field}.addresses", len(addresses), _MOST_ADDRESSES))
    for index, address in enumerate(addresses):
        errors += _address_errors(address, kind, f"{field}.addresses[{index}]")
    if (node := endpoint.get("nodeName")) is not None and (problem := dns_subdomain_problem(node)):
        errors.append(invalid_value(f"{field}.nodeName", node, problem))
    if (name := endpoint.get("hostname")) is not None and (problem := dns_label_problem(name)):
        errors.append(invalid_value(f"{field}.hostname", name, problem))
    hints = endpoint.get("hints") or {}
    for key in ("forZones", "forNodes"):
        errors += _hints_errors(hints.get(key) or [], f"{field}.hints.{key}")
    return errors


def _address_errors(address: str, kind: str, field: str) -> list[FieldError]:
    if kind == "FQDN":
        problem = dns_subdomain_problem(address)
        return [invalid_value(field, address, problem)] if problem else []
    if errors := address_errors(address, field):
        return errors
    if kind in _ADDRESS_TYPES and address_family(address) != kind:
        return [invalid_value(field, address, f"must be an {kind} address")]
    return list(non_special_errors(address, field))


def _hints_errors(hints: list[Object], field: str) -> list[FieldError]:
    if len(hints) > _MOST_HINTS:
        return [too_many(field, len(hints), _MOST_HINTS)]
    errors, seen = [], set()
    for index, hint in enumerate(hints):
        name = hint.get("name", "")
        if name in seen:
            errors.append(duplicate(f"{field}[{index}].name", name))
        seen.add(name)
        if problem := label_value_problem(name):
            errors.append(invalid_value(f"{field}[{index}].name", name, problem))
    return errors


def _ports_errors(ports: list[Object]) -> list[FieldError]:
    if len(ports) > _MOST_PORTS:
        return [too_many("ports", len(ports), _MOST_PORTS)]
    errors: list[FieldError] = []
    names: set[str] = set()
    for index, port in enumerate(ports):
        field = f"ports[{index}]"
        name = port["name"]
        if name and (problem := dns_label_problem(name)):
            errors.append(invalid_value(f"{field}.name", name, problem))
        if name in names:
            errors.append(duplicate(f"{field}.name", name))
        names.add(name)
        if port["protocol"] not in _PROTOCOLS:
            errors.append(unsupported(f"{field}.protocol", port["protocol"], _PROTOCOLS))
        number = port.get("port")
        if number is not None and not 1 <= number <= 65535:
            message = "must be between 1 and 65535, inclusive"
            errors.append(invalid_value(f"{field}.port", number, message))
    return errors
