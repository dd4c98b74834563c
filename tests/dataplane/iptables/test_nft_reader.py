"""Chains of iptables-nft read over netlink, against what iptables-nft-save prints."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import NodeRouting, StateDiff
from pyproxy.dataplane.iptables.base_rules import TABLES, IptablesOptions
from pyproxy.dataplane.iptables.compare import compare
from pyproxy.dataplane.iptables.kernel_trace import IptablesTracer
from pyproxy.dataplane.iptables.service_path import read_path
from pyproxy.dataplane.packets import Packet
from pyproxy.model.address import Family, Port, Protocol, parse_address
from pyproxy.model.flavour import Flavour
from pyproxy.netlink.attributes import attribute, nested, string
from pyproxy.xtables.nft_reader import NftReader
from pyproxy.xtables.nft_text import RuleTexts, UnknownRuleError
from pyproxy.xtables.programs import Programs
from pyproxy.xtables.saved import HOOKS
from tests.dataplane.iptables.programming import NODE, program, programming, run
from tests.dataplane.iptables.test_compare import Kernel, kernel
from tests.dataplane.nftables.scenes import Scene, scenes
from tests.dataplane.nftables.test_dataplane import numbered

LENGTH = ("-m", "length", "--length", "9", "-j", "ACCEPT")
_NEW = "-m conntrack --ctstate NEW"
# Rules that pyproxy and kube-proxy write to built-in chains or for some Services only.
SAMPLES = {
    Family.IPV4: [
        f"{_NEW} -m conntrack ! --ctstate DNAT -m comment --comment why -j KUBE-REFUSE",
        "-m conntrack --ctstate INVALID,NEW,RELATED,ESTABLISHED,UNTRACKED -j RETURN",
        "! -s 10.0.0.0/9 -d 10.96.0.1/32 -j RETURN",
        "-s 10.0.0.0/15 ! -i cni0 -j ACCEPT",
        "-i veth+ -p udp -m udp --dport 80:95 -j RETURN",
        '-d 10.96.0.1/32 -p sctp -m comment --comment "a/b:c" -m sctp --dport 80 -j KUBE-X',
        "-m mark ! --mark 0x4000/0x4000 -g KUBE-X",
        "-m mark --mark 0x1 -j MARK --set-xmark 0x4000/0x0",
        "-m addrtype --dst-type LOCAL -j RETURN",
        "-m addrtype --src-type LOCAL -j RETURN",
        "-m recent --rcheck --seconds 60 --reap --name KUBE-SEP-X --mask 255.255.255.255 "
        "--rsource -j RETURN",
        "-p udp -m recent --set --name KUBE-SEP-X --mask 255.255.255.255 --rsource "
        "-j DNAT --to-destination 10.244.1.11:8080",
        "-j MASQUERADE --random-fully",
    ],
    Family.IPV6: [
        "! -s fd00::/65 -d fd96::1/128 -j RETURN",
        "-p tcp -m statistic --mode random --probability 0.33333333349 "
        "-j DNAT --to-destination [fd10::1]:8080",
        "-m recent --set --name KUBE-SEP-X "
        "--mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -j RETURN",
        "-j MASQUERADE --random-fully",
    ],
}


def _everything(family: Family) -> dict[str, dict[str, list[str]]]:
    """Read all chains of a family over netlink."""
    with closing(NftReader()) as reader:
        return {name: dict(reader.table(family, name).chains) for name in TABLES}


@pytest.mark.kernel
@pytest.mark.parametrize("family", Family)
def test_texts_are_those_of_iptables_nft_save(namespace: Namespace, family: Family) -> None:
    lines = ["*nat", ":KUBE-X - [0:0]", ":KUBE-REFUSE - [0:0]", ":KUBE-Y - [0:0]"]
    lines += [f"-A KUBE-Y {text}" for text in SAMPLES[family]]
    program_name = f"{Programs(family, Flavour.NFT)}-restore"
    run(namespace, program_name, text="\n".join([*lines, "COMMIT", ""]))
    found = namespace.call(lambda: _everything(family))["nat"]
    saved = namespace.call(Programs(family, Flavour.NFT).save)["nat"]
    assert found["KUBE-Y"] == SAMPLES[family]
    # iptables-nft-save prints built-in chains that do not exist yet.
    assert found == {name: texts for name, texts in saved.chains.items() if name not in HOOKS}


@pytest.mark.kernel
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(scene=scenes())
def test_every_chain_reads_as_iptables_nft_save_prints_it(
    namespace: Namespace, scene: Scene
) -> None:
    node = NodeRouting(scene.node.pod_networks, scene.node_port_addresses)
    routings = tuple(scene.undivided().values())
    with programming(namespace, Flavour.NFT) as dataplane:
        program(namespace, dataplane, routings, node)
        for family in Family:
            saved = namespace.call(Programs(family, Flavour.NFT).save)
            read = namespace.call(partial(_everything, family))
            for name in TABLES:
                # iptables-nft-save prints built-in chains that do not exist yet.
                assert {of: texts for of, texts in saved[name].chains.items() if texts} == {
                    of: texts for of, texts in read[name].items() if texts
                }
        for routing in routings:
            diff = namespace.call(partial(dataplane.compare, routing, node))
            assert diff == StateDiff(kind="rule")


@pytest.mark.kernel
def test_a_service_as_desired_is_compared_and_traced_without_a_program(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = numbered(7)
    packet = Packet(
        parse_address("10.128.0.9"), parse_address("10.96.0.7"), Protocol.TCP, Port(80), "eth0"
    )
    with programming(namespace, Flavour.NFT) as dataplane:
        program(namespace, dataplane, [numbered(each) for each in range(40)])
        # Rules of other programs in built-in chains need no text.
        run(namespace, "iptables-nft", "-I", "FORWARD", *LENGTH)
        monkeypatch.setenv("PATH", "")
        assert namespace.call(lambda: dataplane.compare(wanted, NODE)) == StateDiff(kind="rule")
        assert namespace.call(lambda: dataplane.check_base_rules(NODE)) == ()
        traced = namespace.call(lambda: IptablesTracer(lambda: ()).trace(packet))
    assert len(traced.verdicts()) == 3
    assert traced.remarks == ("ignored 1 rule of other programs in built-in chains",)


@pytest.mark.kernel
def test_a_foreign_rule_in_a_service_chain_is_named(namespace: Namespace) -> None:
    wanted = numbered(1)
    with programming(namespace, Flavour.NFT) as dataplane:
        plan = program(namespace, dataplane, [wanted])
        (chain,) = (
            name
            for change in plan.changes.values()
            for name in change.chains
            if name.startswith("KUBE-SVC-")
        )
        run(namespace, "iptables-nft", "-t", "nat", "-A", chain, *LENGTH)
        diff = namespace.call(lambda: dataplane.compare(wanted, NODE))
    assert diff.extra == (f"IPv4 nat: -A {chain} -m length --length 9 -j ACCEPT",)


class Reads:
    """A read-back of which single chains are read, and counted."""

    def __init__(self, held: Kernel) -> None:
        self._held = held
        self.names: set[tuple[Family, str, str]] = set()

    def chain(self, family: Family, table: str, name: str) -> list[str] | None:
        self.names.add((family, table, name))
        return self._held[family][table].chains.get(name)


def test_few_chains_are_read_for_a_service_among_many() -> None:
    wanted = [numbered(each) for each in range(1_000)]
    reads = Reads(kernel(*wanted))
    saved = read_path(reads.chain, wanted[777], IptablesOptions(), NODE, Family)
    assert not compare(saved, wanted[777], IptablesOptions(), NODE)
    assert len(reads.names) < 60


@settings(max_examples=20)
@given(scenes())
def test_the_chains_on_the_path_show_no_difference_where_there_is_none(scene: Scene) -> None:
    routings = list(scene.undivided().values())
    node = NodeRouting(scene.node.pod_networks, scene.node_port_addresses)
    reads = Reads(kernel(*routings, node=node))
    for routing in routings:
        saved = read_path(reads.chain, routing, IptablesOptions(), node, Family)
        assert compare(saved, routing, IptablesOptions(), node) == StateDiff(kind="rule")


@settings(max_examples=20)
@given(scenes(), st.data())
def test_a_difference_on_the_path_is_found_in_its_chains(scene: Scene, data: st.DataObject) -> None:
    routings = list(scene.undivided().values())
    node = NodeRouting(scene.node.pod_networks, scene.node_port_addresses)
    held = kernel(*routings, node=node)
    chains = [
        texts
        for tables in held.values()
        for table in tables.values()
        for texts in table.chains.values()
        if texts
    ]
    texts = data.draw(st.sampled_from(chains))
    texts.pop(data.draw(st.integers(0, len(texts) - 1)))
    # Only the first of the node's addresses is followed to the node ports.
    assume(len(node.node_port_addresses) < 2)
    for routing in routings:
        reads = Reads(held)
        saved = read_path(reads.chain, routing, IptablesOptions(), node, Family)
        whole = compare(held, routing, IptablesOptions(), node)
        assert bool(compare(saved, routing, IptablesOptions(), node)) == bool(whole)


def _expression(name: str, *fields: bytes) -> bytes:
    return nested(1, string(1, name), nested(2, *fields))


def _word(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(4, "big"))


_COUNTER = _expression("counter", attribute(1, bytes(8)), attribute(2, bytes(8)))
_RETURN = _expression("immediate", _word(1, 0), nested(2, nested(2, _word(1, 0xFFFFFFFB))))
_TCP = (
    _expression("payload", _word(2, 1), _word(3, 9), _word(4, 1), _word(1, 1)),
    _expression("cmp", _word(1, 1), _word(2, 0), nested(3, attribute(1, b"\x06"))),
)


def _match(name: str, revision: int, info: str) -> bytes:
    return _expression(
        "match", string(1, name), _word(2, revision), attribute(3, bytes.fromhex(info))
    )


@pytest.mark.parametrize(
    ("expressions", "text"),
    [
        # iptables 1.8.7 keeps ports and marks as its own matches.
        ((*_TCP, _match("tcp", 0, "0000ffff50005f000000000000000000")),
         "-p tcp -m tcp --dport 80:95 -j RETURN"),
        ((_match("mark", 1, "00400000004000000100000000000000"),),
         "-m mark ! --mark 0x4000/0x4000 -j RETURN"),
        # iptables 1.8.11 reads IPv4's protocol from the header.
        (_TCP, "-p tcp -j RETURN"),
    ],
)  # fmt: skip
def test_the_forms_of_other_releases_are_read(expressions: tuple[bytes, ...], text: str) -> None:
    assert RuleTexts(Family.IPV4).text(b"".join((*expressions, _COUNTER, _RETURN))) == text


@pytest.mark.parametrize(
    "expressions",
    [
        (_match("tcp", 0, "0100ffff50005f000000000000000000"), _COUNTER, _RETURN),
        (_match("length", 0, "00"), _COUNTER, _RETURN),
        (_match("mark", 1, "00"), _COUNTER, _RETURN),
        (_RETURN,),
        (_COUNTER, _RETURN, _RETURN),
    ],
)
def test_rules_of_another_form_have_no_text(expressions: tuple[bytes, ...]) -> None:
    with pytest.raises(UnknownRuleError):
        RuleTexts(Family.IPV4).text(b"".join(expressions))
