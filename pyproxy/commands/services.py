"""`pyproxy services`: list Service ports with their addresses and endpoints."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from pyproxy.commands.command import View
from pyproxy.commands.output import BAD, DIM, GOOD, HEAD, Part, Text, properties, table, text
from pyproxy.commands.query_runner import QueryRunner
from pyproxy.inspect.queries import SERVICES, ServicesArgs
from pyproxy.inspect.services import PortView, Services, ServiceView, object_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the Services to show."""
    parser.add_argument(
        "name", nargs="?", metavar="NAMESPACE/NAME", help="show one Service in detail"
    )
    parser.add_argument("-n", "--namespace", default="", help="list one namespace")
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true", help="list all namespaces (default)"
    )


def fetch(queries: QueryRunner, namespace: argparse.Namespace) -> Services:
    """Query the Services."""
    name = namespace.name or ""
    if name and "/" not in name and namespace.namespace:
        name = f"{namespace.namespace}/{name}"
    if name:
        object_name(name)  # a wrong name is a usage error before any query
    return queries.query(SERVICES, ServicesArgs(name, "" if name else namespace.namespace))


def show(found: Services) -> Iterator[Part]:
    """Yield a row for each port, or one Service in detail."""
    if found.named:
        yield from _details(found.services[0])
        return
    yield table(
        ("NAMESPACE", "NAME", "PORT", "ADDRESSES", "POLICY", "ENDPOINTS", "UNUSED BECAUSE"),
        (_row(service, port) for service in found.services for port in service.ports),
    )


def _row(service: ServiceView, port: PortView) -> tuple[str | Text, ...]:
    used = [each for each in port.endpoints if each.used_by]
    reasons = sorted({each.reason for each in port.endpoints if not each.used_by})
    return (
        service.namespace,
        service.name,
        _port(port),
        ", ".join(
            f"{f.address}:{f.port}" if ":" not in f.address else f"[{f.address}]:{f.port}"
            for f in port.frontends
        )
        or text("none", BAD),
        _policy(service),
        text(f"{len(used)}/{len(port.endpoints)}", GOOD if used else BAD),
        "; ".join(reasons),
    )


def _details(service: ServiceView) -> Iterator[Part]:
    yield properties(
        [
            ("service", f"{service.namespace}/{service.name}"),
            ("policy", f"internal {service.internal_policy}, external {service.external_policy}"),
            ("affinity", f"{service.affinity_seconds} s" if service.affinity_seconds else "none"),
            ("source ranges", ", ".join(service.source_ranges) or "all clients"),
            *([] if service.programmed else [("programmed", text("not yet", BAD))]),
        ]
    )
    for port in service.ports:
        yield text("")
        yield text(f"port {_port(port)}, {port.family}", HEAD)
        yield table(
            ("ADDRESS", "PORT", "SCOPE", "USE"),
            ((f.address or "node addresses", str(f.port), f.scope, f.use) for f in port.frontends),
        )
        yield text("")
        yield table(
            ("ENDPOINT", "NODE", "ZONE", "USED BY", "UNUSED BECAUSE"),
            (
                (
                    each.address,
                    each.node,
                    each.zone,
                    text(f"{each.used_by or 'no'} clients", GOOD if each.used_by else BAD),
                    each.reason,
                )
                for each in port.endpoints
            ),
        )
        if port.hints:
            yield text(f"topology hints ignored: {port.hints}", DIM)
    if service.unmatched:
        yield text("")
        yield table(
            ("UNMATCHED ENDPOINT", "NODE", "REASON"),
            ((each.address, each.node, each.reason) for each in service.unmatched),
        )
    if service.invalid:
        yield text("")
        yield table(
            ("INVALID", "REASON", "MESSAGE"),
            ((p.field, p.reason, p.message) for p in service.invalid),
        )


def _port(port: PortView) -> str:
    name = f"{port.name} " if port.name else ""
    node_port = f" (node port {port.node_port})" if port.node_port else ""
    return f"{name}{port.port}/{port.protocol}{node_port}"


def _policy(service: ServiceView) -> str:
    if service.internal_policy == service.external_policy:
        return service.internal_policy
    return f"internal {service.internal_policy}, external {service.external_policy}"


COMMAND = View(fetch, show, add_arguments).command()
