"""The iptables dataplane on a real kernel, in both flavours."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import re
import threading
from collections.abc import Iterator, Sequence
from functools import partial

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import Changes, NodeRouting
from pyproxy.dataplane.iptables.base_rules import TABLES, IptablesOptions
from pyproxy.dataplane.iptables.dataplane import IptablesDataplane
from pyproxy.dataplane.iptables.nft_writer import NftWriter
from pyproxy.errors import RejectedError, StaleStateError, TransientKernelError
from pyproxy.metrics import Metrics
from pyproxy.model.address import Address, Family, Port, parse_address
from pyproxy.model.flavour import Flavour
from pyproxy.model.objects import ObjectName
from pyproxy.netlink import nfacct
from pyproxy.netlink.kernel_errors import MessageError
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.policy.routing import Frontend, Scope, ServiceRouting, Use
from pyproxy.xtables import kube_names
from pyproxy.xtables.programs import Programs, RestoreError
from pyproxy.xtables.saved import HOOKS
from tests.dataplane.iptables.programming import NODE, desired, held, program, programming, run
from tests.dataplane.nftables.scenes import Scene, scenes
from tests.dataplane.nftables.test_dataplane import numbered
from tests.takeover.scenes import IPTABLES
from tests.waiting import until

pytestmark = pytest.mark.kernel

FOREIGN = """*nat
:FOREIGN - [0:0]
-A PREROUTING -p udp -j FOREIGN
-A PREROUTING -s 192.0.2.7/32 -j KUBE-MARK-MASQ
-A FOREIGN -p tcp -j KUBE-MARK-MASQ
COMMIT
"""


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


def test_a_changed_endpoint_writes_the_chain_of_its_service_only(
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
        # One run of the program, or a message to empty the chain and one for each rule.
        messages = 6 if flavour is Flavour.NFT else 1
        assert dataplane.messages_sent - before == messages
        routings[7] = more
        assert held(namespace, flavour) == desired(routings, NODE, Family.IPV4)


def test_metrics_of_rules_and_failed_writes_have_kube_proxys_names(
    namespace: Namespace, flavour: Flavour
) -> None:
    metrics = Metrics()
    with programming(namespace, flavour) as dataplane:
        metrics.register(dataplane)
        program(namespace, dataplane, [numbered(each) for each in range(3)])
        for routing in (numbered(1, 4), numbered(4)):
            plan = dataplane.plan(Changes({routing.name: routing}))
            assert namespace.call(partial(dataplane.commit, plan)) == ()
        bad = invalid(numbered(5))
        plan = dataplane.plan(Changes({bad.name: bad}))
        with pytest.raises(StaleStateError):
            namespace.call(lambda: dataplane.commit(plan))
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for metric in text_string_to_metric_families(metrics.exposition().decode())
            for sample in metric.samples
        }
        exposed = found["kubeproxy_sync_proxy_rules_iptables_total", "IPv4", "nat"]
        inside = held(namespace, flavour)
        assert exposed == sum(
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


def test_removing_a_service_changes_the_chains_on_its_path_only(
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
def test_any_history_of_commits_ends_in_the_last_desired_state(
    namespace: Namespace, flavour: Flavour, history: list[tuple[Scene, bool]]
) -> None:
    with programming(namespace, flavour) as dataplane:
        known: set[ObjectName] = set()
        for number, (scene, whole) in enumerate(history):
            routings = scene.undivided()
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
    """The same Service with one more address."""
    return with_frontend(
        routing, Frontend(Scope.EXTERNAL_IP, parse_address(address), Port(80), Use.CLUSTER)
    )


def at_node_port(routing: ServiceRouting, number: int) -> ServiceRouting:
    """The same Service with a node port."""
    return with_frontend(
        routing, Frontend(Scope.NODE_PORT, Address(b""), Port(number), Use.CLUSTER)
    )


def with_frontend(routing: ServiceRouting, more: Frontend) -> ServiceRouting:
    (port,) = routing.ports
    return msgspec.structs.replace(
        routing, ports=(msgspec.structs.replace(port, frontends=(*port.frontends, more)),)
    )


def invalid(routing: ServiceRouting) -> ServiceRouting:
    """The same Service with an address of the other family, which iptables rejects."""
    return also_at(routing, "fd98::1")


@pytest.mark.parametrize("known", [False, True])
def test_a_rejected_service_is_left_out_and_the_rest_is_programmed(
    namespace: Namespace, flavour: Flavour, known: bool
) -> None:
    good, other = numbered(1), numbered(3)
    before, bad = numbered(2, 2), invalid(numbered(2))
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


@pytest.mark.parametrize("first", [False, True])
def test_a_frontend_that_left_a_rejected_service_is_its_new_owners(
    namespace: Namespace, flavour: Flavour, first: bool
) -> None:
    before, bad = also_at(numbered(1), "192.0.2.1"), invalid(numbered(1))
    other, owner = numbered(2), also_at(numbered(2), "192.0.2.1")
    with programming(namespace, flavour) as dataplane:
        program(namespace, dataplane, [before, other])
        wanted = [bad, owner] if first else [owner, bad]
        plan = namespace.call(lambda: dataplane.plan_full(wanted, NODE))
        (failure,) = namespace.call(lambda: dataplane.commit(plan))
        assert failure.name == bad.name
        assert held(namespace, flavour) == desired([numbered(1), owner], NODE, Family.IPV4)
        gone = dataplane.plan(Changes({bad.name: None}))
        assert namespace.call(lambda: dataplane.commit(gone)) == ()
        assert held(namespace, flavour) == desired([owner], NODE, Family.IPV4)


def test_a_service_whose_programmed_state_is_rejected_too_does_not_hold_up_the_rest(
    namespace: Namespace, flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, other = numbered(1), invalid(numbered(2)), numbered(3)
    with programming(namespace, flavour) as dataplane:
        program(namespace, dataplane, [good])
        # As if the kernel had accepted it before a module was unloaded.
        monkeypatch.setattr(dataplane._committed, "routing", {bad.name: bad}.get)
        whole = namespace.call(lambda: dataplane.plan_full([good, bad, other], NODE))
        (failure,) = namespace.call(lambda: dataplane.commit(whole))
        assert failure.name == bad.name
        assert held(namespace, flavour) == desired([good, other], NODE, Family.IPV4)


def test_services_are_found_by_bisection_if_the_error_names_no_line(
    namespace: Namespace,
) -> None:
    """With a counter that does not exist, iptables-legacy takes the line and the kernel rejects."""
    routings = [numbered(each) for each in range(7)]
    bad = [at_node_port(numbered(each), 30_000 + each) for each in (8, 9)]
    options = IptablesOptions(counters=frozenset({kube_names.LOCALHOST_ACCEPTED}))
    with programming(namespace, Flavour.LEGACY, options) as dataplane:
        plan = namespace.call(lambda: dataplane.plan_full([*routings, *bad], NODE))
        failures = namespace.call(lambda: dataplane.commit(plan))
        assert {failure.name for failure in failures} == {each.name for each in bad}
        assert held(namespace, Flavour.LEGACY) == desired(routings, NODE, Family.IPV4)
        assert namespace.call(dataplane.tick) is None


def test_kube_proxys_chains_are_taken_over_in_place(namespace: Namespace, flavour: Flavour) -> None:
    without_counters = re.sub(r"-m nfacct --nfacct-name +\S+ ", "", IPTABLES)
    run(namespace, f"iptables-{flavour.value}-restore", "--wait", text=without_counters)
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


def test_cleanup_leaves_the_rules_of_other_programs(namespace: Namespace, flavour: Flavour) -> None:
    with programming(namespace, flavour) as dataplane:
        program(namespace, dataplane, [numbered(1)])
        run(namespace, f"iptables-{flavour.value}-restore", "--wait", "--noflush", text=FOREIGN)
        namespace.call(dataplane.cleanup)
        namespace.call(dataplane.cleanup)
        assert held(namespace, flavour) == {
            ("nat", "PREROUTING"): ["-p udp -j FOREIGN", "-s 192.0.2.7/32 -j KUBE-MARK-MASQ"],
            ("nat", kube_names.MARK_MASQUERADE): ["-j MARK --set-xmark 0x4000/0x4000"],
        }


def test_a_write_waits_for_the_lock_that_another_program_holds(namespace: Namespace) -> None:
    with (
        programming(namespace, Flavour.LEGACY) as dataplane,
        open("/run/xtables.lock", "ab") as lock,
    ):
        plan = namespace.call(lambda: dataplane.plan_full([numbered(1)], NODE))
        fcntl.flock(lock, fcntl.LOCK_EX)
        freeing = threading.Thread(target=lambda: _unlock_after_a_wait(dataplane, lock.fileno()))
        freeing.start()
        assert namespace.call(lambda: dataplane.commit(plan)) == ()
        freeing.join(20)
        assert dataplane.lock_waits
        assert held(namespace, Flavour.LEGACY) == desired([numbered(1)], NODE, Family.IPV4)


def _unlock_after_a_wait(dataplane: IptablesDataplane, lock: int) -> None:
    pause = threading.Event()
    while not dataplane.lock_waits:
        pause.wait(0.01)
    fcntl.flock(lock, fcntl.LOCK_UN)


def with_counters(namespace: Namespace, flavour: Flavour) -> int:
    """Return the number of rules with an nfacct object."""
    rules = (text for texts in held(namespace, flavour).values() for text in texts)
    return sum("--nfacct-name" in text for text in rules)


def test_nfacct_objects_that_another_program_deleted_are_created_again(
    namespace: Namespace, flavour: Flavour
) -> None:
    routings = [numbered(1), at_node_port(numbered(2), 30_002)]
    with programming(namespace, flavour) as dataplane:
        namespace.call(dataplane.prepare)
        program(namespace, dataplane, routings)
        before = with_counters(namespace, flavour)
        assert before
        run(namespace, f"iptables-{flavour.value}-restore", "--wait", text=EMPTY_TABLES)
        run(namespace, f"ip6tables-{flavour.value}-restore", "--wait", text=EMPTY_TABLES)
        # The kernel frees deleted rules some time later: EBUSY till then.
        until(lambda: not namespace.call(_delete_counters), "the objects are deleted")
        program(namespace, dataplane, routings)
        assert with_counters(namespace, flavour) == before
        assert namespace.call(dataplane.packets).keys() == kube_names.COUNTERS
        assert not program(namespace, dataplane, routings)


EMPTY_TABLES = "".join(f"*{table}\nCOMMIT\n" for table in TABLES)


def _delete_counters() -> frozenset[str]:
    nfacct.delete_counters(kube_names.COUNTERS)
    with contextlib.closing(Nfnetlink()) as netlink:
        return nfacct.list_counters(netlink)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EINVAL])
def test_an_error_that_passes_leaves_counters_out_for_a_while(
    namespace: Namespace, flavour: Flavour, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    error = MessageError(0, number, 0, "as if the kernel had failed")
    with programming(namespace, flavour) as dataplane:
        with monkeypatch.context() as failing:
            failing.setattr(Nfnetlink, "send", lambda *_: error)
            namespace.call(dataplane.prepare)
            program(namespace, dataplane, [numbered(1)])
            assert not with_counters(namespace, flavour)
        program(namespace, dataplane, [numbered(1)])
        assert with_counters(namespace, flavour)
        assert not program(namespace, dataplane, [numbered(1)])


@pytest.mark.parametrize(
    ("count", "flavour", "most"),
    [
        (10, Flavour.NFT, 4),
        (64, Flavour.NFT, 40),
        (10, Flavour.LEGACY, 40),
        (64, Flavour.LEGACY, 40),
    ],
)
def test_many_rejected_services_take_few_writes(
    namespace: Namespace, count: int, flavour: Flavour, most: int
) -> None:
    """iptables-nft-restore names about eleven lines at fault, and iptables-legacy-restore none."""
    options = IptablesOptions(counters=frozenset({kube_names.LOCALHOST_ACCEPTED}))
    routings = [numbered(each) for each in range(60)]
    bad = [at_node_port(numbered(1_000 + each), 30_000 + each) for each in range(count)]
    with programming(namespace, flavour, options) as dataplane:
        plan = namespace.call(lambda: dataplane.plan_full([*routings, *bad], NODE))
        failures = namespace.call(lambda: dataplane.commit(plan))
        assert {failure.name for failure in failures} == {each.name for each in bad}
        assert held(namespace, flavour) == desired(routings, NODE, Family.IPV4)
        assert dataplane._restores <= most


def test_accepted_services_among_rejected_ones_that_use_the_same_extensions_are_written(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    routings = [numbered(each) for each in range(40)]
    changed = [numbered(each, 5) for each in range(40)]
    bad = {changed[each].name for each in (3, 11, 12, 24, 30, 39)}
    restore = Programs.restore
    texts = {chain for each in bad for chain in chains_of(routings, each)}

    def failing(self: Programs, lines: Sequence[str]) -> int:
        if any(line.split()[1] in texts and "0.20" in line for line in lines if line[:2] == "-A"):
            raise RestoreError("iptables-restore: line 9 failed")
        return restore(self, lines)

    with programming(namespace, Flavour.LEGACY) as dataplane:
        program(namespace, dataplane, routings)
        monkeypatch.setattr(Programs, "restore", failing)
        plan = namespace.call(lambda: dataplane.plan_full(changed, NODE))
        failures = namespace.call(lambda: dataplane.commit(plan))
        assert {failure.name for failure in failures} == bad
        left = [old if old.name in bad else new for old, new in zip(routings, changed, strict=True)]
        assert held(namespace, Flavour.LEGACY) == desired(left, NODE, Family.IPV4)


def chains_of(routings: Sequence[ServiceRouting], name: ObjectName) -> Iterator[str]:
    """Yield the chains of one Service alone."""
    one = [each for each in routings if each.name == name]
    for table, chain in desired(one, NODE, Family.IPV4):
        if table == "nat" and chain.startswith(kube_names.SERVICE):
            yield chain


def test_a_write_whose_error_passes_is_repeated_before_services_are_left_out(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """iptables-legacy-restore 1.8.9 gives no reason for an error of the kernel."""
    routings = [numbered(each) for each in range(8)]
    restore, failed = Programs.restore, list[int]()

    def failing(self: Programs, lines: Sequence[str]) -> int:
        if not failed:
            failed.append(len(lines))
            raise RestoreError("iptables-restore: line 9 failed")
        return restore(self, lines)

    with programming(namespace, Flavour.LEGACY) as dataplane:
        monkeypatch.setattr(Programs, "restore", failing)
        program(namespace, dataplane, routings)
        assert failed
        # The write that fails, and one for each family.
        assert dataplane._restores == 3
        assert held(namespace, Flavour.LEGACY) == desired(routings, NODE, Family.IPV4)


def test_no_program_repeats_a_write_over_netlink_that_may_succeed_later(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    routings = [numbered(each) for each in range(8)]

    def busy(*_: object) -> None:
        raise TransientKernelError("as if memory were short", errno.ENOMEM)

    with programming(namespace, Flavour.NFT) as dataplane:
        program(namespace, dataplane, routings)
        routings[3] = numbered(3, 5)
        plan = dataplane.plan(Changes({routings[3].name: routings[3]}))
        before = dataplane._restores
        with monkeypatch.context() as failing:
            failing.setattr(NftWriter, "write", busy)
            with pytest.raises(TransientKernelError):
                namespace.call(lambda: dataplane.commit(plan))
        assert dataplane._restores == before
        program(namespace, dataplane, routings)
        assert held(namespace, Flavour.NFT) == desired(routings, NODE, Family.IPV4)
