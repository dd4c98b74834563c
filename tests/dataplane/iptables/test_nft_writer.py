"""Rules written over netlink, against those that iptables-nft-restore writes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import Changes
from pyproxy.dataplane.iptables.dataplane import IptablesDataplane
from pyproxy.dataplane.iptables.nft_rules import pack
from pyproxy.dataplane.iptables.nft_writer import NftWriter
from pyproxy.dataplane.iptables.plan import TableChange
from pyproxy.dataplane.iptables.rule_parser import parse_rule
from pyproxy.dataplane.iptables.rules import RETURN, Jump, Rule
from pyproxy.errors import RejectedError
from pyproxy.model.address import Family, parse_network
from pyproxy.model.flavour import Flavour
from pyproxy.netlink.attributes import attribute_map
from pyproxy.xtables.nft_text import RuleTexts
from pyproxy.xtables.programs import Programs
from tests.dataplane.iptables.programming import NODE, desired, held, program, programming, run
from tests.dataplane.iptables.test_nft_reader import SAMPLES
from tests.dataplane.nftables.test_dataplane import numbered

pytestmark = pytest.mark.kernel

_CHAINS = ("KUBE-SVC-ALL", "KUBE-REFUSE", "KUBE-SVC-X")
_RULE_EXPRESSIONS = 4


def samples(family: Family) -> list[Rule]:
    """Rules with all matches and targets of pyproxy's, in nat's chains."""
    texts = [text.replace("KUBE-X", "KUBE-SVC-X") for text in SAMPLES[family]]
    return [rule for text in texts if (rule := parse_rule(text, family))]


def saved(namespace: Namespace, family: Family) -> list[str]:
    """The lines of iptables-nft-save, without dates and counters."""
    command = [f"{Programs(family, Flavour.NFT)}-save"]
    done = namespace.call(
        lambda: subprocess.run(command, text=True, capture_output=True, check=True)
    )
    return [re.sub(r"\[\d+:\d+\]", "", line) for line in done.stdout.splitlines() if line[0] != "#"]


@pytest.mark.parametrize("family", Family)
def test_the_programs_print_what_they_would_have_written(
    namespace: Namespace, family: Family
) -> None:
    rules = samples(family)
    assert len(rules) >= len(SAMPLES[family]) - 1
    change = TableChange(
        {_CHAINS[0]: tuple(rules), _CHAINS[1]: (), _CHAINS[2]: ()}, created=frozenset(_CHAINS)
    )
    programs = Programs(family, Flavour.NFT)
    namespace.call(lambda: programs.restore(change.script("nat")))
    restored = saved(namespace, family)
    run(namespace, str(programs), "-t", "nat", "-F")
    run(namespace, str(programs), "-t", "nat", "-X")
    namespace.call(lambda: NftWriter().write(family, "nat", change))
    assert saved(namespace, family) == restored
    # Each rule can be removed by its text.
    for rule in rules:
        lines = ["*nat", f"-D {_CHAINS[0]} {rule.text}", "COMMIT"]
        namespace.call(partial(programs.restore, lines))
    assert not any(line.startswith("-A") for line in saved(namespace, family))


@pytest.mark.parametrize("family", Family)
def test_a_packed_rule_reads_as_its_text(family: Family) -> None:
    for rule in samples(family):
        expressions = bytes(attribute_map(pack(rule, family))[_RULE_EXPRESSIONS])
        assert RuleTexts(family).text(expressions) == rule.text


def test_a_rule_of_the_other_family_is_rejected() -> None:
    rule = Rule(destination=parse_network("fd96::1/128"), target=RETURN)
    with pytest.raises(RejectedError, match="fd96::1"):
        pack(rule, Family.IPV4)


def test_a_large_plan_leads_to_new_chains_in_its_last_transaction(namespace: Namespace) -> None:
    chains = {f"KUBE-SVC-{number:x}": (Rule(target=RETURN),) * 20 for number in range(600)}
    before = TableChange({"KUBE-SERVICES": ()}, created=frozenset({"KUBE-SERVICES"}))
    change = TableChange(
        {"KUBE-SERVICES": tuple(Rule(target=Jump(name)) for name in chains), **chains},
        created=frozenset(chains),
    )
    writer = namespace.call(NftWriter)
    namespace.call(lambda: writer.write(Family.IPV4, "nat", before))
    namespace.call(lambda: writer.create(Family.IPV4, "nat", change))
    created = writer.transactions
    assert created > 2
    texts = held(namespace, Flavour.NFT)
    assert texts["nat", "KUBE-SERVICES"] == []
    assert texts["nat", "KUBE-SVC-0"] == ["-j RETURN"] * 20
    namespace.call(lambda: writer.write(Family.IPV4, "nat", change.without_created()))
    assert writer.transactions == created + 1
    assert held(namespace, Flavour.NFT)["nat", "KUBE-SERVICES"] == [f"-j {each}" for each in chains]
    writer.close()


LIMITED = ["unshare", "--user", "--map-root-user", "--net"]
"""In a user namespace, root cannot set a buffer above net.core.wmem_max."""

WRITE_INTERRUPTED = """
import sys
from pathlib import Path
from pyproxy.xtables.nft_reader import NftReader
from pyproxy.dataplane.iptables.nft_writer import NftWriter
from pyproxy.dataplane.iptables.plan import TableChange
from pyproxy.dataplane.iptables.rules import DROP, RETURN, Jump, Rule
from pyproxy.errors import KernelError
from pyproxy.model.address import Family

