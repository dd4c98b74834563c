"""Build the Dockerfile's stages without a container engine, and run the agent in what comes out.

Each stage is a folder: mmdebstrap makes the first, RUN is a chroot. Then runc runs the containers
of deploy/base and deploy/cleanup with their rights (image_pod.py). The agent has to pass
conformance cases in the lab. Needs root, mmdebstrap and runc.

    python3 tools/image_check.py [--root ROOT] [FOLDER]

The folder is a temporary one unless it is given; what it holds of an earlier run is made anew, but
for what mmdebstrap has made. With --root nothing is built: ROOT is the root of an image, such as
`buildah mount` prints.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from image_pod import SECCOMP, Host, Image, Pod
from pyproxy_lab import modes
from pyproxy_lab.cluster import Cluster
from pyproxy_lab.conformance import cases
from pyproxy_lab.conformance.runner import Runner, await_agent
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.process import Agent

SOURCE = Path(__file__).parent.parent
SUITES = {"debian:13-slim": "trixie", "debian:12-slim": "bookworm"}
MIRROR = "http://deb.debian.org/debian"
NOBODY = 65534
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CERTIFICATES = Path("/etc/ssl/certs")
BUNDLE = "ca-certificates.crt"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
NEEDS = ("mmdebstrap", "unshare", "setpriv", "ip", "nft", "runc")
MODES = ("nftables", "iptables-nft", "iptables-legacy")
NODE = "na"
LOG = "agent.log"
CASES = SOURCE / "tests/conformance/cases/01-cluster-ip.yaml"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
PROGRAMS = (
    "nft",
    "iptables-nft-save",
    "ip6tables-legacy-restore",
    "iptables",
    "modprobe",
    "python3",
)
ABSENT = ("sh", "bash", "apt-get", "dpkg", "pip", "perl")

# All mounts are gone with their namespace: a stage's /proc and /dev, and of this machine's the
# resolver and the certificates. The arguments are the root, a bundle of certificates, the user.
CHROOT = """
mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" || exit 1
if [ -e "$1/etc/apt" ]; then
    touch "$1/etc/resolv.conf" && mount --bind /etc/resolv.conf "$1/etc/resolv.conf" || exit 1
    mkdir -p "$1/run/ca" && mount --bind "$2" "$1/run/ca" || exit 1
