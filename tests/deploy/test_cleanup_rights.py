"""The mounts of the cleanup container let it remove rules of iptables-legacy."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from .manifests import DEPLOY, objects

pytestmark = pytest.mark.kernel

LOCK = "/run/xtables.lock"
SCRIPT = """
set -e
iptables-legacy -t nat -N KUBE-SERVICES
iptables-legacy -t nat -A OUTPUT -j KUBE-SERVICES
mount -t tmpfs none /run
if [ -n "$2" ]; then touch "$2"; mount --bind "$2" "$2"; fi
mount -o remount,ro /run
"$1" -m pyproxy cleanup --takeover || exit 7
! iptables-legacy-save -t nat | grep KUBE
"""


def cleanup(lock: str) -> subprocess.CompletedProcess[str]:
    """Run the cleanup in namespaces of its own, with a read-only /run and the lock, if any."""
    if shutil.which("iptables-legacy") is None:
        pytest.skip("needs the command iptables-legacy")
    command = ["unshare", "--net", "--mount", "sh", "-c", SCRIPT, "sh", sys.executable, lock]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_mounted_lock_lets_cleanup_remove_legacy_rules() -> None:
    (daemonset,) = objects((DEPLOY / "cleanup" / "daemonset.yaml").read_text())
    (container,) = daemonset["spec"]["template"]["spec"]["initContainers"]
    paths = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
    assert paths == [LOCK]
    done = cleanup(LOCK)
    assert done.returncode == 0, done.stderr


def test_without_the_lock_the_failure_names_it() -> None:
    done = cleanup("")
    assert done.returncode == 7
    assert f"can't open lock file {LOCK}" in done.stderr
