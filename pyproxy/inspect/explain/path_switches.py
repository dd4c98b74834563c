"""The sysctls on the way of a Service's packets."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from pyproxy.hostnet.not_read import NotRead
from pyproxy.hostnet.packet import Origin, PacketPath
from pyproxy.hostnet.routes import PathRoutes, RouteFacts
from pyproxy.hostnet.switches import SwitchFacts
from pyproxy.inspect.explain.findings import Finding, doubt, fault, merged, note
from pyproxy.inspect.explain.source_validation import Rejected, rejected_by_rp_filter
from pyproxy.inspect.explain.step import Step, not_checked
from pyproxy.inspect.facts import Facts, unserved_families
from pyproxy.model.address import Family, Protocol, address_text

NAME = "switches"
_ALMOST_FULL = 0.9
_ARP_NEVER = 8
_FEW_HOPS = 8
_FEW_PORTS = 256
_SHORT_TIMEOUT = 5
"""Seconds that a response and a repetition of a packet may take."""

_TIMEOUTS = {
    Protocol.TCP: (
        "nf_conntrack_tcp_timeout_syn_sent",
        "nf_conntrack_tcp_timeout_syn_recv",
        "nf_conntrack_tcp_timeout_established",
    ),
    Protocol.UDP: ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"),
}
"""Sysctls below net.netfilter, by the protocol of the connections."""

_LOOPBACK = b"\x7f"


def switches(facts: Facts) -> Step:
    """Check that no sysctl stops the packets."""
    part, routes = facts.path.switches, facts.path.routes
    if isinstance(part, NotRead):
        return not_checked(NAME, part)
    step = merged(NAME, _findings(facts, part, routes), _passed(part))
    return msgspec.structs.replace(step, details=(*step.details, *_counters(part)))


def _passed(part: SwitchFacts) -> str:
    used, limit = part.get("netfilter.nf_conntrack_count"), part.get("netfilter.nf_conntrack_max")
    on = "no sysctl stops the packets"
    return (
        f"{on}; conntrack has {used:,} of {limit:,} entries" if used is not None and limit else on
    )


def _counters(part: SwitchFacts) -> Iterator[str]:
    """Yield a line with the packets that conntrack has dropped or does not know, if any."""
    found = part.conntrack
    if found is None or not (found.dropped or found.insert_failed or found.invalid):
        return
    liberal = part.get("netfilter.nf_conntrack_tcp_be_liberal")
    yield (
        f"conntrack so far: {found.dropped:,} packets dropped, {found.insert_failed:,} lost to "
        f"another entry, {found.invalid:,} invalid (nf_conntrack_tcp_be_liberal is {liberal})"
    )


def _findings(facts: Facts, part: SwitchFacts, routes: RouteFacts | NotRead) -> Iterator[Finding]:
    paths = facts.path.paths.paths
    for path in paths:
        yield from _forwarding(path, part)
        yield from _localhost(path, part)
        yield from _bridge(path, part)
        yield from _arp(path, part)
    troubled = isinstance(routes, RouteFacts) and any(map(is_troubled, routes.routes))
    if troubled or Family.IPV6 in unserved_families(facts):
        yield from _without_ipv6(part)
    if isinstance(routes, RouteFacts):
        yield from _neighbours(facts, part, routes)
        for each in routes.routes:
            rejected = rejected_by_rp_filter(each, routes, part)
            if rejected:
                yield _rp_filter(each.path, rejected)
    yield from _conntrack(part)
    yield from _timeouts(part, {path.leaving.protocol for path in paths})
    if any(path.origin is Origin.NODE for path in paths):
        yield from _own_packets(part)
    for name, value in facts.path.paths.required.items():
        found = part.get(name)
        # The step names ip_forward where it stops packets.
        if found is not None and found != value and name != "ipv4.ip_forward":
            yield fault(
                None,
                f"net.{name} is {found}, but {facts.agent.settings.mode.value} mode needs {value}",
                f"run sysctl -w net.{name}={value}; the agent sets it when it starts",
            )


def _timeouts(part: SwitchFacts, protocols: Collection[int]) -> Iterator[Finding]:
    """Find timeouts after which conntrack forgets a connection before its next packet."""
    for protocol, names in _TIMEOUTS.items():
        for name in names if protocol in protocols else ():
            seconds = part.get(f"netfilter.{name}")
            if seconds is None or seconds >= _SHORT_TIMEOUT:
                continue
            text = f"net.netfilter.{name} is {seconds}: "
            fix = f"raise it, and look for the file in /etc/sysctl.d that sets net.netfilter.{name}"
            if seconds:
                text += (
                    f"a connection that is silent for {seconds} s in this state is forgotten, and "
                    "its packets are no longer translated"
                )
                yield doubt(None, text)
            else:
                text += "conntrack forgets connections at once, so that replies are not translated"
                yield fault(None, text, fix)


def is_forwarded(path: PacketPath) -> bool:
    """Return whether this node forwards the path's packets, instead of sending or receiving."""
    return path.origin is not Origin.NODE and path.leaving.out_device is not None


