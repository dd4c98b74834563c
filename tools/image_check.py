"""Build the Dockerfile's stages without a container engine, and start the agent in what comes out.

Each stage is a folder: debootstrap makes the first, RUN is a chroot. The agent then runs as a pod
of deploy/base would: on a root that is read-only, with its capabilities alone, in a network
namespace of its own, until /healthz says 200. Needs root, and debootstrap.

    python3 tools/image_check.py [FOLDER]

The folder is a temporary one unless it is given; what it holds of an earlier run is made anew, but
for what debootstrap has fetched.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parent.parent
SUITES = {"debian:13-slim": "trixie", "debian:12-slim": "bookworm"}
MIRROR = "http://deb.debian.org/debian"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CERTIFICATES = Path("/etc/ssl/certs")
BUNDLE = "ca-certificates.crt"
SETTINGS = ["run", "--config=/tmp/config.conf", "--init-only"]
AGENT = ["run", "--config=/tmp/config.conf", "--manifests=/tmp/manifests", "--takeover"]
CAPABILITIES = "+net_admin,+net_raw"
PATIENCE = 60.0
NEEDS = ("debootstrap", "unshare", "nsenter", "setpriv", "ip", "nft")

# All mounts are gone with their namespace: a stage's /proc and /dev, and of this machine's the
# resolver and the certificates. The arguments are the root, a bundle of certificates, the user.
CHROOT = """
mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" || exit 1
mount --bind /etc/resolv.conf "$1/etc/resolv.conf" || exit 1
mkdir -p "$1/run/ca" && mount --bind "$2" "$1/run/ca" || exit 1
root=$1 user=$3; shift 3
exec chroot --userspec="$user:$user" "$root" "$@"
"""
# A runtime makes the folders of mounts. The arguments are the root, a folder for /tmp, and the
# capabilities.
POD = """
mkdir -p "$1/run/pyproxy" || exit 1
mount --bind "$1" "$1" && cd "$1" && mount -t proc proc proc && mount --rbind /dev dev || exit 1
mount --bind "$2" tmp && mount -t tmpfs tmpfs run/pyproxy || exit 1
mount -o remount,ro,bind "$1" || exit 1
root=$1 bound=$3; shift 3
exec chroot "$root" setpriv --no-new-privs --bounding-set "-all,$bound" \
    --inh-caps "-all,$bound" "$@"
"""


class Instruction(NamedTuple):
    """One line of a Dockerfile, continued lines joined."""

    name: str
    text: str


class Image(NamedTuple):
    """The result of a stage: its files, its environment, its labels and its command."""

    root: Path
    environment: dict[str, str]
    labels: dict[str, str]
    command: list[str]


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


def _stage(base: str, root: Path, stages: Mapping[str, Image], folder: Path) -> Image:
    shutil.rmtree(root, ignore_errors=True)
    if base in stages:
        below = stages[base]
        _copy(below.root, root)
        return below._replace(root=root, environment=dict(below.environment), labels={})
    suite = SUITES[base]
    kept = folder / f"debootstrap-{suite}"
    if not (kept / "etc/os-release").exists():
        command = ["debootstrap", "--force-check-gpg", "--variant=minbase", suite]
        subprocess.run([*command, str(kept), MIRROR], check=True, stdout=subprocess.DEVNULL)
    _copy(kept, root)
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
            _copy(here, there / here.name if target.endswith("/") else there)
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
    version = chroot(image, ["pyproxy", "version"], user=65534).strip()
    # kops starts kube-proxy like this.
    runner = ["/go-runner", "--log-file=/var/log/kube-proxy.log", "--also-stdout"]
    printed = chroot(image, [*runner, "/usr/local/bin/kube-proxy", "--version"])
    assert f"({version})" in printed, printed
    log = image.root / "var/log/kube-proxy.log"
    assert log.read_text() == printed
    log.unlink()
    for program in ("nft", "iptables-nft-save", "iptables-legacy-restore", "modprobe"):
        chroot(image, ["sh", "-c", f"command -v {program}"])
    unsafe = chroot(image, ["find", "/", "-xdev", "-type", "f", "-perm", "/6000"])
    assert not unsafe, f"setuid or setgid: {unsafe}"
    writable = chroot(image, ["find", "/opt", "!", "-type", "l", "-perm", "/022"])
    assert not writable, f"others may write: {writable}"
    sbom = json.loads((image.root / image.labels["sbom.path"].lstrip("/")).read_text())
    names = {each["name"] for each in sbom["components"]}
    assert names >= {"pyproxy", "msgspec", "nftables", "iptables"}
    size = subprocess.run(
        ["du", "-sm", str(image.root)], check=True, capture_output=True, text=True
    ).stdout.split()[0]
    print(f"{version}: {size} MB, {len(names)} packages in its SBOM")


def check_agent(image: Image) -> None:
    """Start the agent as a pod would have it, and wait for /healthz. Raises AssertionError."""
    name = f"image-check-{os.getpid()}"
    inside = ["ip", "netns", "exec", name]
    with contextlib.ExitStack() as stack:
        tmp = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (tmp / "manifests").mkdir()
        shutil.copy(SOURCE / "deploy/base/config.conf", tmp)
        subprocess.run(["ip", "netns", "add", name], check=True)
        stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        pod = ["unshare", "--mount", "sh", "-c", POD, "sh", str(image.root), str(tmp), CAPABILITIES]
        command = [*inside, *pod, *image.command[:1]]
        subprocess.run([*command, *SETTINGS], env=image.environment, check=True)
        agent = subprocess.Popen([*command, *AGENT], env=image.environment)
        stack.callback(agent.wait, PATIENCE)
        stack.callback(agent.terminate)
        deadline = time.monotonic() + PATIENCE
        while _health(inside) != 200:
            assert agent.poll() is None, f"the agent ended with status {agent.returncode}"
            assert time.monotonic() < deadline, f"not healthy within {PATIENCE} s"
            time.sleep(0.1)
        assert "table inet pyproxy" in _tables(inside)
        print("/healthz: 200")
        # As `kubectl exec` does.
        pod = ["nsenter", f"--target={agent.pid}", "--mount", "--net", "--root", "--wd=/"]
        asked = [*pod, *image.command[:1], "status"]
        status = subprocess.run(
            asked, env=image.environment, check=True, capture_output=True, text=True
        ).stdout
        print(status.splitlines()[0])
        agent.terminate()
        agent.wait(PATIENCE)
        subprocess.run([*command, "cleanup"], env=image.environment, check=True)
        assert "pyproxy" not in _tables(inside)


def _tables(inside: list[str]) -> str:
    return subprocess.run(
        [*inside, "nft", "list", "tables"], check=True, capture_output=True, text=True
    ).stdout


def _health(inside: list[str]) -> int:
    script = (
        "import urllib.request\n"
        "print(urllib.request.urlopen('http://127.0.0.1:10256/healthz', timeout=5).status)"
    )
    done = subprocess.run(
        [*inside, sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    return int(done.stdout or 0)


def main(arguments: list[str]) -> int:
    """Build and check; 2 where this machine cannot."""
    missing = [each for each in NEEDS if not shutil.which(each)]
    if missing or os.geteuid() != 0:
        wanted = ", ".join(missing) or "root"
        print(f"image-check needs {wanted}", file=sys.stderr)
        return 2
    with contextlib.ExitStack() as stack:
        folder = Path(
            arguments[0] if arguments else stack.enter_context(tempfile.TemporaryDirectory())
        )
        folder.mkdir(parents=True, exist_ok=True)
        image = build(SOURCE / "Dockerfile", folder.resolve())
        check_files(image)
        check_agent(image)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
