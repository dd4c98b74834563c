"""Answers to DNS questions, as pure functions of the Services and EndpointSlices.

Source: Kubernetes DNS-Based Service Discovery, specification version 1.1.0. Where it leaves a
choice, as with the names of endpoints without a hostname, the answer is CoreDNS's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset
import msgspec
from dns.rdatatype import RdataType

from pyproxy_lab.client import JsonObject
from pyproxy_lab.dns.resolv_conf import ZONE

TTL = 5
"""Seconds, CoreDNS's default: a lab's changes are seen soon."""

_VERSION = "1.1.0"
_SUFFIX = dns.name.from_text(f"svc.{ZONE}")
_ROOT = dns.name.from_text(ZONE)
_ADDRESS_TYPES = {4: RdataType.A, 6: RdataType.AAAA}
_OWNER = "kubernetes.io/service-name"
_LONGEST_CHAIN = 8
"""CNAMEs that are followed inside the zone."""

Name = tuple[str, str]


class Answer(msgspec.Struct, frozen=True):
    """The status of a response, the records that were asked for, and those that go with them."""

    rcode: dns.rcode.Rcode
    records: tuple[dns.rrset.RRset, ...] = ()
    additional: tuple[dns.rrset.RRset, ...] = ()


class Endpoint(msgspec.Struct, frozen=True):
    """A pod of a headless Service; `label` is its name below the Service's."""

    label: str
    addresses: tuple[str, ...]


class View(msgspec.Struct, frozen=True):
    """The objects that names are made of, by namespace and name."""

    services: Mapping[Name, JsonObject]
    slices: Mapping[Name, JsonObject]
    namespaces: Mapping[Name, JsonObject]


def answer(view: View, name: dns.name.Name, kind: RdataType) -> Answer:
    """Answer one question. Names outside the zone do not exist: the lab has no other network."""
    records: list[dns.rrset.RRset] = []
    for _ in range(_LONGEST_CHAIN):
        found = _lookup(view, name, kind)
        if found is None:
            # RFC 6604: the status is that of the last name of a chain.
            return Answer(dns.rcode.NXDOMAIN, tuple(records))
        records += found.records
        target = _alias(found.records, kind)
        if target is None or not target.is_subdomain(_ROOT):
            return Answer(dns.rcode.NOERROR, tuple(records), found.additional)
        name = target
    return Answer(dns.rcode.SERVFAIL)


def authority(view: View) -> dns.rrset.RRset:
    """Return the zone's SOA record, which negative responses have."""
    serial = max((_version(each) for each in view.services.values()), default=1)
    text = f"ns.dns.{ZONE}. hostmaster.{ZONE}. {serial} 7200 1800 86400 {TTL}"
    return _rrset(_ROOT, RdataType.SOA, [text])


def is_inside(name: dns.name.Name) -> bool:
    """Return whether the server is the authority for a name."""
    inside: bool = name.is_subdomain(_ROOT)
    return inside


def _lookup(view: View, name: dns.name.Name, kind: RdataType) -> Answer | None:
    """Return the records of a name, none for another type than it has; None for no such name."""
    if kind is RdataType.PTR:
        return _reverse(view, name)
    match _labels_below(name, _ROOT):
        case [*below, namespace, "svc"]:
            return _below_namespace(view, name, kind, (*below, namespace))
        case [] if kind is RdataType.SOA:
            found = [authority(view)]
        case [] | ["svc"] | ["dns"]:
            found = []
        case ["dns-version"]:
            found = _records(name, kind, RdataType.TXT, [f'"{_VERSION}"'])
        case ["ns", "dns"]:
            server = view.services.get(("kube-system", "kube-dns"), {})
            found = _addresses(name, kind, _cluster_ips(server))
        case _:
            return None
    return _found(found)


def _below_namespace(
    view: View, name: dns.name.Name, kind: RdataType, labels: tuple[str, ...]
) -> Answer | None:
    """Look up `labels`, the last of which is a namespace."""
    *below, namespace = labels
    if not below:
        return _found([]) if ("", namespace) in view.namespaces else None
    service = view.services.get((namespace, below.pop()))
    if service is None:
        return None
    if service["spec"].get("type") == "ExternalName":
        target = f"{service['spec']['externalName'].rstrip('.')}."
        return None if below else _found([_rrset(name, RdataType.CNAME, [target])])
    return _of_service(view, name, kind, service, below)


def _of_service(
    view: View, name: dns.name.Name, kind: RdataType, service: JsonObject, below: Sequence[str]
) -> Answer | None:
    """Look up the labels below a Service: none, a port and its protocol, or an endpoint's."""
    found: Answer | None = None
    match below:
        case []:
            found = _found(_addresses(name, kind, _all_addresses(view, service)))
            if kind is RdataType.SRV:
                found = _services(view, name, service, "", "")
        case [port, protocol] if port.startswith("_") and protocol.startswith("_"):
            found = _services(view, name, service, port[1:], protocol[1:])
            if not found.records:
                found = None
            elif kind is not RdataType.SRV:
                found = _found([])
        case [label] if _is_headless(service):
            pods = [each for each in _endpoints(view, service) if each.label == label]
            addresses = [address for pod in pods for address in pod.addresses]
            if pods:
                found = _found(_addresses(name, kind, addresses))
    return found


