"""The packet tracer of ipvs mode: `tracer` over what the kernel holds at this moment.

It reads the elements and the virtual service that the packet meets, so a trace costs the same with
any number of Services. Only persistence templates, which no message asks for, are read whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.kernel import Kernel
from pyproxy.dataplane.ipvs.ruleset import Options, base_rules
from pyproxy.dataplane.ipvs.schema import TABLE
from pyproxy.dataplane.ipvs.tracer import IpvsState, trace
from pyproxy.dataplane.nft.base_rules import Layout
from pyproxy.dataplane.nft.loaded_options import (
    confirmed,
    options_to_trace,
    read_traffic_options,
)
from pyproxy.dataplane.nft.loader import read_layout
from pyproxy.dataplane.nft.readback import kernel_rows
from pyproxy.dataplane.packets import Packet, TraceResult
from pyproxy.model.address import Address, Backend, Port, Protocol, parse_address
from pyproxy.netlink.ipvs import Virtual
from pyproxy.netlink.nfnetlink import Nfnetlink

# /proc/net shows the namespace of the main thread, thread-self that of the calling one.
_CONNECTIONS = Path("/proc/thread-self/net/ip_vs_conn")
_NO_PORT = "0000"
_BY_MARK = "IP"

K = TypeVar("K")
V = TypeVar("V")


class IpvsTracer:
    """Traces through IPVS and table inet pyproxy-ipvs, in the namespace that it was made in.

    `local_addresses` returns the addresses of the node's devices without kube-ipvs0.
    """

    def __init__(self, local_addresses: Callable[[], Iterable[Address]]) -> None:
        self._local_addresses = local_addresses
        self._netlink = Nfnetlink()
        self._kernel = Kernel()

    def trace(self, packet: Packet) -> TraceResult:
        """Return the paths of a packet through the present state. Raises KernelError, UsageError.

        IPVS has no generation number, so a change during the trace is not noticed.
        """
        options, remarks = options_to_trace(
            read_layout(self._netlink, TABLE), TABLE, "ipvs", loaded_options, base_rules
        )
        kernel = self._kernel
        state = IpvsState(
            kernel_rows(self._netlink, TABLE, schema.BY_NAME),
            _Asked(kernel.scheduling),
            _Asked(kernel.servers),
            options,
            frozenset(self._local_addresses()),
            kernel.addresses().ours,
            _Asked(_template),
        )
        return trace(packet, state, remarks)

    def close(self) -> None:
        """Close the sockets."""
        self._netlink.close()
        self._kernel.close()


def loaded_options(layout: Layout) -> Options | None:
    """Return the options that the rules were loaded for; None for another version's rules."""
    found = read_traffic_options(
        layout.rules.get("new-connections", []), layout.rules.get("services", [])
    )
    if found is None:
        return None
    # The rules with and without this option differ, and so do their digests: try both.
    candidates = (
        Options(
            mark=found.mark,
            masquerade_all=masquerade_all,
            pod_interface=found.pod_interface,
            pod_families=found.pod_families,
        )
        for masquerade_all in (False, True)
    )
    return confirmed(layout, candidates, base_rules)


class _Asked(Mapping[K, V]):
    """A mapping that reads a value from the kernel at each look-up, and lists no keys."""

    def __init__(self, ask: Callable[[K], V | None]) -> None:
        self._ask = ask

    def __getitem__(self, key: K) -> V:
        found = self._ask(key)
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[K]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _template(key: tuple[Virtual, Address]) -> Backend | None:
    try:
        with _CONNECTIONS.open() as lines:
            return find_template(lines, *key)
    except OSError:
        return None


def find_template(lines: Iterable[str], virtual: Virtual, client: Address) -> Backend | None:
    """Find the server that a client of a persistent virtual service had, in ip_vs_conn's lines.

    A template is an entry whose client port is 0. One of a virtual service by mark has the protocol
    IP, and the mark in its destination's first four bytes.
    """
    protocol, address, port = _BY_MARK, virtual.address, virtual.port
    if virtual.mark:
        width = virtual.family.bits // 8
        address = Address(virtual.mark.to_bytes(4, "big").ljust(width, b"\0"))
    else:
        protocol = Protocol(virtual.protocol).name
    for line in lines:
        words = line.split()
        if len(words) < 7 or words[0] != protocol or words[2] != _NO_PORT:
            continue
        if (
            _address(words[1]) == client
            and _address(words[3]) == address
            and Port(int(words[4], 16)) == port
        ):
            return Backend(_address(words[5]) + bytes.fromhex(words[6]))
    return None


def _address(text: str) -> Address:
    return parse_address(text) if ":" in text else Address(bytes.fromhex(text))
