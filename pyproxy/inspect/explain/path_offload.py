"""Policy engines whose rules the packets of offloaded connections do not meet."""

from __future__ import annotations

from collections.abc import Iterator

from pyproxy.config.settings import FlowOffload
from pyproxy.hostnet.firewall.facts import FirewallFacts
from pyproxy.hostnet.firewall.owners import Owner, owner_of
from pyproxy.inspect.explain.findings import Finding, note
from pyproxy.inspect.facts import Facts
from pyproxy.model.address import Protocol

# The protocols that the kernel's flowtables take.
_OFFLOADED = (Protocol.TCP, Protocol.UDP)


def offload(facts: Facts, part: FirewallFacts) -> Iterator[Finding]:
    """Yield a note for each policy engine, if connections to the Service may be offloaded."""
    if not may_be_offloaded(facts):
        return
    engines: dict[Owner, tuple[str, str]] = {}
    for chain in (*part.chains, *part.entered):
        owner = owner_of(*chain)
        if owner.offloaded:
            engines.setdefault(owner, chain)
    for owner, (table, name) in engines.items():
        yield note(
            f"with --flow-offload, packets of established connections pass no rule of {owner.name} "
            f"(chain {name} in table {table}): {owner.offloaded}; --flow-offload=none keeps them "
            "off the fast path"
        )


def may_be_offloaded(facts: Facts) -> bool:
    """Return whether the agent may offload connections to the Service."""
    agent = facts.agent
    return (
        agent.settings.nftables.flow_offload is FlowOffload.SERVICES
        and agent.service is not None
        and not agent.service.affinity_timeout
        and any(each.port.protocol in _OFFLOADED for each in facts.ports())
    )