def _forwarding(path: PacketPath, part: SwitchFacts) -> Iterator[Finding]:
    """Find forwarding that is off, in general or where a packet or its reply arrives."""
    if not is_forwarded(path):
        return
    if name := forwarding_off(path, part):
        device = name.removeprefix("ipv4.conf.").removesuffix(".forwarding")
        is_general = name in ("ipv4.ip_forward", "ipv6.conf.all.forwarding")
        which = "from pods and other hosts" if is_general else f"that arrive on {device}"
        yield fault(
            None,
            f"net.{name} is 0: this node does not forward packets {which}, neither connections to "
            "endpoints nor their replies",
            f"run sysctl -w net.{name}=1, and set it in /etc/sysctl.d, where another file may "
            "switch it off",
        )


def forwarding_off(path: PacketPath, part: SwitchFacts) -> str:
    """Return the sysctl that keeps this node from forwarding a path's packets, or empty."""
    packet = path.leaving
    devices = [device for device in (packet.in_device, packet.out_device) if device]
    if packet.family is Family.IPV6:
        # In IPv6 the value of a device does not decide on forwarding (ip6_forward).
        forced = any(part.of_device(packet.family, d, "force_forwarding") for d in devices)
        off = part.get("ipv6.conf.all.forwarding") == 0 and not forced
        return "ipv6.conf.all.forwarding" if off else ""
    off_devices = [d for d in devices if part.of_device(packet.family, d, "forwarding") == 0]
    if part.get("ipv4.ip_forward") == 0 and (off_devices or not devices):
        return "ipv4.ip_forward"
    return f"ipv4.conf.{off_devices[0]}.forwarding" if off_devices else ""


def _localhost(path: PacketPath, part: SwitchFacts) -> Iterator[Finding]:
    """Find node ports on a loopback address that packets may not leave with."""
    target, device = path.arriving.destination, path.leaving.out_device
    if not target.startswith(_LOOPBACK) or len(target) != 4 or not device:
        return
    if not part.is_set(device, "route_localnet"):
        yield fault(
            path,
            f"net.ipv4.conf.all.route_localnet is 0: packets to {address_text(target)} cannot "
            "leave this node to {}",
            "run sysctl -w net.ipv4.conf.all.route_localnet=1, or connect to another address of "
            "the node",
        )


def _bridge(path: PacketPath, part: SwitchFacts) -> Iterator[Finding]:
    """Find a bridge between pods whose packets may pass conntrack by."""
    packet = path.leaving
    if path.origin is not Origin.POD or not path.local or path.masqueraded:
        return
    if not packet.in_device or packet.in_device != packet.out_device:
        return
    name = f"bridge-nf-call-{'ip' if packet.family is Family.IPV4 else 'ip6'}tables"
    if not part.get(f"bridge.{name}"):
        yield doubt(
            path,
            f"net.bridge.{name} is not 1: a reply from {{}} to a pod on the same bridge "
            f"({packet.in_device}) keeps the endpoint's address, unless pods reach each other "
            "through this node",
        )


