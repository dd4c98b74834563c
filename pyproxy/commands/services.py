"""`pyproxy services`: what each Service port has, who serves it, and who does not."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from pyproxy.commands.asker import Asker
from pyproxy.commands.command import View
from pyproxy.commands.parts import BAD, DIM, GOOD, Part, Text, facts, table, text
from pyproxy.inspect.services import SERVICES, PortView, Services, ServiceView, Which, object_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which Services are asked for."""
    parser.add_argument("name", nargs="?", metavar="NAMESPACE/NAME", help="one Service, in full")
    parser.add_argument("-n", "--namespace", default="", help="those of one namespace")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="all (the default)")


def ask(asker: Asker, namespace: argparse.Namespace) -> Services:
    """Ask for them."""
    name = namespace.name or ""
    if name and "/" not in name and namespace.namespace:
        name = f"{namespace.namespace}/{name}"
    if name:
        object_name(name)
    return asker.ask(SERVICES, Which(name, "" if name else namespace.namespace))


def show(found: Services) -> Iterator[Part]:
    """Show a line for each port, or everything about one Service."""
    if found.named:
        yield from _in_full(found.services[0])
        return
    yield table(
        ("NAMESPACE", "NAME", "PORT", "ADDRESSES", "POLICY", "ENDPOINTS", "NOT USED"),
        (_row(service, port) for service in found.services for port in service.ports),
    )


def _row(service: ServiceView, port: PortView) -> tuple[str | Text, ...]:
    used = [backend for backend in port.backends if backend.used_by]
    unused = sorted({backend.why_not for backend in port.backends if not backend.used_by})
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
        text(f"{len(used)}/{len(port.backends)}", GOOD if used else BAD),
        "; ".join(unused),
    )


def _in_full(service: ServiceView) -> Iterator[Part]:
    yield facts(
        [
            ("service", f"{service.namespace}/{service.name}"),
            ("policy", f"internal {service.internal_policy}, external {service.external_policy}"),
            ("affinity", f"{service.affinity_seconds} s" if service.affinity_seconds else "none"),
            ("source ranges", ", ".join(service.source_ranges) or "everybody"),
            *([] if service.programmed else [("programmed", text("not yet", BAD))]),
        ]
    )
    for port in service.ports:
        yield text("")
        yield text(f"port {_port(port)}, {port.family}", "bold")
        yield table(
            ("ADDRESS", "KIND", "USE"),
            ((f.address, f"{f.scope} :{f.port}", f.use) for f in port.frontends),
        )
        yield text("")
        yield table(
            ("ENDPOINT", "NODE", "ZONE", "USED BY", "WHY NOT"),
            (
                (
                    b.backend,
                    b.node,
                    b.zone,
                    text(b.used_by or "nobody", GOOD if b.used_by else BAD),
                    b.why_not,
                )
                for b in port.backends
            ),
        )
        if port.hints:
            yield text(f"topology hints: {port.hints}", DIM)
    if service.elsewhere:
        yield text("")
        yield table(
            ("FOR NO PORT", "NODE", "WHY"),
            ((b.backend, b.node, b.why_not) for b in service.elsewhere),
        )
    if service.problems:
        yield text("")
        yield table(
            ("SET ASIDE", "REASON", "WHAT"),
            ((p.field, p.reason, p.message) for p in service.problems),
        )


def _port(port: PortView) -> str:
    name = f"{port.name} " if port.name else ""
    node_port = f" (node port {port.node_port})" if port.node_port else ""
    return f"{name}{port.port}/{port.protocol}{node_port}"


def _policy(service: ServiceView) -> str:
    if service.internal_policy == service.external_policy:
        return service.internal_policy
    return f"{service.internal_policy}, external {service.external_policy}"


COMMAND = View(ask, show, add_arguments).command()
