"""Traffic control, XDP programs and IPsec policies on the way of a Service's packets.

pyproxy reads that they exist, not what they do: a finding is undecided, unless packets end there.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyproxy.hostnet.not_read import NotRead
from pyproxy.hostnet.packet import Origin, PacketPath
from pyproxy.hostnet.transforms import TransformFacts
from pyproxy.inspect.explain.findings import Finding, doubt, fault
from pyproxy.model.address import Address, Family, Network
from pyproxy.netlink.xfrm import Policy

_USUAL_QUEUES = frozenset(
    {"noqueue", "mq", "pfifo_fast", "fq_codel", "fq", "fq_pie", "cake", "sfq", "codel", "pie",
     "mqprio", "multiq", "clsact", "ingress", ""}
)  # fmt: skip
_BLACKHOLE = "blackhole"
_Ends = tuple[tuple[Address | None, ...], tuple[Address | None, ...]]


def transforms(part: TransformFacts | NotRead, paths: tuple[PacketPath, ...]) -> Iterator[Finding]:
    """Yield the findings of all paths; what was not read is undecided."""
    if isinstance(part, NotRead):
        yield doubt(None, f"not read: traffic control and IPsec: {part.reason}")
        return
    for reason in part.unread:
        yield doubt(None, f"not read: {reason}")
    for device, kind in part.queues:
        if kind == _BLACKHOLE:
            yield fault(
                None,
                f"the queueing discipline {kind} of {device} drops all packets",
                f"remove it: tc qdisc del dev {device} root",
            )
        elif kind not in _USUAL_QUEUES:
            yield doubt(
                None,
                f"the queueing discipline {kind} of {device} may delay and drop packets: see tc -s "
                f"qdisc show dev {device}",
            )
    for program in part.programs:
        yield doubt(
            None,
            f"it is undecided whether {program.what} of {program.device} drops or redirects "
            "packets: pyproxy cannot evaluate it",
        )
    for path in paths:
        yield from _ipsec(part, path)


def _ipsec(part: TransformFacts, path: PacketPath) -> Iterator[Finding]:
    for direction in _directions(path):
        ends = (_there(path), _back(path))
        policy = next(
            (
                each
                for each in part.policies
                if each.direction == direction and any(_may_match(each, path, end) for end in ends)
            ),
            None,
        )
        if policy is None and direction in part.blocked:
            yield fault(
                path,
                f"the default IPsec policy blocks packets of direction {direction}: those "
                f"from {path.origin.value} to {{}} do not pass",
                f"run ip xfrm policy setdefault {direction} accept, or add a policy for pods",
            )
        elif policy is not None and (policy.blocks or policy.transforms):
            yield doubt(
                path,
                f"it is undecided whether the IPsec policy {policy} stops packets from "
                f"{path.origin.value} to {{}}: see ip xfrm policy",
            )


def _directions(path: PacketPath) -> tuple[str, ...]:
    if path.origin is Origin.NODE or path.leaving.out_device is None:
        return ("out", "in")
    return ("fwd", "out")


def _there(path: PacketPath) -> _Ends:
    targets = (path.arriving.destination, path.leaving.destination)
    return (path.leaving.source or path.leaving.sample,), targets


def _back(path: PacketPath) -> _Ends:
    sources, targets = _there(path)
    return targets, sources


def _may_match(policy: Policy, path: PacketPath, ends: _Ends) -> bool:
    if policy.protocol not in (0, path.leaving.protocol):
        return False
    sources, destinations = ends
    family = path.leaving.family
    return any(_may_be_in(policy.source, each, family) for each in sources) and any(
        _may_be_in(policy.destination, each, family) for each in destinations
    )


def _may_be_in(network: Network, address: Address | None, family: Family) -> bool:
    return network.family is family and (address is None or address in network)
