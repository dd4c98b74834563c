"""Check the Dockerfile, its parts and the scripts without a build."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import image_pod

from .manifests import BASE, DEPLOY, ROOT, tool

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "deploy/image/requirements.txt").read_text()
OMITTED = {"markdown-it-py", "pygments"}
"""Requirements of rich that pyproxy never imports; mdurl comes with markdown-it-py."""
SCRIPTS = sorted([*(ROOT / "tools").glob("*.sh"), *(ROOT / "deploy").rglob("*.sh")])


def in_build_context(path: str) -> bool:
    """Return whether .dockerignore keeps a path in the context: the last matching pattern wins."""
    found = True
    for line in (ROOT / ".dockerignore").read_text().split():
        pattern = line.removeprefix("!")
        if fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/"):
            found = line.startswith("!")
    return found


def pinned(lock: str) -> dict[str, tuple[int, ...]]:
    """Return the versions of a lock whose packages all have hashes."""
    found = re.findall(
        r"^([a-z0-9-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", lock, re.M
    )
    assert len(found) == len(re.findall(r"==", lock))
    return {name: tuple(map(int, version.split("."))) for name, version, _ in found}


def test_copied_files_are_in_the_build_context() -> None:
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"pyproxy", "pyproject.toml"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert in_build_context(source), source
    for source in (".venv", ".git", "lab", "lab/pyproxy_lab", "bench", "tests"):
        assert not in_build_context(source), source
        assert source not in copied


def test_the_image_pins_each_dependency_of_pyproxy_and_none_of_the_lab() -> None:
    versions = pinned(LOCK)
    for wanted in PROJECT["dependencies"]:
        name, _, least = wanted.lower().partition(">=")
        assert versions[name] >= tuple(map(int, least.split("."))), name
    assert not versions.keys() & {"pyproxy-lab", "matplotlib"}


def test_only_packages_that_are_never_imported_are_left_out_of_the_image() -> None:
    """pip installs the lock without resolving it."""
    names = set(pinned(LOCK))
    wanted = [Requirement(each) for name in names for each in requires(name) or ()]
    needed = {
        canonicalize_name(each.name)
        for each in wanted
        if each.marker is None or each.marker.evaluate({"python_version": "3.13", "extra": ""})
    }
    assert needed - names == OMITTED
    program = (
        "import importlib, pkgutil, sys\n"
        "sys.modules.update(dict.fromkeys(['pygments', 'markdown_it', 'mdurl']))\n"
        "import pyproxy\n"
        "for each in pkgutil.walk_packages(pyproxy.__path__, 'pyproxy.'):\n"
        "    if not each.name.endswith('__main__'):\n"
        "        importlib.import_module(each.name)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    build = pinned((ROOT / "deploy/image/requirements-build.txt").read_text())
    assert not build.keys() & names
    assert "setuptools" in build


def test_the_image_has_no_shell_and_no_manifest_asks_for_one() -> None:
    listed = (ROOT / "deploy/image/debian-packages.txt").read_text()
    packages = re.sub(r"#.*", "", listed).split()
    assert len(packages) == len(set(packages))
    assert not set(packages) & {"dash", "bash", "busybox", "coreutils", "apt", "dpkg"}
    for path in DEPLOY.rglob("daemonset.yaml"):
        for words in re.findall(r"^ *command:(.*\n(?: *- .*\n)*)", path.read_text(), re.M):
            assert not re.search(r"\b(ba)?sh\b|\bsleep\b", words), path


@pytest.mark.parametrize(
    ("container", "capabilities", "no_new_privileges"),
    [("pyproxy", ["CAP_NET_ADMIN", "CAP_NET_RAW"], True), ("kernel-settings", None, False)],
)
def test_a_checked_pod_has_the_rights_of_its_manifest(
    container: str, capabilities: list[str] | None, no_new_privileges: bool, tmp_path: Path
) -> None:
    profile = tmp_path / "seccomp.json"
    rules = [
        {"names": ["read"], "action": "ALLOW", "includes": {}, "excludes": {}},
        {"names": ["mount"], "action": "ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["mount"], "action": "ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
    ]
    profile.write_text(
        json.dumps({"defaultAction": "ERRNO", "defaultErrnoRet": 38, "syscalls": rules})
    )
    image = image_pod.Image(tmp_path, {"PATH": "/bin"}, {}, ["pyproxy", "run"])
    values = {"NODE_NAME": "node-a", "API_SERVERS": "https://a.example"}
    host = image_pod.Host(tmp_path, {"/etc/pyproxy": tmp_path}, values, profile)
    image_pod.Pod(image, BASE / "daemonset.yaml", container, host)
    (written,) = tmp_path.glob("*/config.json")
    config = json.loads(written.read_text())
    process = config["process"]
    assert process["args"][:2] == ["pyproxy", "run"]
    assert config["root"]["readonly"]
    assert process["noNewPrivileges"] == no_new_privileges
    assert [each["source"] for each in config["mounts"] if "pyproxy" in each["destination"]] == [
        *([] if capabilities is None else ["tmpfs"]),
        str(tmp_path),
    ]
    if capabilities is None:
        assert "seccomp" not in config["linux"]
        return
    assert "--hostname-override=node-a" in process["args"]
    assert process["capabilities"]["bounding"] == capabilities
    allowed = [(each["names"], each["action"]) for each in config["linux"]["seccomp"]["syscalls"]]
    assert allowed == [(["read"], "ALLOW"), (["mount"], "ERRNO")]
    assert "/proc/sys" in config["linux"]["readonlyPaths"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_have_no_mistakes_that_shellcheck_knows(script: Path) -> None:
    done = subprocess.run(
        [tool("shellcheck"), str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert script.stat().st_mode & 0o111
