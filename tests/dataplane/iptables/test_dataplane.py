"""The dataplane on a real kernel, in both flavours."""

from __future__ import annotations

import fcntl
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import Changes, Drift, NodeRouting
from pyproxy.dataplane.iptables import committed_state
from pyproxy.dataplane.iptables.base_rules import HOOKS, TABLES, IptablesOptions
from pyproxy.dataplane.iptables.dataplane import IptablesDataplane
from pyproxy.dataplane.iptables.plan import IptablesPlan
from pyproxy.errors import RejectedError, StaleStateError
from pyproxy.metrics import Metrics
from pyproxy.model.address import Family, Port, parse_address, parse_network
from pyproxy.model.flavour import Flavour
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import Frontend, Scope, ServiceRouting, Use
from pyproxy.xtables import kube_names
from pyproxy.xtables.programs import Programs
from tests.dataplane.nftables.scenes import Scene, scenes
from tests.dataplane.nftables.test_dataplane import numbered
from tests.takeover.scenes import IPTABLES

pytestmark = pytest.mark.kernel

NODE = NodeRouting((parse_network("10.128.0.0/9"),))
FOREIGN = """*nat
:FOREIGN - [0:0]
-A PREROUTING -p udp -j FOREIGN
-A FOREIGN -p tcp -j KUBE-MARK-MASQ
COMMIT
"""

Texts = dict[tuple[str, str], list[str]]


@contextmanager
def programming(
    namespace: Namespace,
    flavour: Flavour | None,
    options: IptablesOptions = IptablesOptions(),  # noqa: B008
) -> Iterator[IptablesDataplane]:
    made = namespace.call(lambda: IptablesDataplane(options, flavour))
    try:
        yield made
    finally:
        made.close()


def program(
    namespace: Namespace,
    dataplane: IptablesDataplane,
    routings: Sequence[ServiceRouting],
    node: NodeRouting = NODE,
) -> IptablesPlan:
    """Have the kernel read back and everything written; what that took."""
    plan = namespace.call(lambda: dataplane.plan_full(routings, node))
    assert namespace.call(lambda: dataplane.commit(plan)) == ()
    assert namespace.call(dataplane.tick) is None
    return plan


def held(namespace: Namespace, flavour: Flavour, family: Family = Family.IPV4) -> Texts:
    """What the kernel has in the chains that are ours, and in its own."""
    saved = namespace.call(Programs(family, flavour).save)
    return {
        (table, chain): list(texts)
        for table, each in saved.items()
        for chain, texts in each.chains.items()
        if kube_names.is_iptables_mode(chain) or (chain in HOOKS and texts)
    }


def desired(routings: Sequence[ServiceRouting], node: NodeRouting, family: Family) -> Texts:
    tables = committed_state.compile_all(IptablesOptions(), routings, node, family)
    return {
        (table, chain): [rule.text for rule in rules]
        for table in TABLES
        for chain, rules in tables[table].items()
    }


def run(namespace: Namespace, *command: str, text: str = "") -> None:
    namespace.call(lambda: subprocess.run(command, input=text, text=True, check=True))


def test_a_restart_writes_nothing(namespace: Namespace, flavour: Flavour) -> None:
    routings = [numbered(each, affinity=each % 2 * 60) for each in range(40)]
    with programming(namespace, flavour) as dataplane:
        assert program(namespace, dataplane, routings)
    with programming(namespace, flavour) as dataplane:
        plan = program(namespace, dataplane, routings)
        assert not plan, str(plan)
        assert dataplane.messages_sent == 0
    with programming(namespace, None) as found:
        assert not program(namespace, found, routings)


def test_a_changed_endpoint_writes_its_services_chain_and_no_more(
    namespace: Namespace, flavour: Flavour
) -> None:
    routings = [numbered(each) for each in range(300)]
    with programming(namespace, flavour) as dataplane:
        program(namespace, dataplane, routings)
        before = dataplane.messages_sent
        more = numbered(7, 4)
        plan = dataplane.plan(Changes({more.name: more}))
        assert plan.counts() == {"chain": 1, "rule": 5}
        assert namespace.call(lambda: dataplane.commit(plan)) == ()
        assert dataplane.messages_sent - before == 1
        routings[7] = more
        assert held(namespace, flavour) == desired(routings, NODE, Family.IPV4)


def test_rules_and_failed_writes_are_told_under_kube_proxys_names(
    namespace: Namespace, flavour: Flavour
) -> None:
    metrics = Metrics()
    with programming(namespace, flavour) as dataplane:
        metrics.register(dataplane)
        program(namespace, dataplane, [numbered(each) for each in range(3)])
        for routing in (numbered(1, 4), numbered(4)):
            plan = dataplane.plan(Changes({routing.name: routing}))
            assert namespace.call(partial(dataplane.commit, plan)) == ()
        bad = misfit(numbered(5))
        plan = dataplane.plan(Changes({bad.name: bad}))
        with pytest.raises(StaleStateError):
            namespace.call(lambda: dataplane.commit(plan))
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for metric in text_string_to_metric_families(metrics.exposition().decode())
            for sample in metric.samples
        }
        told = found["kubeproxy_sync_proxy_rules_iptables_total", "IPv4", "nat"]
        inside = held(namespace, flavour)
        assert told == sum(
            len(rules)
            for (table, chain), rules in inside.items()
            if table == "nat" and chain not in HOOKS
        )
        # A chain of three endpoints, a masquerading rule, and the four frontends listed.
        assert found["kubeproxy_sync_proxy_rules_iptables_last", "IPv4", "nat"] == 8
        for which, count in (("partial_restore", 1), ("restore", 0)):
            name = f"kubeproxy_sync_proxy_rules_iptables_{which}_failures_total"
            assert found[name, "IPv4"] == count
        assert found["pyproxy_iptables_lock_waits_total",] == dataplane.lock_waits


