"""The kubeconfig that kubectl would read: flags, KUBECONFIG with several files, contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyproxy.errors import UsageError
from pyproxy.source.connect import connect_as_kubectl

from .kubeconfigs import write


def config(**sections: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Config", **sections}


def cluster(name: str, server: str) -> dict[str, Any]:
    return {"name": name, "cluster": {"server": server}}


def context(name: str, cluster: str, user: str = "u") -> dict[str, Any]:
    return {"name": name, "context": {"cluster": cluster, "user": user}}


@pytest.fixture
def merged(tmp_path: Path) -> str:
    """KUBECONFIG with two files and one that does not exist."""
    first = config(
        **{"current-context": "one"},
        contexts=[context("one", "a")],
        clusters=[cluster("b", "https://b-of-first:1")],
    )
    second = config(
        **{"current-context": "two"},
        contexts=[context("one", "b"), context("two", "b")],
        clusters=[cluster("a", "https://a:1"), cluster("b", "https://b:1")],
        users=[{"name": "u", "user": {"tokenFile": "token"}}],
    )
    folder = tmp_path / "second"
    folder.mkdir()
    (folder / "token").write_text("of-second")
    paths = [write(tmp_path / "first", first), str(tmp_path / "none")]
    return ":".join([*paths, write(folder / "config", second)])


def test_the_first_file_with_a_name_decides(merged: str) -> None:
    client = connect_as_kubectl("", "", {"KUBECONFIG": merged})
    assert client.host == "https://a:1"
    # The user's file is relative to the kubeconfig with the user.
    assert client._access.authorization() == "Bearer of-second"


def test_a_context_can_be_chosen(merged: str) -> None:
    assert connect_as_kubectl("", "two", {"KUBECONFIG": merged}).host == "https://b-of-first:1"


def test_the_flag_precedes_the_variable_and_the_variable_the_home(
    merged: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (home / ".kube").mkdir(parents=True)
    here = {"current-context": "c", "contexts": [context("c", "c")]}
    usual = config(**here, clusters=[cluster("c", "https://home:1")])
    given = config(**here, clusters=[cluster("c", "https://given:1")])
    write(home / ".kube" / "config", usual)
    path = write(tmp_path / "given", given)
    environ = {"HOME": str(home), "KUBECONFIG": merged}
    assert connect_as_kubectl(path, "", environ).host == "https://given:1"
    assert connect_as_kubectl("", "", environ).host == "https://a:1"
    assert connect_as_kubectl("", "", {"HOME": str(home)}).host == "https://home:1"


@pytest.mark.parametrize(
    ("kubeconfig", "context", "message"),
    [
        ("", "three", "KUBECONFIG: context 'three' is not in contexts"),
        ("/nowhere", "", "--kubeconfig /nowhere: cannot be read: No such file or directory"),
    ],
)
def test_errors_name_the_flag_or_the_variable(
    merged: str, kubeconfig: str, context: str, message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        connect_as_kubectl(kubeconfig, context, {"KUBECONFIG": merged})
    assert str(raised.value) == message


def test_an_invalid_file_of_several_is_named(merged: str, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad", "{")
    with pytest.raises(UsageError, match=f"KUBECONFIG: {bad}: not YAML"):
        connect_as_kubectl("", "", {"KUBECONFIG": f"{merged}:{bad}"})


def test_without_any_file_the_error_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --kubeconfig FILE, or set KUBECONFIG"):
        connect_as_kubectl("", "", {"HOME": str(tmp_path)})
