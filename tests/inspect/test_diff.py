"""`pyproxy diff` names what somebody has changed in the kernel, and nothing once it is repaired."""

import json

import pytest

from tests.agent.live import endpoint_slice, service
from tests.inspect.node import InspectedNode

pytestmark = pytest.mark.kernel

WEB = (
    service("web", "10.96.0.20"),
    endpoint_slice("web", ["10.244.1.11", "10.244.2.11"]),
)
FRONTEND = "10.96.0.20 . tcp . 80"


def test_nothing_differs_where_nobody_interferes(node: InspectedNode) -> None:
    node.create(*WEB)
    routing = node.command("diff")
    assert (routing.status, routing.out) == (0, "the kernel holds what it should\n")


def test_who_looks_writes_nothing(node: InspectedNode) -> None:
    assert node.written_by_looking() == 0


@pytest.mark.parametrize(
    ("by_hand", "lines"),
    [
        (
            f"delete element inet pyproxy services4 {{ {FRONTEND} }}",
            [
                f'add element inet pyproxy services4 {{ {FRONTEND} comment "shop/web:http"'
                " : goto cluster4-2 }"
            ],
        ),
        (
            f"delete element inet pyproxy endpoints4 {{ {FRONTEND} . 1 }}",
            [f"add element inet pyproxy endpoints4 {{ {FRONTEND} . 1 : 10.244.2.11 . 8080 }}"],
        ),
        (
            "add element inet pyproxy no-endpoint-services4 { 10.96.0.99 . tcp . 80 }",
            ["delete element inet pyproxy no-endpoint-services4 { 10.96.0.99 . tcp . 80 }"],
        ),
        (
            "flush set inet pyproxy pods4",
            ["add element inet pyproxy pods4 { 10.244.0.0-10.244.255.255 }"],
        ),
    ],
    ids=["verdict", "endpoint", "refusal", "pods"],
)
def test_it_names_exactly_what_was_changed_by_hand(
    node: InspectedNode, by_hand: str, lines: list[str]
) -> None:
    node.create(*WEB)
    with node.paused():
        node.nft(by_hand)
        routing = node.alone("diff", "-o", "json")
        assert (routing.json["lines"], routing.status) == (lines, 1)
        assert routing.json["same"] is False
    node.repaired()
    assert node.command("diff").status == 0


@pytest.mark.parametrize(
    ("by_hand", "rules"),
    [
        ("flush chain inet pyproxy {chain}", ["add rule {number} of chain {chain}"]),
        (
            "add rule inet pyproxy {chain} counter",
            ["delete rule {next} of chain {chain}, as it is now"],
        ),
        ("add chain inet pyproxy mine", ["delete chain mine"]),
    ],
    ids=["flushed", "added", "chain"],
)
def test_it_names_the_rules_and_chains_that_were_changed_by_hand(
    node: InspectedNode, by_hand: str, rules: list[str]
) -> None:
    chain, size = "services", node.nft("list chain inet pyproxy services").count("\n\t\t")
    assert size
    with node.paused():
        node.nft(by_hand.format(chain=chain))
        routing = node.alone("diff", "-o", "json")
    wanted = [
        line.format(chain=chain, number=number, next=size + 1)
        for line in rules
        for number in range(1, size + 1 if "{number}" in line else 2)
    ]
    assert routing.json["rules"] == wanted
    assert routing.json["lines"] == ["load the fixed rules of table inet pyproxy"]
    node.repaired()


def test_it_says_what_manifests_would_change(node: InspectedNode) -> None:
    node.create(*WEB)
    file = node.cluster.folder / "change.json"
    file.write_text(json.dumps(endpoint_slice("web", ["10.244.1.11"])))
    routing = node.command("diff", "-f", str(file), "-o", "json")
    assert routing.status == 1
    assert routing.json["counts"] == {"element": 2}
    assert node.command("diff").status == 0


def test_a_folder_in_the_apis_place_is_what_is_asked_about(node: InspectedNode) -> None:
    node.create(*WEB)
    folder = node.cluster.folder / "wanted"
    folder.mkdir()
    wanted = (service("api", "10.96.0.21"), endpoint_slice("api", ["10.244.1.11"]))
    for number, obj in enumerate(wanted):
        (folder / f"{number}.json").write_text(json.dumps(obj))
    routing = node.command("diff", "--manifests", str(folder), "-o", "json")
    lines = [line for line in routing.json["lines"] if " services4 " in line]
    assert [line.split(" : ")[0] for line in lines if line.startswith("add ")] == [
        'add element inet pyproxy services4 { 10.96.0.21 . tcp . 80 comment "shop/api:http"'
    ]
    gone = f"delete element inet pyproxy services4 {{ {FRONTEND} "
    assert [line for line in lines if line.startswith(gone)]
    assert routing.status == 1
    assert node.command("diff").status == 0


def test_a_file_that_is_none_is_a_mistake(node: InspectedNode) -> None:
    routing = node.command("diff", "-f", "/none.yaml")
    assert routing.status == 2
    assert routing.err == "pyproxy: /none.yaml: cannot be read: No such file or directory\n"


def test_it_needs_no_agent(node: InspectedNode) -> None:
    node.create(*WEB)
    routing = node.alone("diff")
    assert (routing.status, routing.out) == (0, "the kernel holds what it should\n")


def test_messages_are_shown_to_the_curious(node: InspectedNode) -> None:
    node.create(*WEB)
    with node.paused():
        node.nft(f"delete element inet pyproxy endpoints4 {{ {FRONTEND} . 1 }}")
        routing = node.alone("diff", "--show-netlink")
        assert "endpoints4, 1 elements, type 0x0a0c: " in routing.out
    node.repaired()
