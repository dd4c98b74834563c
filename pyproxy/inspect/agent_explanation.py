"""The explanation of a Service that the page shows, read in the agent's process."""

from __future__ import annotations

from pyproxy.hostnet.read import read_path
from pyproxy.inspect.agent_facts import agent_facts
from pyproxy.inspect.explain import Explanation, explain
from pyproxy.inspect.facts import Facts
from pyproxy.inspect.kernel_facts import kernel_facts
from pyproxy.inspect.service_paths import service_paths
from pyproxy.inspect.services import object_name
from pyproxy.inspect.snapshot import Snapshot
from pyproxy.source.api_objects import ServiceLookup


def explain_in_agent(snapshot: Snapshot, name: str) -> Explanation:
    """Return the explanation of NAMESPACE/NAME. Raises UsageError if it is no such name.

    Reads the kernel in the caller's thread, and never connects. It does not query the API server,
    because the page has readers without rights, who could query it through the agent.
    """
    agent = agent_facts(snapshot, str(object_name(name)))
    unread = "the page does not query it: run pyproxy explain"
    lookup = ServiceLookup(service_skipped=unread, pods_skipped=unread)
    path = read_path(service_paths(agent, None))
    return explain(name, Facts(agent, lookup, kernel_facts(agent), path=path))
