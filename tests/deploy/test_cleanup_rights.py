"""The cleanup's container has the rights that every mode needs, and no others."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyproxy_lab.modes import MODES, LabMode
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.process import Agent

from tests.namespaces import empty_namespace
from tests.waiting import until

from .manifests import DEPLOY, objects

pytestmark = pytest.mark.kernel

SYSCTL = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait"
LOCK = "/run/xtables.lock"
LEGACY = "iptables-legacy"
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{port: 80, protocol: TCP}]}
"""

# A root with this machine's folders, with /run, /proc/sys and /sys read-only as in a container, and
# with the mounts given as words SOURCE:TARGET.
CONTAINER = """
set -e
root=$1 rights=$2; shift 2
mount -t tmpfs none "$root"
for each in /*; do
    if [ -L "$each" ]; then cp -a "$each" "$root"
    elif [ "$each" != /host ] && [ -d "$each" ]; then
        mkdir "$root$each"; mount --rbind "$each" "$root$each"
    fi
done
mount -t tmpfs none "$root/run"
while [ "$1" != -- ]; do
    source=${1%%:*} target=$root${1#*:}
    if [ -d "$source" ]; then mkdir -p "$target"; else touch "$target"; fi
    mount --bind "$source" "$target"
    shift
done
shift
mount -o remount,ro,bind "$root/run"
for each in proc/sys sys; do
    mount --bind "$root/$each" "$root/$each"; mount -o remount,ro,bind "$root/$each"
done
exec chroot "$root" setpriv --no-new-privs --bounding-set "-all$rights" --inh-caps -all "$@"
"""


def container() -> dict[str, Any]:
    (daemonset,) = objects((DEPLOY / "cleanup" / "daemonset.yaml").read_text())
    (found,) = daemonset["spec"]["template"]["spec"]["initContainers"]
    return dict(found)


def capabilities() -> list[str]:
    found = container()["securityContext"]["capabilities"]
    assert found["drop"] == ["ALL"]
    return [each.lower() for each in found["add"]]


def mounts() -> dict[str, str]:
    """Return the node's path for each path in the container."""
    (daemonset,) = objects((DEPLOY / "cleanup" / "daemonset.yaml").read_text())
    volumes = daemonset["spec"]["template"]["spec"]["volumes"]
    paths = {each["name"]: each["hostPath"]["path"] for each in volumes}
    return {each["mountPath"]: paths[each["name"]] for each in container()["volumeMounts"]}


@pytest.fixture
def here() -> Iterator[Namespace]:
    with empty_namespace("cleanup") as made:
        yield made


def serve(here: Namespace, mode: LabMode, folder: Path) -> None:
    """Let an agent write its rules and kernel settings, and end."""
    (folder / "manifests").mkdir()
    (folder / "manifests" / "service.yaml").write_text(SERVICE)
    off = ["--healthz-bind-address=0", "--metrics-bind-address=0", "--inspect-socket="]
    source = ["--hostname-override=n", f"--manifests={folder / 'manifests'}"]
    command = [sys.executable, "-m", "pyproxy", "run", *mode.flags, *source, *off]
    with Agent(here, command, folder / "log") as agent:

        def serves() -> bool:
            agent.require_alive()
            return "serving node" in agent.log.read_text()

        until(serves, "the agent serves")
    assert sysctl(here) == "3600"


def sysctl(here: Namespace) -> str:
    return here.run(["cat", SYSCTL]).stdout.strip()


def cleanup(
    here: Namespace, folder: Path, rights: list[str], bound: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    (folder / "root").mkdir()
    node = folder / "xtables.lock"
    node.touch()
    # The lock of this machine may not be there.
    binds = [f"{node if source == LOCK else source}:{at}" for at, source in bound.items()]
    added = "".join(f",+{each}" for each in rights)
    script = ["sh", "-c", CONTAINER, "sh", str(folder / "root"), added, *binds, "--"]
    command = ["unshare", "--mount", *script, sys.executable, "-m", "pyproxy", "cleanup"]
    return here.run(command, check=False)


def leftovers(here: Namespace) -> list[str]:
    """Return a line for each of pyproxy's tables, KUBE chains, devices and virtual services."""
    shown = here.run(["sh", "-c", "nft list tables; ip -o link; cat /proc/net/ip_vs"], check=False)
    lines = shown.stdout.splitlines()
    found = [each for each in lines if re.search(r"pyproxy|kube-ipvs0|^TCP ", each)]
    return found + [f"{save}: KUBE" for save in saves() if ":KUBE" in here.run([save]).stdout]


def saves() -> list[str]:
    names = ("iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save")
    return [each for each in names if shutil.which(each)]


def test_the_containers_rights_remove_the_rules_of_every_mode(
    here: Namespace, mode: LabMode, tmp_path: Path
) -> None:
    before = sysctl(here)
    serve(here, mode, tmp_path)
    assert leftovers(here)
    done = cleanup(here, tmp_path, capabilities(), mounts())
    assert done.returncode == 0, done.stderr
    assert (leftovers(here), sysctl(here)) == ([], before)


@pytest.mark.parametrize(
    ("missing", "status", "message", "left"),
    [
        ("net_raw", 2, "pyproxy: cannot remove all objects without CAP_NET_RAW: ", True),
        ("net_admin", 2, "pyproxy: cannot remove all objects without CAP_NET_ADMIN: ", True),
        (LOCK, 1, f"can't open lock file {LOCK}", True),
        (
            "/host/proc/sys/net",
            1,
            "cannot restore net.ipv4.conf.all.route_localnet to 0: EROFS; net.netfilter.",
            False,
        ),
    ],
)
def test_each_of_them_is_needed_and_named_if_it_is_missing(
    here: Namespace, tmp_path: Path, missing: str, status: int, message: str, left: bool
) -> None:
    """And everything else is removed without it."""
    if shutil.which(LEGACY) is None:
        pytest.skip(f"needs the command {LEGACY}")
    serve(here, MODES[LEGACY], tmp_path)
    rights = [each for each in capabilities() if each != missing]
    bound = {at: source for at, source in mounts().items() if at != missing}
    assert len(rights) + len(bound) == len(capabilities()) + len(mounts()) - 1
    done = cleanup(here, tmp_path, rights, bound)
    assert done.returncode == status, done.stderr
    assert sum(message in each for each in done.stderr.splitlines()) == 1
    assert ("iptables-legacy-save: KUBE" in leftovers(here)) is left
    assert (sysctl(here) == "3600") is (missing in {"net_admin", "/host/proc/sys/net"})


def test_another_programs_legacy_tables_hide_nothing_from_net_admin_alone(
    here: Namespace, tmp_path: Path
) -> None:
    """Without CAP_NET_RAW nothing is read there, so the status is that of a missing right."""
    if shutil.which(LEGACY) is None:
        pytest.skip(f"needs the command {LEGACY}")
    here.run([LEGACY, "--wait", "-t", "nat", "-N", "CNI-HOSTPORT"])
    before = sysctl(here)
    serve(here, MODES["nftables"], tmp_path)
    bound = {at: source for at, source in mounts().items() if at != LOCK}
    done = cleanup(here, tmp_path, ["net_admin"], bound)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pyproxy: cannot remove all objects without CAP_NET_RAW: ")
    assert (leftovers(here), sysctl(here)) == ([], before)
