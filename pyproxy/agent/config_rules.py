"""Mistakes in the configuration that the objects of the cluster show: pure functions."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from pyproxy.agent.node_addresses import MOST_IN_NETWORKS
from pyproxy.config.settings import LocalMode, Settings
from pyproxy.inspect.humanize import duration
from pyproxy.model.address import FAMILIES, Address, Family, Network, address_text, family_of
from pyproxy.model.config_problems import ConfigProblem, ConfigTopic
from pyproxy.model.objects import Node, ObjectName

CLOCK_TOLERANCE = 60.0
"""Seconds that two clocks may differ; the Date of a response is up to a few seconds old."""

_SERVICE = ObjectName("default", "kubernetes")
_SERVICE_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
# kube-proxy's words, which people search for.
_INCOMPLETE = "configuration may be incomplete or incorrect"
_NEAREST = 3
_SIMILAR = 0.6
"""difflib's ratio from which one name is taken for a misspelling of another."""


def nearest(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return the names most like `name`, the likeliest first: same host, then similar spelling."""
    known = sorted(set(names))
    host = name.partition(".")[0]
    same = [each for each in known if each.partition(".")[0] == host]
    similar = difflib.get_close_matches(name, known, _NEAREST, _SIMILAR)
    return tuple(dict.fromkeys([*same, *similar]))[:_NEAREST]


def node_problems(
    settings: Settings,
    node: Node | None,
    names: tuple[str, ...],
    local: Collection[Address],
    service_families: Collection[Family],
) -> Iterator[ConfigProblem]:
    """Yield what is wrong with the Node.

    `names` are those of some Nodes of the cluster, which matter only without a Node. `local` are
    the addresses of this machine. Both are empty if they are unknown. `service_families` are those
    of the cluster IPs.
    """
    if node is None:
        yield _not_found(settings.node_name, names)
        return
    if local and node.addresses and not any(each in local for each in node.addresses):
        addresses = ", ".join(map(address_text, node.addresses))
        yield ConfigProblem(
            ConfigTopic.NODE_ADDRESSES_ELSEWHERE,
            f"this machine has none of the addresses of Node {node.name} ({addresses})",
            "check that --hostname-override is the name of this node, and not of another one",
        )
    if settings.local_traffic.mode is not LocalMode.NODE_CIDR:
        return
    lacking = set(service_families) - {network.family for network in node.pod_networks}
    for family in (None,) if not node.pod_networks else _in_order(lacking):
        kind = f"{family.label} network in " if family else ""
        yield ConfigProblem(
            ConfigTopic.NODE_WITHOUT_POD_NETWORKS,
            f"{_INCOMPLETE}: detectLocalMode is NodeCIDR, and Node {node.name} has no "
            f"{kind}spec.podCIDRs{_effect(settings, family)}",
            "have the controller manager allocate them (--allocate-node-cidrs), or choose another "
            "--detect-local-mode",
        )


# Comparing 500 names takes 70 ms, and the agent's thread checks every two seconds.
@lru_cache(maxsize=1)
def _not_found(name: str, names: tuple[str, ...]) -> ConfigProblem:
    message = f"the cluster has no Node {name}"
    # A kubelet leaves a reference to a variable that the container does not have as it is. The
    # name is in lower case by now.
    if "$(" in name or "${" in name:
        variable = name.strip("${}() ").upper()
        fix = (
            f"the variable {variable} is not set in the container: add it to its env, with "
            "valueFrom.fieldRef.fieldPath: spec.nodeName"
        )
    elif found := nearest(name, names):
        fix = f"set --hostname-override to the Node's name; similar names: {', '.join(found)}"
    elif names:
        fix = (
            f"set --hostname-override to the Node's name, or check that the kubeconfig is of this "
            f"cluster; it has {', '.join(sorted(names)[:_NEAREST])}"
        )
    else:
        fix = (
            "set --hostname-override to the Node's name, or check that the kubelet has registered "
            "and that the kubeconfig is of this cluster"
        )
    return ConfigProblem(ConfigTopic.NODE_NOT_FOUND, message, fix)


def cidr_problems(
    settings: Settings, node: Node | None, service_families: Collection[Family]
) -> Iterator[ConfigProblem]:
    """Yield what is wrong with clusterCIDR; `service_families` are those of the cluster IPs."""
    if settings.local_traffic.mode is not LocalMode.CLUSTER_CIDR:
        return
    networks = settings.local_traffic.cluster_networks
    if not networks:
        yield ConfigProblem(
            ConfigTopic.CLUSTER_CIDR_MISSING,
            f"{_INCOMPLETE}: detectLocalMode is ClusterCIDR, and clusterCIDR is not set"
            f"{_effect(settings)}",
            "set --cluster-cidr to the pod networks of the cluster, or choose another "
            "--detect-local-mode",
        )
        return
    given = {network.family for network in networks}
    used = set(service_families)
    if node is not None:
        used |= {network.family for network in node.pod_networks}
        # A node with addresses of both families may be in a cluster that uses only the first.
        used |= {family_of(address) for address in node.addresses[:1]}
    for family in _in_order(used - given):
        yield ConfigProblem(
            ConfigTopic.CLUSTER_CIDR_FAMILY,
            f"{_INCOMPLETE}: the cluster uses {family.label}, and clusterCIDR "
            f"{','.join(map(str, networks))} has no {family.label} network"
            f"{_effect(settings, family)}",
            f"add the {family.label} pod network of the cluster to --cluster-cidr",
        )


def family_problems(
    families: Iterable[Family], programmable: Collection[Family] = FAMILIES
) -> Iterator[ConfigProblem]:
    """Yield a mistake for each family of the cluster's Services that the node does not serve.

    `programmable` are those that the dataplane can write.
    """
    for family in sorted(families):
        fix = (
            f"enable {family.label} on the node (for IPv6: net.ipv6.conf.all.disable_ipv6, "
            "ipv6.disable on the kernel's command line)"
        )
        if family not in programmable:
            program = "ip6tables" if family is Family.IPV6 else "iptables"
            fix = (
                f"install {program}, load the kernel's module for its table nat, and restart "
                "pyproxy, which looks for them at its start alone"
            )
        yield ConfigProblem(
            ConfigTopic.FAMILY_NOT_SERVED,
            f"Services have {family.label} addresses, which this node does not serve",
            f"{fix}, or make the cluster single-stack",
        )


def network_problems(left_out: Iterable[Network]) -> Iterator[ConfigProblem]:
    """Yield the mistake of local networks whose addresses are too many for node ports."""
    if networks := ", ".join(map(str, left_out)):
        yield ConfigProblem(
            ConfigTopic.LOCAL_NETWORK_LEFT_OUT,
            f"node ports do not serve the addresses of local routes to {networks}, which are more "
            f"than {MOST_IN_NETWORKS}",
            "add local routes to the single addresses, use smaller networks, or leave them out of "
            "--nodeport-addresses",
        )


def api_server_problem(
    hosts: Iterable[str], environ: Mapping[str, str], owner: ObjectName | None
) -> ConfigProblem | None:
    """Return the mistake if the API server's address is that of a Service.

    `hosts` are the URLs of the API servers, and `owner` is the Service that has the address of one
    of them, None if no known Service has. `environ` is the environment of a pod: the kubelet puts
    the cluster IP of the Service `kubernetes` there.
    """
    cluster_ip = environ.get("KUBERNETES_PORT_443_TCP_ADDR", "")
    for host in hosts:
        name = urlsplit(host).hostname or ""
        is_name = name in _SERVICE_NAMES or name.startswith("kubernetes.default.svc.")
        if owner is not None or is_name or (cluster_ip and name == cluster_ip.lower()):
            return ConfigProblem(
                ConfigTopic.API_SERVER_IS_SERVICE,
                f"the API server's address {host} is that of the Service {owner or _SERVICE}, "
                "which works only after a Service proxy has started on this node",
                "give the address of a control plane node or of its load balancer in the "
                "kubeconfig, in --master, or in the variable KUBERNETES_SERVICE_HOST",
            )
    return None


def clock_problem(offset: float) -> ConfigProblem | None:
    """Return the mistake if the API server's clock is far ahead of this one, or behind.

    `offset` is in seconds, negative if the server's clock is behind.
    """
    if abs(offset) <= CLOCK_TOLERANCE:
        return None
    return ConfigProblem(
        ConfigTopic.CLOCK_SKEW,
        f"the clock of this node is {duration(abs(offset))} "
        f"{'behind' if offset > 0 else 'ahead of'} the API server's",
        "synchronize it, for example with chrony: the validity of certificates and tokens is "
        "checked against it",
    )


def _in_order(families: Collection[Family]) -> list[Family]:
    return sorted(families, key=lambda each: each.label)


def _effect(settings: Settings, family: Family | None = None) -> str:
    """Return what does not work without pod networks, as the end of a sentence."""
    of = f"{family.label} " if family else ""
    if settings.masquerade.everything:
        return f", so that {of}connections from pods are not recognized"
    return f", so that {of}connections from outside the cluster to cluster IPs are not masqueraded"
