"""The command `pyproxy lab apiserver`."""

from __future__ import annotations

import argparse
import ipaddress
import signal
from contextlib import ExitStack
from pathlib import Path

from pyproxy.errors import UsageError
from pyproxy_lab.apiserver.settings import DEFAULT_CLUSTER_IPS, Network, Settings

_ENDINGS = (signal.SIGTERM, signal.SIGINT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags to a parser."""
    add = parser.add_argument
    add("--listen", default="127.0.0.1:8001", metavar="HOST:PORT", help="where to listen")
    add("--token", default="", help="the bearer token of an administrator; none: all are one")
    add("--proxy-token", default="", help="a token with the rights of a Service proxy alone")
    add(
        "--service-cluster-ip-range",
        default=",".join(map(str, DEFAULT_CLUSTER_IPS)),
        metavar="CIDR[,CIDR]",
        help="the cluster IPs to give out, the primary family first",
    )
    add(
        "--service-node-port-range",
        default="30000-32767",
        metavar="FIRST-LAST",
        help="the node ports to give out",
    )
    add("--tls-cert", type=Path, metavar="FILE", help="a certificate, to serve https")
    add("--tls-key", type=Path, metavar="FILE", help="the certificate's key")
    add(
        "--controllers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="make EndpointSlices of pods and the Services that select them",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Raises UsageError."""
    settings = _settings(args)
    # --help does not wait for aiohttp.
    from pyproxy_lab.apiserver.server import ApiServer  # noqa: PLC0415

    with ExitStack() as stack:
        # Blocked in all threads, so that they wait for `sigwait`. A handler may run too late,
        # because Python cannot interrupt a wait that begins when the signal arrives.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        server = stack.enter_context(ApiServer.running(settings))
        if args.controllers:
            from pyproxy_lab.endpointslice_controller import Controller  # noqa: PLC0415

            stack.enter_context(Controller.running(server.url, settings.token))
        print(f"serving {server.url}", flush=True)
        signal.sigwait(_ENDINGS)
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    host, port = _address(args.listen)
    first, last = _port_range(args.service_node_port_range)
    if (args.tls_cert is None) != (args.tls_key is None):
        raise UsageError("lab apiserver: --tls-cert and --tls-key go together: give both")
    return Settings(
        host=host,
        port=port,
        token=args.token,
        proxy_token=args.proxy_token,
        cluster_ips=_networks(args.service_cluster_ip_range),
        first_node_port=first,
        last_node_port=last,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
    )


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and int(port) < 65536):
        raise UsageError(f"lab apiserver: --listen {text}: write HOST:PORT, such as 127.0.0.1:8001")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _port_range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    try:
        numbers = int(first), int(last)
    except ValueError:
        numbers = (0, 0)
    if not 0 < numbers[0] < numbers[1] < 65536:
        raise UsageError(
            f"lab apiserver: --service-node-port-range {text}: write FIRST-LAST, such as "
            "30000-32767"
        )
    return numbers


def _networks(text: str) -> tuple[Network, ...]:
    flag = "lab apiserver: --service-cluster-ip-range"
    try:
        networks = tuple(ipaddress.ip_network(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{flag} {text}: {error}") from error
    if len(networks) > 2 or len({network.version for network in networks}) != len(networks):
        raise UsageError(f"{flag} {text}: give one network, or one of each family")
    if any(network.num_addresses < 16 for network in networks):
        raise UsageError(f"{flag} {text}: a network has too few addresses: 16 are the least")
    return networks