fi
root=$1 user=$3; shift 3
exec chroot --userspec="$user:$user" "$root" "$@"
"""
# The image has no shell.
IMPORT_ALL = """
import importlib, pkgutil, pyproxy
from google.protobuf.internal import api_implementation
assert api_implementation.Type() == "upb", "protobuf lacks a library, and decodes in Python"
for module in pkgutil.walk_packages(pyproxy.__path__, "pyproxy."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


class Instruction(NamedTuple):
    """One line of a Dockerfile, continued lines joined."""

    name: str
    text: str


def instructions(text: str) -> Iterator[Instruction]:
    """Read a Dockerfile."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    for line in filter(str.strip, joined.splitlines()):
        name, _, rest = line.strip().partition(" ")
        yield Instruction(name.upper(), rest.strip())


def build(dockerfile: Path, folder: Path) -> Image:
    """Build all stages below a folder, and give the last. Raises CalledProcessError."""
    globals_: dict[str, str] = {}
    stages: dict[str, Image] = {}
    image: Image | None = None
    for name, text in instructions(dockerfile.read_text()):
        print(f"{name} {text}"[:100])
        if name == "FROM":
            base, _, alias = _expanded(text, globals_).partition(" AS ")
            image = _stage(base, folder / (alias or "final"), stages, folder)
            stages[alias or "final"] = image
        elif image is None:
            globals_.update(_assignments(text))
        else:
            _apply(image, name, text, stages)
    assert image is not None, f"{dockerfile} has no FROM"
    return image


def described(dockerfile: Path, root: Path) -> Image:
    """Return the last stage as it was built elsewhere, with its files below `root`."""
    image = Image(root, {"PATH": PATH}, {}, [])
    for name, text in instructions(dockerfile.read_text()):
        if name == "FROM":
            image = Image(root, {"PATH": PATH}, {}, [])
        elif name in {"ENV", "LABEL", "ENTRYPOINT", "CMD"}:
            _apply(image, name, text, {})
    return image


def _stage(base: str, root: Path, stages: Mapping[str, Image], folder: Path) -> Image:
    shutil.rmtree(root, ignore_errors=True)
    if base == "scratch":
        root.mkdir(parents=True)
        return Image(root, {"PATH": PATH}, {}, [])
    if base in stages:
        below = stages[base]
        _copy(below.root, root)
        return below._replace(root=root, environment=dict(below.environment), labels={})
    suite = SUITES[base.partition("@")[0]]
    kept = folder / f"{suite}.tar"
    if not kept.exists():
        command = ["mmdebstrap", "--variant=apt", f"--keyring={KEYRING}", "--quiet"]
        subprocess.run([*command, suite, f"{kept}.part", MIRROR, "--format=tar"], check=True)
        Path(f"{kept}.part").rename(kept)
    root.mkdir(parents=True)
    subprocess.run(["tar", "-xf", str(kept), "-C", str(root)], check=True)
    return Image(root, {"PATH": PATH}, {}, [])


def _apply(image: Image, name: str, text: str, stages: Mapping[str, Image]) -> None:
    if name == "RUN":
        chroot(image, ["sh", "-c", text])
    elif name in {"ENV", "ARG"}:
        image.environment.update(_assignments(text))
    elif name == "LABEL":
        image.labels.update(_assignments(text))
    elif name in {"ENTRYPOINT", "CMD"}:
        image.command.extend(json.loads(text))
    elif name == "COPY":
        *options, target = shlex.split(text)
        sources = [each for each in options if not each.startswith("--")]
        stage = next((o.removeprefix("--from=") for o in options if o.startswith("--from=")), "")
        for source in sources:
            here = stages[stage].root / source.lstrip("/") if stage else SOURCE / source
            there = image.root / target.lstrip("/")
            # Of a folder its contents are copied.
            into = target.endswith("/") and not here.is_dir()
            _copy(here, there / here.name if into else there)
    else:
        raise ValueError(f"{name}: no such instruction here: add it to {__file__}")


def chroot(image: Image, command: list[str], user: int = 0) -> str:
    """Run a command in a stage and give what it printed. Raises CalledProcessError."""
    environment = image.environment | {"DEBIAN_FRONTEND": "noninteractive"}
    if (CERTIFICATES / BUNDLE).exists():
        environment["PIP_CERT"] = f"/run/ca/{BUNDLE}"
    script = ["unshare", "--mount", "sh", "-c", CHROOT, "sh"]
    arguments = [str(image.root), str(CERTIFICATES), str(user)]
    return subprocess.run(
        [*script, *arguments, *command],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def _assignments(text: str) -> dict[str, str]:
    return dict(each.split("=", 1) for each in shlex.split(text))


def _expanded(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values[found[1]], text)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--no-target-directory", str(source), str(target)], check=True)


def check_files(image: Image) -> None:
    """Look at what the image holds. Raises AssertionError and CalledProcessError."""
    version = chroot(image, ["pyproxy", "version"], user=NOBODY).strip()
    # kops starts kube-proxy like this.
    runner = ["/go-runner", "--log-file=/var/log/kube-proxy.log", "--also-stdout"]
    printed = chroot(image, [*runner, "/usr/local/bin/kube-proxy", "--version"])
    assert f"({version})" in printed, printed
    log = image.root / "var/log/kube-proxy.log"
    assert log.read_text() == printed
    log.unlink()
    chroot(image, ["/opt/pyproxy/bin/python", "-c", IMPORT_ALL], user=NOBODY)
    for program in PROGRAMS:
        chroot(image, [program, "--version"])
    folders = [image.root / each.lstrip("/") for each in PATH.split(":")]
    for program in ABSENT:
        assert not any((folder / program).exists() for folder in folders), program
    size = 0
    for path in image.root.rglob("*"):
        found = path.lstat()
        if not path.is_symlink():
            assert not found.st_mode & 0o6000, f"setuid or setgid: {path}"
            sticky = path.is_dir() and found.st_mode & 0o1000
            assert sticky or not found.st_mode & 0o022, f"others may write: {path}"
            size += found.st_size if path.is_file() else 0
    sbom = json.loads((image.root / image.labels["sbom.path"].lstrip("/")).read_text())
    names = {each["name"] for each in sbom["components"]}
    assert names >= {"kube-pyproxy", "msgspec", "nftables", "iptables"}
    assert not names & {"pip", "setuptools", "pygments"}
    print(f"{version}: {size / 1e6:.0f} MB, {len(names)} packages in its SBOM")


def check_pods(image: Image, folder: Path) -> None:
    """Run the pods of deploy/base and deploy/cleanup in each mode. Raises AssertionError."""
    for name in MODES:
        with ExitStack() as stack:
            cluster = stack.enter_context(Cluster())
            parts = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
            try:
                _check_pods(cluster, image, parts, modes.named(name))
            except Exception:
                print((parts / LOG).read_text(), file=sys.stderr)
                raise


def _check_pods(cluster: Cluster, image: Image, folder: Path, mode: LabMode) -> None:
    node, site = cluster.network.namespace(NODE), cluster.network.topology.site(NODE)
    log = folder / LOG
    log.touch()
    config, account, lock = (folder / each for each in ("config", "account", "xtables.lock"))
    config.mkdir()
    text = (SOURCE / "deploy/base/config.conf").read_text()
    assert "mode: nftables" in text
    (config / "config.conf").write_text(
        text.replace("mode: nftables", f"mode: {mode.proxy_mode.value}")
    )
    account.mkdir()
    (account / "token").write_text(cluster.client.token)
    (account / "ca.crt").write_bytes((CERTIFICATES / BUNDLE).read_bytes())  # the lab has no TLS
    lock.touch()
    paths: dict[str, Path] = {"/etc/pyproxy": config}
    if not Path("/lib/modules").exists():
        paths["/lib/modules"] = config  # the kubelet would make an empty folder
    mounted = paths | {ACCOUNT: account, "/run/xtables.lock": lock}
    values = {
        "NODE_NAME": site.node,
        "API_SERVERS": cluster.url,
        # The Service's address, as every pod has it.
        "KUBERNETES_SERVICE_HOST": "10.96.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
    }
    flavour = [] if mode.flavour is None else [f"--iptables-flavour={mode.flavour.value}"]

    def pod(manifest: str, container: str, mounts: Mapping[str, Path], *further: str) -> Pod:
        path = SOURCE / "deploy" / manifest / "daemonset.yaml"
        return Pod(image, path, container, Host(folder, mounts, values), further)

    settings = pod("base", "kernel-settings", paths, *flavour)
    node.run(settings.command())
    agent = pod("base", "pyproxy", mounted, *flavour)
    runner = Runner(cluster.client, cluster.network, mode)
    with Agent(node, agent.command(), log) as running:
        await_agent(runner, running)
        chosen = [each for each in cases.read(CASES) if runner.applies(each)]
        for case in chosen:
            failures = runner.run(case)
            assert not failures, "\n".join([case.name, *failures])
        running.require_alive()
        assert node.call(_health) == 200
        print(f"{mode.name}: {len(chosen)} conformance cases passed, /healthz: 200")
        assert site.node in agent.execute("pyproxy", "status")
    assert _rules(node)
    node.run(pod("cleanup", "cleanup", {"/run/xtables.lock": lock}).command())
    assert not _rules(node)


def _rules(node: Namespace) -> str:
    """Return the lines of pyproxy's rules, of each kind."""
    commands = (["nft", "list", "tables"], ["iptables-legacy-save"], ["iptables-nft-save"])
    lines = [line for each in commands for line in node.run(each).stdout.splitlines()]
    return "\n".join(each for each in lines if "pyproxy" in each.lower() or "KUBE" in each)


def _health() -> int:
    """Return the status of the health port in the namespace that this is called in."""
    with urllib.request.urlopen("http://127.0.0.1:10256/healthz", timeout=5) as response:
        return int(response.status)


def main(arguments: list[str]) -> int:
    """Build and check; 2 if this machine cannot."""
    parser = argparse.ArgumentParser("image_check.py", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--root", type=Path)
    options = parser.parse_args(arguments)
    missing = [each for each in NEEDS if not shutil.which(each)]
    if not SECCOMP.exists():
        missing.append(str(SECCOMP))
    if missing or os.geteuid() != 0:
        wanted = ", ".join(missing) or "root"
        print(f"image-check needs {wanted}", file=sys.stderr)
        return 2
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        dockerfile = SOURCE / "Dockerfile"
        if options.root:
            image = described(dockerfile, options.root.resolve())
        else:
            image = build(dockerfile, folder.resolve())
        check_files(image)
        check_pods(image, folder.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
