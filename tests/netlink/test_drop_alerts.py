"""Alerts of the drop monitor that four kernels sent, and damaged ones."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.model.address import Backend, Port, backend, parse_address
from pyproxy.netlink.attributes import attribute
from pyproxy.netlink.drop_alerts import PACKET_ALERT, Alert, read_alerts
from pyproxy.netlink.frames import pack_message

RECORDED = Path(__file__).with_name("recorded")
FAMILIES = {"5.10": 30, "6.1": 33, "6.12": 36, "7.2": 38}
TCP, UDP = 6, 17
CLIENT, POD = "10.1.0.2", "10.2.0.2"

# Kernels before 6.0 give no reason, and other functions.
REASONS = {
    "pod-no-socket": (TCP, CLIENT, POD, 81, "NO_SOCKET"),
    "node-no-socket": (TCP, CLIENT, "10.1.0.1", 81, "NO_SOCKET"),
    "node-no-socket-udp": (UDP, CLIENT, "10.1.0.1", 81, "NO_SOCKET"),
    "nft-forward": (TCP, CLIENT, POD, 82, "NETFILTER_DROP"),
    "nft-raw": (TCP, CLIENT, POD, 86, "NETFILTER_DROP"),
    "no-route": (TCP, CLIENT, "10.9.0.2", 84, "IP_INNOROUTES"),
    "rp-filter": (TCP, "10.3.0.5", POD, 85, "IP_RPFILTER"),
    "neigh": (TCP, CLIENT, "10.2.0.77", 87, "NEIGH_FAILED"),
    "v6-no-route": (TCP, "fd01::2", "fd09::1", 88, "IP_INNOROUTES"),
}
FUNCTIONS = {
    "5.10": {
        "nft-forward": "nf_hook_slow",
        "no-route": "ip_error",
        "rp-filter": "ip_rcv_finish_core",
        "v6-no-route": "ip6_pkt_drop",
    },
    "6.12": {"nft-forward": "nft_do_chain", "pod-no-socket": "tcp_v4_rcv"},
}


def end(address: str, port: int) -> Backend:
    return backend(parse_address(address), Port(port))


def recorded(kernel: str) -> dict[str, bytes]:
    lines = (RECORDED / f"drop-alerts-{kernel}.txt").read_text().splitlines()
    return {name: bytes.fromhex(data) for name, data in map(str.split, lines)}


@pytest.mark.parametrize("kernel", FAMILIES)
def test_recorded_alerts(kernel: str) -> None:
    found = recorded(kernel)
    assert set(found) == set(REASONS)
    for name, data in found.items():
        protocol, source, destination, port, reason = REASONS[name]
        (alert,) = read_alerts(data, FAMILIES[kernel])
        assert alert.protocol == protocol
        assert alert.source[:-2] == parse_address(source)
        assert alert.destination == end(destination, port)
        assert alert.reason == ("" if kernel == "5.10" else reason)
        assert alert.function.isidentifier()
        assert alert.function == FUNCTIONS.get(kernel, {}).get(name, alert.function)
        assert list(read_alerts(data, FAMILIES[kernel] + 1)) == []


def packed(payload: bytes, ethertype: int = 0x0800, reason: bytes = b"NOT_SPECIFIED\0") -> bytes:
    body = b"".join(
        (
            bytes((PACKET_ALERT, 2, 0, 0)),
            attribute(3, b"ip_forward+0x1/0x2\0"),
            attribute(6, struct.pack("=H", ethertype)),
            attribute(7, payload),
            attribute(23, reason),
        )
    )
    return pack_message(40, 0, 0, body)


HEADER4 = bytes.fromhex("4500001d000040004011") + bytes(2) + bytes((10, 0, 0, 1, 10, 0, 0, 2))
PORTS = struct.pack(">HH", 1000, 53) + bytes(4)
ALERT4 = Alert(UDP, end("10.0.0.1", 1000), end("10.0.0.2", 53), "ip_forward", "")
HEADER6 = struct.pack(">IHBB", 6 << 28, 8, UDP, 64) + parse_address("fd00::1") * 2
ALERT6 = Alert(UDP, end("fd00::1", 1000), end("fd00::1", 53), "ip_forward", "")


@pytest.mark.parametrize(
    ("payload", "ethertype", "alert"),
    [
        (bytes(12) + b"\x08\x00" + HEADER4 + PORTS, 0x0800, ALERT4),
        (bytes(12) + b"\x81\x00\0\7\x08\x00" + HEADER4 + PORTS, 0x0800, ALERT4),
        (HEADER4 + PORTS, 0x0800, ALERT4),
        (b"\x46" + HEADER4[1:] + b"\x94\x04\0\0" + PORTS, 0x0800, ALERT4),
        (HEADER6 + PORTS, 0x86DD, ALERT6),
        (HEADER6[:6] + b"\0" + HEADER6[7:] + bytes((UDP, 0, 1, 4, 0, 0, 0, 0)) + PORTS, 0x86DD,
         ALERT6),
        (HEADER6[:6] + b"\x2c" + HEADER6[7:] + bytes((UDP, 0, 0, 1, 0, 0, 0, 9)) + PORTS, 0x86DD,
         ALERT6),
        # Later fragments have no ports, ICMP has none at all, and ARP no addresses of IP.
        (HEADER4[:6] + b"\0\7" + HEADER4[8:] + PORTS, 0x0800, None),
        (HEADER6[:6] + b"\x2c" + HEADER6[7:] + bytes((UDP, 0, 1, 0, 0, 0, 0, 9)) + PORTS, 0x86DD,
         None),
        (HEADER4[:9] + b"\1" + HEADER4[10:] + PORTS, 0x0800, None),
        (bytes(12) + b"\x08\x06" + bytes(28), 0x0806, None),
        (HEADER4, 0x0800, None),
        (HEADER4[:12], 0x0800, None),
        (b"", 0x86DD, None),
    ],
)  # fmt: skip
def test_headers(payload: bytes, ethertype: int, alert: Alert | None) -> None:
    found = list(read_alerts(packed(payload, ethertype), 40))
    assert found == ([alert] if alert else [])


@given(st.binary(max_size=120), st.sampled_from((0x0800, 0x86DD)))
def test_any_payload_is_read_or_left_out(payload: bytes, ethertype: int) -> None:
    for alert in read_alerts(packed(payload, ethertype), 40):
        assert len(alert.source) == len(alert.destination) == (6 if ethertype == 0x0800 else 18)


@given(st.integers(0, 300), st.sampled_from(sorted(REASONS)))
def test_cut_messages_raise_nothing(length: int, name: str) -> None:
    data = recorded("6.12")[name]
    assert len(list(read_alerts(data[:length], FAMILIES["6.12"]))) <= 1