def test_a_service_that_goes_touches_the_chains_on_its_way(
    namespace: Namespace, flavour: Flavour
) -> None:
    routings = [numbered(each) for each in range(300)]
    with programming(namespace, flavour) as dataplane:
        program(namespace, dataplane, routings)
        gone = routings.pop(150)
        plan = dataplane.plan(Changes({gone.name: None}))
        assert plan.counts()["chain"] <= 5
        assert namespace.call(lambda: dataplane.commit(plan)) == ()
        assert held(namespace, flavour) == desired(routings, NODE, Family.IPV4)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(history=st.lists(st.tuples(scenes(), st.booleans()), min_size=1, max_size=3))
def test_any_history_ends_where_the_last_state_alone_would(
    namespace: Namespace, flavour: Flavour, history: list[tuple[Scene, bool]]
) -> None:
    with programming(namespace, flavour) as dataplane:
        known: set[ObjectName] = set()
        for number, (scene, whole) in enumerate(history):
            routings = scene.routings()
            node = NodeRouting(scene.node.pod_networks, scene.node_port_addresses)
            if whole or not number:
                program(namespace, dataplane, tuple(routings.values()), node)
            else:
                asked = {name: routings.get(name) for name in known | routings.keys()}
                plan = dataplane.plan(Changes(asked, node))
                assert namespace.call(partial(dataplane.commit, plan)) == ()
                assert namespace.call(dataplane.tick) is None
            known = set(routings)
        for family in Family:
            assert held(namespace, flavour, family) == desired(
                tuple(routings.values()), node, family
            )
        again = namespace.call(lambda: dataplane.plan_full(routings.values(), node))
        assert not again, str(again)


def also_at(routing: ServiceRouting, address: str) -> ServiceRouting:
    """The same with one more address."""
    (port,) = routing.ports
    more = Frontend(Scope.EXTERNAL_IP, parse_address(address), Port(80), Use.CLUSTER)
    return msgspec.structs.replace(
        routing, ports=(msgspec.structs.replace(port, frontends=(*port.frontends, more)),)
    )


def misfit(routing: ServiceRouting) -> ServiceRouting:
    """The same with an address of the other family, which no iptables takes."""
    return also_at(routing, "fd98::1")


@pytest.mark.parametrize("known", [False, True])
def test_a_service_that_is_refused_is_set_aside_and_the_rest_is_programmed(
    namespace: Namespace, flavour: Flavour, known: bool
) -> None:
    good, other = numbered(1), numbered(3)
    before, bad = numbered(2, 2), misfit(numbered(2))
    with programming(namespace, flavour) as dataplane:
        program(namespace, dataplane, [good, before] if known else [good])
        changed = dataplane.plan(Changes({each.name: each for each in (bad, other)}))
        with pytest.raises(StaleStateError, match="fd98::1"):
            namespace.call(lambda: dataplane.commit(changed))
        whole = namespace.call(lambda: dataplane.plan_full([good, bad, other], NODE))
        (failure,) = namespace.call(lambda: dataplane.commit(whole))
        assert failure.name == bad.name
        assert isinstance(failure.error, RejectedError)
        left = [good, before, other] if known else [good, other]
        assert held(namespace, flavour) == desired(left, NODE, Family.IPV4)


def test_services_that_no_line_is_named_for_are_found_by_halving(
    namespace: Namespace,
) -> None:
    """A counter that is not there: iptables-legacy takes the line, and the kernel not the table."""
    routings = [numbered(each) for each in range(7)]
    bad = [also_at(numbered(each), f"127.0.0.{each}") for each in (8, 9)]
    options = IptablesOptions(counters=frozenset({kube_names.LOCALHOST_ACCEPTED}))
    with programming(namespace, Flavour.LEGACY, options) as dataplane:
        plan = namespace.call(lambda: dataplane.plan_full([*routings, *bad], NODE))
        failures = namespace.call(lambda: dataplane.commit(plan))
        assert {failure.name for failure in failures} == {each.name for each in bad}
        assert held(namespace, Flavour.LEGACY) == desired(routings, NODE, Family.IPV4)
        assert namespace.call(dataplane.tick) is None


