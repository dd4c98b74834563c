"""Commit Services of a given size first, in this network namespace, and read them back.

Prints the sizes of the desired and of the kernel state as JSON.

python -m tests.chaos.cold_start SERVICES ENDPOINTS
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.readback import read_table
from pyproxy.model.address import Address, Backend, Family, Port, Protocol
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.agent.objects import rows

SETS = ("services4", "endpoints4")


def routings(services: int, endpoints: int) -> Iterator[ServiceRouting]:
    port = (8080).to_bytes(2, "big")
    for number in range(services):
        address = Address(b"\x0a\x60" + number.to_bytes(2, "big"))
        frontend = Frontend(Scope.CLUSTER_IP, address, Port(80), Use.CLUSTER)
        backends = tuple(
            Backend((number * endpoints + each + (11 << 24)).to_bytes(4, "big") + port)
            for each in range(endpoints)
        )
        yield ServiceRouting(
            ObjectName("cold", f"s{number}"),
            (PortRouting("", Family.IPV4, Protocol.TCP, (frontend,), backends, ()),),
        )


def main() -> None:
    logging.basicConfig()
    services = list(routings(*map(int, sys.argv[1:])))
    dataplane = NftablesDataplane(NftablesOptions())
    dataplane.prepare()
    dataplane.commit(dataplane.plan_full(services, NodeRouting()))
    kernel = read_table(Nfnetlink())
    desired = rows(services, NodeRouting())
    print(
        json.dumps(
            {
                "right": kernel == desired,
                "kernel": {name: len(kernel[name]) for name in SETS},
                "desired": {name: len(desired[name]) for name in SETS},
            }
        )
    )


if __name__ == "__main__":
    main()