each = 2 * int(Path("/proc/sys/net/core/wmem_max").read_text()) // 20 // 400
names = [f"KUBE-SVC-{number:x}" for number in range(40)]
gone = "KUBE-SVC-GONE"

def rules(target):
    return (Rule(comment="x" * 100, target=target),) * each

writer = NftWriter()
before = {name: rules(Jump(gone)) for name in names}
made = {gone: rules(DROP), **before}
writer.write(Family.IPV4, "nat", TableChange(made, created=frozenset(made)))
done = writer.transactions
after = {name: rules(RETURN) for name in names[:-1]}
if sys.argv[1] == "refused":
    after[names[-1]] = rules(Jump("KUBE-SVC-NONE"))
try:
    writer.write(Family.IPV4, "nat", TableChange(after, deleted=(gone,)))
except KernelError as error:
    print(error.errno)
print(writer.transactions - done > 1)
reader = NftReader()
texts = [reader.chain(Family.IPV4, "nat", name) for name in names]
print(sorted({len(chain) // each for chain in texts}))
print(len({tuple(chain) for chain in texts}))
"""


def test_a_change_beyond_the_send_buffer_leaves_no_chain_half_written(namespace: Namespace) -> None:
    if namespace.run([*LIMITED, "true"], check=False).returncode:
        pytest.skip("needs user namespaces")
    done = namespace.run([*LIMITED, sys.executable, "-c", WRITE_INTERRUPTED, "refused"])
    # ENOENT is the last chain's. Before it, each chain had all of its old or all of its new rules.
    assert done.stdout.splitlines() == ["2", "True", "[1]", "2"]


def test_iptables_nft_restore_writes_what_the_kernel_refuses_over_netlink(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    routings = [numbered(each) for each in range(20)]

    def refused(write: Callable[..., None]) -> Callable[..., None]:
        def writing(self: NftWriter, family: Family, table: str, change: TableChange) -> None:
            write(self, family, table, change)
            raise RejectedError("as if the kernel had refused a part", 22)

        return writing

    with programming(namespace, Flavour.NFT) as dataplane:
        monkeypatch.setattr(NftWriter, "create", refused(NftWriter.create))
        program(namespace, dataplane, routings)
        assert held(namespace, Flavour.NFT) == desired(routings, NODE, Family.IPV4)
        monkeypatch.setattr(NftWriter, "write", refused(NftWriter.write))
        routings[3] = numbered(3, 5)
        plan = dataplane.plan(Changes({routings[3].name: routings[3]}))
        assert namespace.call(lambda: dataplane.commit(plan)) == ()
        assert held(namespace, Flavour.NFT) == desired(routings, NODE, Family.IPV4)
        assert not dataplane.failures


def test_a_change_runs_no_program(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    routings = [numbered(each) for each in range(40)]
    with programming(namespace, Flavour.NFT) as dataplane:
        program(namespace, dataplane, routings)
        monkeypatch.setenv("PATH", "")
        for number in (3, 39):
            routings[number] = numbered(number, 5)
            plan = dataplane.plan(Changes({routings[number].name: routings[number]}))
            assert namespace.call(partial(dataplane.commit, plan)) == ()
        gone = routings.pop(7)
        plan = dataplane.plan(Changes({gone.name: None}))
        assert namespace.call(partial(dataplane.commit, plan)) == ()
        monkeypatch.undo()
        assert held(namespace, Flavour.NFT) == desired(routings, NODE, Family.IPV4)
    restarted: IptablesDataplane
    with programming(namespace, Flavour.NFT) as restarted:
        assert not program(namespace, restarted, routings)