def test_a_flushed_table_is_noticed_and_repaired(namespace: Namespace, flavour: Flavour) -> None:
    routings = [numbered(each) for each in range(20)]
    with programming(namespace, flavour) as dataplane:
        program(namespace, dataplane, routings)
        assert namespace.call(dataplane.tick) is None
        told: list[Drift | None] = []
        if flavour is Flavour.NFT:
            waiting = threading.Thread(target=lambda: told.append(dataplane.wait_for_drift()))
            waiting.start()
            run(namespace, "iptables-nft", "-t", "nat", "-F")
            waiting.join(20)
        else:
            run(namespace, "iptables-legacy", "-t", "nat", "-F")
            told.append(namespace.call(dataplane.tick))
        assert isinstance(told[0], Drift)
        assert program(namespace, dataplane, routings)
        assert held(namespace, flavour) == desired(routings, NODE, Family.IPV4)
        assert namespace.call(dataplane.tick) is None


def interfering_restore(programs: Programs, lines: Sequence[str]) -> int:
    """Restore, with another program's write right before it."""
    run_here = [str(programs), "-t", "nat", "-A", kube_names.CANARY, "-j", "RETURN"]
    subprocess.run(run_here, check=True)
    return RESTORE(programs, lines)


RESTORE = Programs.restore


@pytest.mark.parametrize("interferes", [False, True])
def test_what_others_write_during_a_commit_is_noticed(
    namespace: Namespace, flavour: Flavour, monkeypatch: pytest.MonkeyPatch, interferes: bool
) -> None:
    routings = [numbered(each) for each in range(3)]
    dataplane = namespace.call(lambda: IptablesDataplane(IptablesOptions(), flavour))
    told: list[Drift | None] = []
    waiting = threading.Thread(target=lambda: told.append(dataplane.wait_for_drift()))
    waiting.start()
    try:
        program(namespace, dataplane, routings)
        assert namespace.call(dataplane.tick) is None
        more = numbered(2, 4)
        plan = dataplane.plan(Changes({more.name: more, routings[0].name: None}))
        if interferes:
            monkeypatch.setattr(Programs, "restore", interfering_restore)
        assert namespace.call(lambda: dataplane.commit(plan)) == ()
        seen = namespace.call(dataplane.tick)
        if interferes and flavour is Flavour.NFT:
            waiting.join(20)
    finally:
        dataplane.close()
    waiting.join(20)
    noticed = [each for each in (seen, *told) if each]
    assert noticed == [Drift("")] * interferes


def test_kube_proxys_chains_are_adopted_in_place(namespace: Namespace, flavour: Flavour) -> None:
    without_counters = re.sub(r"-m nfacct --nfacct-name +\S+ ", "", IPTABLES)
    run(namespace, f"iptables-{flavour.value}-restore", text=without_counters)
    routings = [numbered(1), numbered(2)]
    with programming(namespace, None) as dataplane:
        plan = program(namespace, dataplane, routings)
        written = {chain for change in plan.changes.values() for chain in change.chains}
        assert kube_names.MARK_MASQUERADE not in {
            chain
            for (family, _), change in plan.changes.items()
            if family is Family.IPV4
            for chain in change.chains
        }
        assert kube_names.SERVICES in written
        found = held(namespace, flavour)
        theirs = [text for text in found.pop(("filter", "INPUT")) if "FIREWALL" in text]
        assert theirs == ["-j KUBE-FIREWALL"]
        wanted = desired(routings, NODE, Family.IPV4)
        assert {key: value for key, value in found.items() if key[1] not in HOOKS} == {
            key: value for key, value in wanted.items() if key[1] not in HOOKS
        }
        assert not namespace.call(lambda: dataplane.plan_full(routings, NODE))


def test_cleanup_leaves_what_is_not_ours(namespace: Namespace, flavour: Flavour) -> None:
    with programming(namespace, flavour) as dataplane:
        program(namespace, dataplane, [numbered(1)])
        run(namespace, f"iptables-{flavour.value}-restore", "--noflush", text=FOREIGN)
        namespace.call(dataplane.cleanup)
        namespace.call(dataplane.cleanup)
        assert held(namespace, flavour) == {
            ("nat", "PREROUTING"): ["-p udp -j FOREIGN"],
            ("nat", kube_names.MARK_MASQUERADE): ["-j MARK --set-xmark 0x4000/0x4000"],
        }


def test_a_lock_that_another_program_holds_is_waited_for(namespace: Namespace) -> None:
    with (
        programming(namespace, Flavour.LEGACY) as dataplane,
        open("/run/xtables.lock", "ab") as lock,
    ):
        plan = namespace.call(lambda: dataplane.plan_full([numbered(1)], NODE))
        fcntl.flock(lock, fcntl.LOCK_EX)
        freeing = threading.Thread(target=lambda: _free_once_waited_for(dataplane, lock.fileno()))
        freeing.start()
        assert namespace.call(lambda: dataplane.commit(plan)) == ()
        freeing.join(20)
        assert dataplane.lock_waits
        assert held(namespace, Flavour.LEGACY) == desired([numbered(1)], NODE, Family.IPV4)


def _free_once_waited_for(dataplane: IptablesDataplane, lock: int) -> None:
    pause = threading.Event()
    while not dataplane.lock_waits:
        pause.wait(0.01)
    fcntl.flock(lock, fcntl.LOCK_UN)
