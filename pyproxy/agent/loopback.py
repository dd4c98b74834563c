"""Node ports on loopback addresses, and what the kernel has to be told for them.

A connection to 127.0.0.1 that is sent on to a pod leaves this machine, and its answers come back
in for 127.0.0.1. The kernel drops such packets unless the sysctl route_localnet says otherwise,
and the table then drops what others send to loopback addresses. For ::1 there is no such sysctl.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pyproxy.config.settings import NodePorts
from pyproxy.model.address import Address, Network

log = logging.getLogger(__name__)

IPV6 = Address(bytes(15) + b"\x01")
_IPV4 = Network(Address(b"\x7f\0\0\0"), 8)
_SYSCTL = "net.ipv4.conf.all.route_localnet"
_PATH = Path("/proc/sys", *_SYSCTL.split("."))


def is_loopback(address: Address) -> bool:
    """Tell whether an address is one that only this machine itself can send to."""
    return address in _IPV4 or address == IPV6


def is_asked_for(node_ports: NodePorts) -> bool:
    """Tell whether node ports are to answer on 127.0.0.1 or another address of 127.0.0.0/8."""
    return node_ports.loopback and _is_named(node_ports)


def _is_named(node_ports: NodePorts) -> bool:
    return node_ports.localhost or any(
        network.address in _IPV4 or _IPV4.address in network for network in node_ports.networks
    )


def prepare(node_ports: NodePorts) -> None:
    """Have the kernel let loopback addresses through, or say what will not work."""
    if is_asked_for(node_ports):
        _let_through()
    elif _is_named(node_ports):
        log.info("node ports do not answer on 127.0.0.1 in this mode, as it is configured")
    if node_ports.localhost or any(IPV6 in network for network in node_ports.networks):
        log.info("node ports do not answer on ::1: the kernel sends nothing on from there")


def _let_through() -> None:
    try:
        if _PATH.read_text().strip() == "1":
            return
        _PATH.write_text("1")
    except OSError as error:
        log.warning(
            "node ports will not answer on 127.0.0.1: %s cannot be set to 1 (%s): set it on the "
            "node, or leave localhost out of --nodeport-addresses",
            _SYSCTL,
            error.strerror,
        )
    else:
        log.info("%s is 1 now, for node ports on 127.0.0.1", _SYSCTL)
