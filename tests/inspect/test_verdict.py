"""The verdict of an explanation never contradicts its steps: properties over random Services."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyproxy.hostnet.not_read import NotRead
from pyproxy.hostnet.path_facts import PathFacts
from pyproxy.inspect.explain import Explanation, Result, explain
from pyproxy.inspect.facts import Facts, target_ports
from pyproxy.inspect.service_paths import service_paths
from pyproxy.model.address import Family, Port, Protocol
from pyproxy.model.destination import Destination
from pyproxy.policy.routing import Use
from tests.builders import ip, pod, services, slice_of, slices, web, with_node_port
from tests.inspect.facts import agent_facts, facts


@st.composite
def explained_facts(draw: st.DrawFn) -> Facts:
    """Draw a Service with its slices, and all of it or one of its frontends as the target."""
    service, parts = draw(services()), draw(slices())
    whole = agent_facts(service, parts)
    frontends = [
        Destination(f.address, f.port, port.protocol)
        for port in (whole.routing.ports if whole.routing else ())
        for f in port.frontends
        if f.address
    ]
    target = draw(st.sampled_from([None, *frontends]))
    return facts(agent_facts(service, parts, destination=target))


def step(found: Explanation, name: str) -> str:
    return next(each.result.value for each in found.steps if each.name == name)


def failed(found: Explanation) -> list[str]:
    return [each.name for each in found.steps if each.result is Result.FAILED]


@given(explained_facts())
def test_the_verdict_contradicts_no_step(given_facts: Facts) -> None:
    found = explain("target", given_facts)
    uses = {
        f.use
        for port in target_ports(given_facts.agent)
        for f in (port.routing.frontends if port.routing else ())
    }
    if uses & {Use.REJECT, Use.DROP}:
        assert not found.ok
        assert step(found, "policy") == "failed"

    assert found.ok is (not failed(found))
    if found.ok:
        assert found.verdict.startswith(f"no fault found; checked: {', '.join(found.checked)}")
        assert step(found, "policy") in ("ok", "note")
    else:
        first = next(each for each in found.steps if each.result is Result.FAILED)
        assert (found.verdict, found.fix) == (first.message, first.fix)
        assert found.fix
    # Each step is either checked or not, and the verdict names those that are not.
    assert sorted(found.checked + found.not_checked) == sorted(each.name for each in found.steps)
    for each in found.steps:
        unknown = each.result in (Result.SKIPPED, Result.UNDECIDED)
        assert (each.name in found.not_checked) is unknown
        if found.ok and unknown:
            assert f"{each.name} (" in found.verdict

    # The policy step names endpoints only of a target that uses some.
    used = {
        backend
        for port in target_ports(given_facts.agent)
        for backend in ((*port.routing.cluster, *port.routing.local) if port.routing else ())
    }
    if step(found, "policy") in ("ok", "note"):
        assert used
    paths = service_paths(given_facts.agent, None)
    assert {path.leaving.target for path in paths.paths} <= used


def dual_stack(target: Destination | None = None) -> Facts:
    """Return a dual-stack NodePort Service whose only slice is IPv6."""
    families = (Family.IPV4, Family.IPV6)
    cluster_ips = ["10.96.0.1", "fd00:10:96::1"]
    service = web(families=families, cluster_ips=cluster_ips, ports=with_node_port(30111))
    six = slice_of(pod("a1", Family.IPV6), family=Family.IPV6)
    return facts(agent_facts(service, [six], destination=target))


def test_a_family_without_endpoints_is_named() -> None:
    found = explain("shop/web", dual_stack())
    assert failed(found) == ["slices", "policy"]
    assert found.verdict == (
        "1 slice with 1 endpoint, none of them IPv4: connections to the Service's IPv4 addresses "
        "are rejected"
    )
    (policy,) = (each for each in found.steps if each.name == "policy")
    assert policy.message == (
        "no IPv4 endpoint of 80/TCP exists: connections to 10.96.0.1 80/TCP, any node port address "
        "30111/TCP are rejected"
    )


def test_the_family_with_endpoints_has_no_fault() -> None:
    target = Destination(ip("fd00:10:96::1"), Port(80), Protocol.TCP)
    assert failed(explain("[fd00:10:96::1]:80", dual_stack(target))) == []


def test_a_verdict_without_a_fault_names_what_was_not_checked() -> None:
    agent = agent_facts(web(), [slice_of(pod("a1"))])
    path = PathFacts(routes=NotRead("EPERM"), probes=NotRead("without --probe"))
    found = explain("shop/web", facts(agent, path))
    assert found.ok
    assert found.verdict == (
        "no fault found; checked: agent, service, fields, address, slices, ports, readiness, "
        "policy, source ranges, kernel, conntrack; not checked: selector (API not queried: not "
        "queried), proxies (not read), switches (not read), routes (EPERM), firewalls (not read), "
        "probes (without --probe)"
    )