def _arp(path: PacketPath, part: SwitchFacts) -> Iterator[Finding]:
    """Find devices on which this node answers no ARP request."""
    if path.leaving.family is Family.IPV6:
        return
    for device in (path.leaving.in_device, path.leaving.out_device):
        if device and part.strongest(device, "arp_ignore") == _ARP_NEVER:
            yield fault(
                None,
                f"arp_ignore of {device} is {_ARP_NEVER}: this node answers no ARP request there, "
                "so its neighbours do not reach it",
                f"run sysctl -w net.ipv4.conf.all.arp_ignore=0 net.ipv4.conf.{device}.arp_ignore=0",
            )


def _neighbours(facts: Facts, part: SwitchFacts, routes: RouteFacts) -> Iterator[Finding]:
    """Find a table of neighbours that is full."""
    for family in facts.path.paths.families:
        version = "ipv4" if family is Family.IPV4 else "ipv6"
        name = f"{version}.neigh.default.gc_thresh3"
        used, limit = routes.neighbours.get(family, 0), part.get(name)
        if limit and used >= limit:
            yield fault(
                None,
                f"the {family.label} neighbour table is full: {used:,} of {limit:,} entries; this "
                "node does not reach further pods and nodes",
                f"raise net.{name}",
            )


def is_troubled(each: PathRoutes) -> bool:
    """Return whether an IPv6 packet has no route, or none but the default."""
    if each.path.leaving.family is Family.IPV4:
        return False
    unknown = each.path.leaving.in_device == ""
    return unknown or bool(each.forward.error) or each.network is None or not each.network.prefix


def _without_ipv6(part: SwitchFacts) -> Iterator[Finding]:
    for name in ipv6_off(part):
        yield fault(
            None,
            f"{name} is 1: the Service's IPv6 packets do not pass",
            f"run sysctl -w {name}=0, or remove IPv6 from spec.ipFamilies",
        )


def ipv6_off(part: SwitchFacts) -> list[str]:
    """Return the sysctls that switch IPv6 off on a device of the packets, or on all."""
    return [
        f"net.ipv6.conf.{device}.disable_ipv6"
        for device in ("all", *part.devices)
        if part.of_device(Family.IPV6, device, "disable_ipv6")
    ]


def _rp_filter(path: PacketPath, found: Rejected) -> Finding:
    source, kind = address_text(found.source), "strict" if found.strict else "loose"
    route = f"the route back is through {found.back}" if found.back else "there is no route back"
    return fault(
        path,
        f"rp_filter of {found.device} is {kind}: packets from {source} that arrive there are "
        f"dropped, because {route}",
        f"correct the route to {source}, or run sysctl -w net.ipv4.conf.all.rp_filter="
        f"{2 if found.strict else 0} net.ipv4.conf.{found.device}.rp_filter="
        f"{2 if found.strict else 0}",
    )


def _own_packets(part: SwitchFacts) -> Iterator[Finding]:
    ttl = part.get("ipv4.ip_default_ttl")
    if ttl is not None and ttl < _FEW_HOPS:
        yield fault(
            None,
            f"net.ipv4.ip_default_ttl is {ttl}: this node's own packets end on their way",
            "run sysctl -w net.ipv4.ip_default_ttl=64",
        )
    ports = part.local_ports
    if ports is not None and ports < _FEW_PORTS:
        yield doubt(
            None,
            f"net.ipv4.ip_local_port_range has {ports:,} ports: this node cannot have more "
            "connections to one frontend, and those that ended count for a minute",
        )


def _conntrack(part: SwitchFacts) -> Iterator[Finding]:
    used, limit = part.get("netfilter.nf_conntrack_count"), part.get("netfilter.nf_conntrack_max")
    lost = part.conntrack.dropped if part.conntrack else 0
    if used is not None and limit and used >= limit:
        yield fault(
            None,
            f"the conntrack table is full: {used:,} of {limit:,} entries; new connections are "
            "dropped",
            "raise net.netfilter.nf_conntrack_max (--conntrack-max-per-core), or find the program "
            "that opens so many connections: conntrack -L",
        )
    elif used is not None and limit and used > limit * _ALMOST_FULL:
        yield note(f"the conntrack table is almost full; {lost:,} packets were dropped so far")
