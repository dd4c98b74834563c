"""Marks that other programs' rules set on packets, and the policy rules that test them."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

from pyproxy.hostnet.devices import Devices
from pyproxy.hostnet.marked_routes import MarkedRoute
from pyproxy.hostnet.not_read import NotRead
from pyproxy.inspect.explain.findings import Finding, doubt, fault


def marks(marked: Sequence[MarkedRoute] | NotRead, devices: Devices) -> Iterator[Finding]:
    """Find packets that the kernel routes in another way because of their mark."""
    if isinstance(marked, NotRead):
        yield doubt(None, f"not read: the routes of packets with a mark: {marked.reason}")
        return
    for each in marked:
        path, mark, route = each.packet.path, each.mark, each.route
        if each.usual.error:
            continue
        packets = f"packets from {path.origin.value} to {{}}"
        if each.packet.is_reply:
            packets = f"the replies of {{}} to {path.origin.value}"
        sets = "sets" if each.certain else "may set"
        text = f"a rule of another program {sets} the mark {mark:#x} on {packets}, "
        if route.error:
            code = errno.errorcode.get(route.error, str(route.error))
            text += f"with which the kernel does not route them ({code})"
            if not each.certain:
                yield doubt(path, f"{text}: see ip rule")
                continue
            fix = f"nft list ruleset for the rule that sets {mark:#x}"
            yield fault(path, text, f"see ip rule for this mark, and {fix}")
        elif (route.device, route.gateway) != (each.usual.device, each.usual.gateway):
            yield doubt(
                path,
                f"{text}which therefore leave by {devices.name(route.device)} instead of "
                f"{devices.name(each.usual.device)}: see ip rule",
            )
