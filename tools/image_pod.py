"""Run a container of the manifests on an unpacked image, with exactly the rights that it has there.

The rights are those that a kubelet asks its runtime for: capabilities, a read-only root, mounts,
the default seccomp profile, and the masked parts of /proc. The caller's network namespace is that
of the node. Facts: the OCI runtime specification 1.0.2.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Json = dict[str, Any]

# The profile of podman and CRI-O, from the package golang-github-containers-common.
SECCOMP = Path("/usr/share/containers/seccomp.json")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

# Files of /proc that containerd hides from unprivileged containers, and those that it protects.
_MASKED = ("acpi", "kcore", "keys", "latency_stats", "sched_debug", "scsi", "timer_list")
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_REFERENCE = re.compile(r"\$\((\w+)\)")


class Image(NamedTuple):
    """An unpacked image: its files, its environment, its labels and its command."""

    root: Path
    environment: dict[str, str]
    labels: dict[str, str]
    command: list[str]


class Host(NamedTuple):
    """The parts of a pod that are its node's.

    `folder` is for runc's bundles. `mounted` are folders and files by their paths in the container:
    a ConfigMap, what replaces a path of the node, and what the kubelet adds. `values` are
    environment variables, to which arguments may refer. `seccomp` is the runtime's profile.
    """

    folder: Path
    mounted: Mapping[str, Path]
    values: Mapping[str, str]
    seccomp: Path = SECCOMP


class Pod:
    """The container `name` of a DaemonSet; `further` arguments come after the manifest's."""

    def __init__(
        self, image: Image, manifest: Path, name: str, host: Host, further: Sequence[str] = ()
    ) -> None:
        template = next(
            each["spec"]["template"]["spec"]
            for each in yaml.safe_load_all(manifest.read_text())
            if each["kind"] == "DaemonSet"
        )
        container = next(
            each
            for each in (*template.get("initContainers", ()), *template["containers"])
            if each["name"] == name
        )
        self.name = f"image-check-{name}"
        self._bundle = host.folder / self.name
        self._bundle.mkdir()
        words = [*container.get("command", image.command[:1]), *container.get("args", ())]
        arguments = [_REFERENCE.sub(lambda found: host.values[found[1]], word) for word in words]
        variables = {**image.environment, **host.values}
        volumes = {each["name"]: each for each in template["volumes"]}
        mounts = [
            _mount(each["mountPath"], volumes[each["name"]], "ro" if each.get("readOnly") else "rw")
            for each in container.get("volumeMounts", ())
            if each["mountPath"] not in host.mounted
        ]
        mounts += [_bind(path, source, "rw") for path, source in host.mounted.items()]
        context = container["securityContext"]
        config = {
            "ociVersion": "1.0.2",
            "root": {
                "path": str(image.root),
                "readonly": context.get("readOnlyRootFilesystem", False),
            },
            "process": {
                "user": dict.fromkeys(("uid", "gid"), context.get("runAsUser", 0)),
                "args": [*arguments, *further],
                "env": [f"{key}={value}" for key, value in variables.items()],
                "cwd": "/",
            },
            **_rights(context, mounts, host.seccomp),
        }
        config["process"] |= config.pop("process_rights")
        (self._bundle / "config.json").write_text(json.dumps(config))

    def command(self) -> list[str]:
        """Return the command that runs it in the caller's network namespace, until it ends."""
        # `ip netns exec` hides the cgroups, which runc needs.
        outside = ["nsenter", f"--mount=/proc/{os.getpid()}/ns/mnt"]
        return [*outside, "runc", "run", "--bundle", str(self._bundle), self.name]

    def execute(self, *command: str) -> str:
        """Run a command in it, as `kubectl exec` does. Raises CalledProcessError."""
        words = ["runc", "exec", self.name, *command]
        return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def _mount(path: str, volume: Json, access: str) -> Json:
    if "emptyDir" in volume:
        return {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": ["nodev"]}
    return _bind(path, Path(volume["hostPath"]["path"]), access)


def _bind(path: str, source: Path, access: str) -> Json:
    return {"destination": path, "source": str(source), "options": ["rbind", access]}


def _rights(context: Json, mounts: Sequence[Json], profile: Path) -> Json:
    privileged = context.get("privileged", False)
    names = _own_capabilities() if privileged else context["capabilities"].get("add", ())
    capabilities = [f"CAP_{each.upper()}" for each in names]
    system = "rw" if privileged else "ro"
    linux: Json = {"namespaces": [{"type": each} for each in ("pid", "ipc", "uts", "mount")]}
    if not privileged:
        linux["maskedPaths"] = [f"/proc/{each}" for each in _MASKED]
        linux["readonlyPaths"] = [f"/proc/{each}" for each in _READ_ONLY]
        linux["seccomp"] = seccomp(json.loads(profile.read_text()), set(capabilities))
    return {
        "process_rights": {
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": not context.get("allowPrivilegeEscalation", True),
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [system]},
            *mounts,
        ],
        "linux": linux,
    }


def _own_capabilities() -> list[str]:
    """Return what this process may hand on: a container's root may not have every capability."""
    listed = subprocess.run(
        ["setpriv", "--list-caps"], check=True, capture_output=True, text=True
    ).stdout.split()
    status = Path("/proc/self/status").read_text()
    bounding = int(re.findall(r"^CapBnd:\s*(\w+)", status, re.MULTILINE)[0], 16)
    return [name for number, name in enumerate(listed) if bounding >> number & 1]


def seccomp(profile: Json, capabilities: set[str]) -> Json:
    """Return the rules of a runtime's profile for a container with these capabilities."""
    machine = _ARCHITECTURES.get(platform.machine(), platform.machine())
    rules = [
        {key: rule[key] for key in ("names", "action", "args", "errnoRet") if rule.get(key)}
        for rule in profile["syscalls"]
        if _applies(rule, capabilities, machine)
    ]
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "syscalls": rules,
    }


def _applies(rule: Json, capabilities: set[str], machine: str) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    return (
        set(includes.get("caps", ())) <= capabilities
        and machine in includes.get("arches", [machine])
        and not capabilities & set(excludes.get("caps", ()))
        and machine not in excludes.get("arches", ())
    )
