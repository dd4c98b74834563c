"""Services that are written before the first plan: the result is the same, also after an error."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import closing

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.plan import NftablesPlan
from pyproxy.model.address import parse_address, parse_network
from pyproxy.policy.parts import row_count
from pyproxy.policy.routing import ServiceRouting
from tests.dataplane.nftables.scenes import compiled
from tests.dataplane.nftables.test_dataplane import OPTIONS, held, misfit, numbered, programming

pytestmark = pytest.mark.kernel

NODE = NodeRouting((parse_network("10.128.0.0/9"),), (parse_address("172.30.0.11"),))
EARLY = [numbered(number, 250) for number in range(60)]
LATE = [numbered(number, 3) for number in range(60, 70)]


def written(
    dataplane: NftablesDataplane, early: Sequence[ServiceRouting], all_of: Sequence[ServiceRouting]
) -> NftablesPlan:
    """Write some Services early, and return the plan that follows."""
    writer = dataplane.write_early(NODE)
    assert writer is not None
    for each in early:
        writer.add(each, row_count(each))
    return dataplane.plan_full(all_of, NODE)


def elements(plan: NftablesPlan) -> int:
    return plan.counts().get("element", 0)


@pytest.mark.parametrize("early", [EARLY, [], EARLY + LATE])
def test_the_plan_has_what_was_not_written_early(
    namespace: Namespace, early: list[ServiceRouting]
) -> None:
    with programming(namespace) as dataplane:
        plan = namespace.call(lambda: written(dataplane, early, EARLY + LATE))
        left = len(EARLY) + len(LATE) - len(early)
        # Each has a frontend, its cluster IP and its endpoints.
        assert elements(plan) == left * 2 + sum(
            len(each.ports[0].cluster) for each in EARLY + LATE if each not in early
        )
        assert namespace.call(lambda: dataplane.commit(plan)) == ()
        assert held(namespace) == compiled(EARLY + LATE, NODE)
        assert not dataplane.plan_full(EARLY + LATE, NODE)
        assert namespace.call(lambda: dataplane.check_base_rules(NODE)) == ()
        # The shared rows of Services that were written early are counted: the last user's go.
        namespace.call(lambda: dataplane.commit(dataplane.plan_full(LATE, NODE)))
        assert held(namespace) == compiled(LATE, NODE)


def test_routing_goes_on_when_the_first_services_are_served(namespace: Namespace) -> None:
    with programming(namespace) as dataplane:
        writer = namespace.call(lambda: dataplane.write_early(NODE))
        assert writer is not None
        for each in EARLY[:11]:  # about 2,500 rows
            writer.add(each, row_count(each))
        assert held(namespace)["services4"]
        namespace.call(lambda: dataplane.plan_full(EARLY, NODE))


def test_a_routing_that_changed_after_it_was_written(namespace: Namespace) -> None:
    now = [numbered(0, 5), *EARLY[1:]]
    with programming(namespace) as dataplane:
        plan = namespace.call(lambda: written(dataplane, EARLY, now))
        # The endpoints that go, and the verdict, because fewer endpoints have another chain.
        assert elements(plan) == 246
        namespace.call(lambda: dataplane.commit(plan))
        assert held(namespace) == compiled(now, NODE)


@pytest.mark.parametrize("place", [0, 59])
def test_a_service_that_the_kernel_rejects(namespace: Namespace, place: int) -> None:
    wanted = [*EARLY[:place], misfit(EARLY[place]), *EARLY[place + 1 :]]
    with programming(namespace) as dataplane:
        plan = namespace.call(lambda: written(dataplane, wanted, wanted))
        failures = namespace.call(lambda: dataplane.commit(plan))
        assert [each.name for each in failures] == [wanted[place].name]
        good = [each for each in EARLY if each.name != wanted[place].name]
        assert held(namespace) == compiled(good, NODE)


def test_a_table_that_is_deleted_meanwhile(namespace: Namespace) -> None:
    with programming(namespace) as dataplane:
        writer = namespace.call(lambda: dataplane.write_early(NODE))
        assert writer is not None
        for each in EARLY[:30]:
            writer.add(each, row_count(each))
        namespace.run(["nft", "flush", "ruleset"])
        for each in EARLY[30:]:
            writer.add(each, row_count(each))
        plan = namespace.call(lambda: dataplane.plan_full(EARLY, NODE))
        namespace.call(lambda: dataplane.commit(plan))
        # Whether the writer's next batch or the monitor finds it, a read-back repairs it.
        namespace.call(lambda: dataplane.commit(dataplane.plan_full(EARLY, NODE)))
        assert held(namespace) == compiled(EARLY, NODE)


KILLED = """
import os, signal, time
from pyproxy.dataplane.nftables.readback import read_table
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.policy.parts import row_count
from tests.dataplane.nftables.test_dataplane import OPTIONS
from tests.dataplane.nftables.test_early_writer import EARLY, NODE

dataplane = NftablesDataplane(OPTIONS)
dataplane.cleanup()
dataplane.prepare()
writer = dataplane.write_early(NODE)
for each in EARLY[:40]:
    writer.add(each, row_count(each))
while not read_table(Nfnetlink()).get("services4"):
    time.sleep(0.001)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_meanwhile(namespace: Namespace) -> None:
    done = namespace.run([sys.executable, "-c", KILLED], check=False)
    assert done.returncode == -signal.SIGKILL
    left = held(namespace)
    assert left
    assert left != compiled(EARLY, NODE)
    with closing(namespace.call(lambda: NftablesDataplane(OPTIONS))) as dataplane:
        assert namespace.call(lambda: dataplane.write_early(NODE)) is None
        plan = namespace.call(lambda: dataplane.plan_full(EARLY, NODE))
        # The plan has only the rows that the killed process did not write.
        assert elements(plan) < sum(map(len, compiled(EARLY, NODE).values()))
        assert namespace.call(lambda: dataplane.commit(plan)) == ()
        assert held(namespace) == compiled(EARLY, NODE)
        assert namespace.call(lambda: dataplane.check_base_rules(NODE)) == ()


def test_nothing_is_written_early_beside_a_table(namespace: Namespace) -> None:
    with programming(namespace) as dataplane:
        namespace.call(lambda: dataplane.commit(dataplane.plan_full(LATE, NODE)))
        assert namespace.call(lambda: dataplane.write_early(NODE)) is None
