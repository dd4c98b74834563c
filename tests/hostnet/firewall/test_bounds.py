"""Large rulesets of other programs: few of their rules, chains and elements are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.hostnet.firewall.evaluator import Certainty, evaluate
from pyproxy.hostnet.firewall.hook_packet import Hook, HookPacket
from pyproxy.hostnet.firewall.nft_tables import MOST_CHAIN_RULES, NftTables
from pyproxy.model.address import Address, Family, Port, parse_address
from tests.namespaces import empty_namespace

pytestmark = pytest.mark.kernel

MANY = 20_000


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    with empty_namespace("fwb") as made:
        yield made


def packet(source: str | None, destination: str = "10.244.1.11") -> HookPacket:
    known: Address | None = parse_address(source) if source else None
    return HookPacket(
        Family.IPV4, 6, known, parse_address(destination), 45_678, Port(8080), Hook.FORWARD
    )


def load(namespace: Namespace, body: str) -> None:
    namespace.run(["nft", "-f", "-"], text=f"flush ruleset\ntable inet big {{\n{body}\n}}\n")


def find(namespace: Namespace, each: HookPacket) -> tuple[list[Certainty], int, int]:
    """Evaluate the only base chain; return the findings, the requests, the objects read."""

    def run() -> tuple[list[Certainty], int, int]:
        with closing(NftTables()) as tables:
            ((base,), complete) = tables.base_chains()
            assert complete
            result = evaluate(tables.load(base), tables.table(base.family, base.table), each)
            return [f.certainty for f in result.findings], tables.requests, tables.rows

    return namespace.call(run)


def addresses(count: int) -> Iterator[str]:
    for number in range(count):
        yield f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


HEAD = "chain c {\ntype filter hook forward priority 0\n"


def test_a_long_chain_is_read_up_to_its_bound(namespace: Namespace) -> None:
    rules = "\n".join(f"ip daddr {each} drop" for each in addresses(MOST_CHAIN_RULES + 500))
    load(namespace, HEAD + rules + "\n}")
    certainties, requests, rows = find(namespace, packet("10.9.9.9"))
    assert certainties == [Certainty.UNDECIDED]
    assert (requests, rows) == (3, MOST_CHAIN_RULES + 2)
    # A rule before the bound decides.
    assert find(namespace, packet("10.9.9.9", "10.0.0.7"))[0] == [Certainty.CERTAIN]


@pytest.mark.parametrize("flags", ["", "flags interval"])
def test_elements_are_looked_up(namespace: Namespace, flags: str) -> None:
    elements = ", ".join(addresses(MANY))
    load(
        namespace,
        f"set s {{\ntype ipv4_addr; {flags}\nelements = {{ {elements} }}\n}}\n"
        + HEAD
        + "ip saddr @s drop\n}",
    )
    for source, expected in (("10.0.1.7", [Certainty.CERTAIN]), ("10.9.9.9", [])):
        certainties, requests, rows = find(namespace, packet(source))
        assert certainties == expected
        # Tables, base chains, rules, the set, the element, and its absence twice.
        assert requests <= 6
        assert rows <= 5
    # Without the client's address, a set of this size is not compared.
    certainties, _, rows = find(namespace, packet(None))
    assert certainties == [Certainty.DEPENDS]
    assert rows < 50


def test_an_unknown_client_is_compared_with_few_elements(namespace: Namespace) -> None:
    body = (
        "set s {{\ntype ipv4_addr . inet_service; flags interval\n"
        "elements = {{ 192.0.2.0/24 . {port} }}\n}}\n" + HEAD.replace("{", "{{")
    ) + "ip saddr . tcp dport @s drop\n}}"
    load(namespace, body.format(port=22))
    assert find(namespace, packet(None))[0] == []
    load(namespace, body.format(port="8000-8080"))
    assert find(namespace, packet(None))[0] == [Certainty.DEPENDS]
    load(namespace, "set s {\ntype ipv4_addr\n}\n" + HEAD + "ip saddr @s drop\n}")
    assert find(namespace, packet(None))[0] == []


def test_chains_without_a_hook_are_not_kept(namespace: Namespace) -> None:
    chains = "\n".join(f"chain unused-{number} {{\n}}" for number in range(5_000))
    load(namespace, f"{chains}\n{HEAD}jump unused-7\n}}")
    certainties, requests, rows = find(namespace, packet("10.9.9.9"))
    assert (certainties, requests) == ([], 4)
    # Only the datagram with the base chain is read: at most 32 KiB of chains.
    assert rows < 1_000


def test_dormant_tables_meet_no_packet(namespace: Namespace) -> None:
    load(namespace, "flags dormant\nchain c {\ntype filter hook forward priority 0; policy drop\n}")

    def run() -> int:
        with closing(NftTables()) as tables:
            return len(tables.base_chains()[0])

    assert namespace.call(run) == 0