def _services(
    view: View, name: dns.name.Name, service: JsonObject, port: str, protocol: str
) -> Answer:
    """Return SRV records, and the addresses of their targets; an empty `port` stands for all."""
    base = _name_of(service)
    targets: list[tuple[str, dns.name.Name, Sequence[str]]] = []
    if _is_headless(service):
        for endpoint, ports in _slice_endpoints(view, service):
            target = dns.name.Name((endpoint.label.encode(), *base.labels))
            targets += (
                (str(each["port"]), target, endpoint.addresses)
                for each in ports
                if _matches(each, port, protocol)
            )
    else:
        targets += (
            (str(each["port"]), base, _cluster_ips(service))
            for each in service["spec"].get("ports") or ()
            if _matches(each, port, protocol)
        )
    if not targets:
        return Answer(dns.rcode.NOERROR)
    weight = max(1, 100 // len(targets))
    texts = [f"0 {weight} {number} {target}" for number, target, _ in targets]
    additional = {
        (target, kind): _rrset(target, kind, found)
        for _, target, addresses in targets
        for kind in _ADDRESS_TYPES.values()
        if (found := _of_type(addresses, kind))
    }
    records = (_rrset(name, RdataType.SRV, texts),)
    return Answer(dns.rcode.NOERROR, records, tuple(additional.values()))


def _reverse(view: View, name: dns.name.Name) -> Answer | None:
    """Name the Service of a cluster IP, or the pod of a headless Service."""
    try:
        address = dns.reversename.to_address(name)
    except (dns.exception.DNSException, ValueError):
        return None
    for service in view.services.values():
        if address in _cluster_ips(service):
            return _found([_rrset(name, RdataType.PTR, [str(_name_of(service))])])
    targets = [
        f"{found.label}.{_name_of(service)}"
        for service in view.services.values()
        if _is_headless(service)
        for found in _endpoints(view, service)
        if address in found.addresses
    ]
    return _found([_rrset(name, RdataType.PTR, targets)]) if targets else None


def _all_addresses(view: View, service: JsonObject) -> list[str]:
    if not _is_headless(service):
        return list(_cluster_ips(service))
    return [address for each in _endpoints(view, service) for address in each.addresses]


def _endpoints(view: View, service: JsonObject) -> list[Endpoint]:
    return list(dict.fromkeys(found for found, _ in _slice_endpoints(view, service)))


def _slice_endpoints(
    view: View, service: JsonObject
) -> Iterator[tuple[Endpoint, Sequence[JsonObject]]]:
    """Yield the endpoints that are ready, or all with publishNotReadyAddresses, and their ports.

    A controller sets `ready` for both.
    """
    meta = service["metadata"]
    for (namespace, _), found in view.slices.items():
        labels = found["metadata"].get("labels") or {}
        if namespace != meta["namespace"] or labels.get(_OWNER) != meta["name"]:
            continue
        for each in found.get("endpoints") or ():
            if (each.get("conditions") or {}).get("ready", True) is not False:
                addresses = tuple(each["addresses"])
                label = each.get("hostname") or _dashed(addresses[0])
                yield Endpoint(label, addresses), found.get("ports") or ()


def _cluster_ips(service: JsonObject) -> tuple[str, ...]:
    spec: JsonObject = service.get("spec") or {}
    found = spec.get("clusterIPs") or [spec.get("clusterIP", "")]
    return tuple(each for each in found if each not in {"", "None"})


def _is_headless(service: JsonObject) -> bool:
    return bool(service["spec"].get("clusterIP") == "None")


def _name_of(service: JsonObject) -> dns.name.Name:
    meta = service["metadata"]
    return dns.name.from_text(f"{meta['name']}.{meta['namespace']}", _SUFFIX)


def _matches(port: JsonObject, name: str, protocol: str) -> bool:
    if not name:
        return True
    own: str = port.get("protocol", "TCP")
    return str(port.get("name") or "").lower() == name and own.lower() == protocol


def _labels_below(name: dns.name.Name, base: dns.name.Name) -> list[str] | None:
    """Return the labels of a name before `base`, in lower case; None if it is not below."""
    if not name.is_subdomain(base):
        return None
    try:
        return [label.decode("ascii").lower() for label in name.relativize(base).labels]
    except UnicodeDecodeError:
        return None


def _addresses(
    name: dns.name.Name, kind: RdataType, addresses: Sequence[str]
) -> list[dns.rrset.RRset]:
    found = _of_type(addresses, kind)
    return [_rrset(name, kind, found)] if found else []


def _of_type(addresses: Sequence[str], kind: RdataType) -> list[str]:
    return [
        each for each in addresses if _ADDRESS_TYPES[ipaddress.ip_address(each).version] is kind
    ]


def _records(
    name: dns.name.Name, asked: RdataType, kind: RdataType, texts: Sequence[str]
) -> list[dns.rrset.RRset]:
    return [_rrset(name, kind, texts)] if asked is kind else []


def _rrset(name: dns.name.Name, kind: RdataType, texts: Sequence[str]) -> dns.rrset.RRset:
    return dns.rrset.from_text_list(name, TTL, dns.rdataclass.IN, kind, list(texts))


def _found(records: Sequence[dns.rrset.RRset]) -> Answer:
    return Answer(dns.rcode.NOERROR, tuple(records))


def _alias(records: Sequence[dns.rrset.RRset], asked: RdataType) -> dns.name.Name | None:
    if asked is RdataType.CNAME:
        return None
    for each in records:
        if each.rdtype is RdataType.CNAME:
            target: Any = each[0]
            name: dns.name.Name = target.target
            return name
    return None


def _dashed(address: str) -> str:
    return address.replace(".", "-").replace(":", "-")


def _version(obj: JsonObject) -> int:
    return int(obj["metadata"].get("resourceVersion") or 0)
