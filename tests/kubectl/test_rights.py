"""The roles of deploy/kubectl grant exactly the rights that the plugin uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyproxy_lab.apiserver import access
from pyproxy_lab.apiserver.settings import Settings

from tests.agent.live import service
from tests.deploy.manifests import DEPLOY, objects, the
from tests.kubectl.plugin import Nodes, simulated
from tests.kubectl.test_explain import POLICY, SKIPPED, explanation

NAME = "pyproxy-kubectl"
Rights = frozenset[tuple[str, str]]


def assigned() -> Rights:
    """All rights of the roles, as resource and verb."""
    found = objects((DEPLOY / "kubectl" / "rbac.yaml").read_text())
    return frozenset(
        (resource, verb)
        for kind in ("ClusterRole", "Role")
        for rule in the(kind, found, NAME)["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    )


def user(rights: Rights) -> access.User:
    return access.User(
        "operator",
        {
            resource: frozenset(verb for other, verb in rights if other == resource)
            for resource, _ in rights
        },
    )


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setattr(access, "PROXY", user(assigned()))
    with simulated(tmp_path, ["node-1"], Settings(proxy_token="t")) as made:
        made.server.load([service("web", "10.96.0.20", selector={"app": "web"})])
        yield made


COMMANDS = (
    ("status",),
    ("explain", "10.96.0.20:80"),
    ("services",),
    ("diff",),
    ("top", "--once"),
    ("trace", "--node", "node-1", "--to", "10.96.0.20:80"),
)


def test_every_right_is_used_and_no_other_is_needed(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[tuple[str, str]] = set()
    authorize = access.authorize

    def record(who: access.User, action: access.Action) -> None:
        used.add((action.qualified, action.verb))
        authorize(who, action)

    monkeypatch.setattr(access, "authorize", record)
    nodes.replies["node-1"] = explanation(SKIPPED, POLICY)
    for words in COMMANDS:
        assert "forbidden" not in nodes.run(*words).err
    assert used == assigned()


@pytest.mark.parametrize(
    "missing", sorted(each for each in assigned() if each != ("services", "list"))
)
def test_a_missing_right_is_one_line_that_names_it(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, str]
) -> None:
    monkeypatch.setattr(access, "PROXY", user(assigned() - {missing}))
    resource, verb = missing
    for words in COMMANDS:
        found = nodes.run(*words)
        assert (found.status, found.out) == (2, "")
        (line,) = found.err.splitlines()
        assert f'cannot {verb} resource "{resource}"' in line
        assert line.endswith("bind the roles of deploy/kubectl/rbac.yaml to this user")


def test_without_the_right_to_list_services_the_agents_step_stays(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "PROXY", user(assigned() - {("services", "list")}))
    nodes.replies["node-1"] = explanation(SKIPPED, POLICY)
    for target in ("shop/web", "10.96.0.20:80"):
        assert "pods not queried: no permission" in nodes.run("explain", target).out


def test_wrong_credentials_are_one_line(nodes: Nodes) -> None:
    nodes.path.write_text(nodes.path.read_text().replace('"t"', '"wrong"'))
    found = nodes.run("status")
    assert found.status == 2
    assert "log in, or correct the credentials in the kubeconfig" in found.err
