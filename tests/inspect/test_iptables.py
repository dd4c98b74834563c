"""`explain` and `diff` in iptables mode name the changes of other programs, in both flavours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyproxy_lab.modes import LabMode

from tests.agent.live import endpoint_slice, service
from tests.inspect.node import SITE, CommandResult, InspectedNode, inspected_node

pytestmark = [pytest.mark.kernel, pytest.mark.modes("iptables-legacy", "iptables-nft")]

TARGET = "shop/web"
PORTALS = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'


@pytest.fixture(scope="module")
def programmed(mode: LabMode) -> Iterator[InspectedNode]:
    with inspected_node(*mode.flags) as made:
        made.create(
            service("web", "10.96.0.60"), endpoint_slice("web", ["10.244.1.11", "10.244.2.11"])
        )
        yield made


def iptables(node: InspectedNode, mode: LabMode, *words: str) -> str:
    # The modes are called as their programs are.
    return node.cluster.network.namespace(SITE).run([mode.name, "-t", "nat", *words]).stdout


def failed_steps(result: CommandResult) -> list[tuple[str, str, list[str]]]:
    steps = result.json["steps"]
    return [(s["name"], s["message"], s["details"]) for s in steps if s["result"] == "failed"]


def test_a_status_tells_how_many_rules_there_are(programmed: InspectedNode, mode: LabMode) -> None:
    tables = programmed.command("status", "-o", "json").json["tables"]
    usage = {each["name"]: each["used"] for each in tables}
    rules = [
        line for line in iptables(programmed, mode, "-S").splitlines() if line[:8] == "-A KUBE-"
    ]
    assert usage["IPv4 nat rules"] == len(rules)


def test_what_all_services_share_is_named(programmed: InspectedNode, mode: LabMode) -> None:
    with programmed.paused():
        iptables(programmed, mode, "-F", "PREROUTING")
        explained = programmed.without_agent("explain", TARGET, "-o", "json", *mode.flags)
        difference = programmed.without_agent("diff", "-o", "json", *mode.flags)
    said = f"IPv4 nat: PREROUTING lacks the rule {PORTALS}"
    ((name, says, _),) = failed_steps(explained)
    assert (name, says) == ("kernel", f"the kernel state is not the desired state: {said}")
    assert (difference.status, difference.json["rules"]) == (1, [said])
    assert difference.json["lines"] == ["*nat", f"-I PREROUTING {PORTALS}", "COMMIT"]
    programmed.wait_repaired()


def test_a_way_that_is_cut_inside_the_tree_is_named(
    programmed: InspectedNode, mode: LabMode
) -> None:
    for number in range(1, 9):
        programmed.create(
            service(f"leaf-{number}", f"10.96.0.{number << 4 | 1}"),
            endpoint_slice(f"leaf-{number}", ["10.244.2.12"]),
        )
    rules = [line.split() for line in iptables(programmed, mode, "-S").splitlines()]
    branch, target = next(
        (words[1], word.strip('"').partition(":")[0])
        for words in rules
        if words[0] == "-A" and words[1].startswith("KUBE-IP-")
        for word in words
        if "/leaf-" in word
    )
    (way,) = (words for words in rules if words[-1] == branch and words[0] == "-A")
    with programmed.paused():
        iptables(programmed, mode, "-D", *way[1:])
        explained = programmed.without_agent("explain", target, "-o", "json", *mode.flags)
    ((name, _, lines),) = failed_steps(explained)
    assert (name, lines) == ("kernel", [f"missing: IPv4 nat: a rule that leads to {branch}"])
    programmed.wait_repaired()
