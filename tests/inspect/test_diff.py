"""`pyproxy diff` lists every change by another program, and nothing after the repair."""

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


def test_there_is_no_difference_without_drift(node: InspectedNode) -> None:
    node.create(*WEB)
    result = node.command("diff")
    assert (result.status, result.out) == (0, "the kernel state is the desired state\n")


def test_diff_writes_nothing(node: InspectedNode) -> None:
    assert node.messages_written_by_reading() == 0


@pytest.mark.parametrize(
    ("change", "lines"),
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
    ids=["verdict", "endpoint", "no-endpoint", "pods"],
)
def test_it_lists_exactly_the_changed_elements(
    node: InspectedNode, change: str, lines: list[str]
) -> None:
    node.create(*WEB)
    with node.paused():
        node.nft(change)
        result = node.without_agent("diff", "-o", "json")
        assert (result.json["lines"], result.status) == (lines, 1)
        assert result.json["same"] is False
    node.wait_repaired()
    assert node.command("diff").status == 0


@pytest.mark.parametrize(
    ("change", "rules"),
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
def test_it_names_changed_rules_and_chains(
    node: InspectedNode, change: str, rules: list[str]
) -> None:
    chain, size = "services", node.nft("list chain inet pyproxy services").count("\n\t\t")
    assert size
    with node.paused():
        node.nft(change.format(chain=chain))
        result = node.without_agent("diff", "-o", "json")
    wanted = [
        line.format(chain=chain, number=number, next=size + 1)
        for line in rules
        for number in range(1, size + 1 if "{number}" in line else 2)
    ]
    assert result.json["rules"] == wanted
    assert result.json["lines"] == ["load the base rules of table inet pyproxy"]
    node.wait_repaired()


def test_files_are_compared_as_if_they_were_applied(node: InspectedNode) -> None:
    node.create(*WEB)
    file = node.cluster.folder / "change.json"
    file.write_text(json.dumps(endpoint_slice("web", ["10.244.1.11"])))
    result = node.command("diff", "-f", str(file), "-o", "json")
    assert result.status == 1
    assert result.json["counts"] == {"element": 2}
    assert node.command("diff").status == 0


def test_a_folder_of_manifests_is_the_desired_state(node: InspectedNode) -> None:
    node.create(*WEB)
    folder = node.cluster.folder / "wanted"
    folder.mkdir()
    wanted = (service("api", "10.96.0.21"), endpoint_slice("api", ["10.244.1.11"]))
    for number, obj in enumerate(wanted):
        (folder / f"{number}.json").write_text(json.dumps(obj))
    result = node.command("diff", "--manifests", str(folder), "-o", "json")
    lines = [line for line in result.json["lines"] if " services4 " in line]
    assert [line.split(" : ")[0] for line in lines if line.startswith("add ")] == [
        'add element inet pyproxy services4 { 10.96.0.21 . tcp . 80 comment "shop/api:http"'
    ]
    gone = f"delete element inet pyproxy services4 {{ {FRONTEND} "
    assert [line for line in lines if line.startswith(gone)]
    assert result.status == 1
    assert node.command("diff").status == 0


def test_a_file_that_cannot_be_read_is_a_usage_error(node: InspectedNode) -> None:
    result = node.command("diff", "-f", "/none.yaml")
    assert result.status == 2
    assert result.err == "pyproxy: /none.yaml: cannot be read: No such file or directory\n"


def test_it_works_without_an_agent(node: InspectedNode) -> None:
    node.create(*WEB)
    result = node.without_agent("diff")
    assert (result.status, result.out) == (0, "the kernel state is the desired state\n")


def test_show_netlink_prints_the_messages(node: InspectedNode) -> None:
    node.create(*WEB)
    with node.paused():
        node.nft(f"delete element inet pyproxy endpoints4 {{ {FRONTEND} . 1 }}")
        result = node.without_agent("diff", "--show-netlink")
        assert "endpoints4, 1 elements, type 0x0a0c: " in result.out
    node.wait_repaired()
