"""Cluster IPs and node ports: who has which.

As in a real server, numbers that are not requested come from the upper part of a range first, so
that the lower part stays free for those who choose their own.
"""

from __future__ import annotations

import ipaddress
import random

from pyproxy_lab.apiserver.status import ApiError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AllocationError(Exception):
    """A number is taken, or outside the range; the text is the API's."""


class _Numbers:
    """Numbers from `first` to `last`, each given out once."""

    def __init__(self, first: int, last: int, band: int) -> None:
        self.first, self.last = first, last
        self._upper = min(first + band, last)
        self._taken: set[int] = set()

    def take(self, number: int) -> bool:
        """Take one, and tell whether it was free."""
        if number in self._taken:
            return False
        self._taken.add(number)
        return True

    def take_any(self) -> int | None:
        """Take a free one: any of the upper part, then any of the lower."""
        for low, high in ((self._upper, self.last), (self.first, self._upper - 1)):
            if low > high:
                continue
            start = random.randint(low, high)  # noqa: S311
            for offset in range(min(high - low + 1, len(self._taken) + 1)):
                number = low + (start - low + offset) % (high - low + 1)
                if self.take(number):
                    return number
        return None

    def give_back(self, number: int) -> None:
        self._taken.discard(number)


class AddressRange:
    """The cluster IPs of one family. The network's own address and, in IPv4, broadcast are out."""

    def __init__(self, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
        self.network = network
        base, size = int(network.network_address), network.num_addresses
        self.family = f"IPv{network.version}"
        last = base + size - (2 if network.version == 4 else 1)
        # Kubernetes keeps min(max(16, size / 16), 256) addresses for those who choose.
        self._numbers = _Numbers(base + 1, last, min(max(16, size // 16), 256))

    def take(self, text: str) -> None:
        """Take a requested address. Raises AllocationError."""
        address = ipaddress.ip_address(text)
        if not (
            address in self.network and self._numbers.first <= int(address) <= self._numbers.last
        ):
            raise AllocationError(
                f"failed to allocate IP {text}: the provided IP ({text}) is not in the valid "
                f"range. The range of valid IPs is {self.network}"
            )
        if not self._numbers.take(int(address)):
            raise AllocationError(f"failed to allocate IP {text}: provided IP is already allocated")

    def take_any(self) -> str:
        """Take any free address."""
        number = self._numbers.take_any()
        if number is None:
            raise ApiError(500, "InternalError", "failed to allocate a serviceIP: range is full")
        return str(type(self.network.network_address)(number))

    def give_back(self, text: str) -> None:
        """Let an address go."""
        self._numbers.give_back(int(ipaddress.ip_address(text)))


class PortRange:
    """Node ports; health check node ports come from the same range."""

    def __init__(self, first: int, last: int) -> None:
        size = last - first + 1
        self._numbers = _Numbers(first, last, min(max(16, size // 32), 128, size - 1))

    def take(self, port: int) -> None:
        """Take a requested port. Raises AllocationError."""
        first, last = self._numbers.first, self._numbers.last
        if not first <= port <= last:
            raise AllocationError(
                "provided port is not in the valid range. The range of valid ports is "
                f"{first}-{last}"
            )
        if not self._numbers.take(port):
            raise AllocationError("provided port is already allocated")

    def take_any(self) -> int:
        """Take any free port."""
        port = self._numbers.take_any()
        if port is None:
            raise ApiError(500, "InternalError", "failed to allocate a nodePort: range is full")
        return port

    def give_back(self, port: int) -> None:
        """Let a port go."""
        self._numbers.give_back(port)
