"""iptables' programs: which flavour is detected, and what failures mean."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.errors import TransientKernelError, UsageError
from pyproxy.model.address import Family
from pyproxy.model.flavour import Flavour
from pyproxy.xtables.programs import Programs, RestoreError, detect_flavour

pytestmark = pytest.mark.kernel


def run(namespace: Namespace, *command: str) -> None:
    namespace.call(lambda: subprocess.run(command, text=True, check=True))


@pytest.mark.parametrize("chain", ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"])
def test_the_flavour_is_the_one_with_kubelets_chains(
    namespace: Namespace, flavour: Flavour, chain: str
) -> None:
    others = {Flavour.LEGACY: Flavour.NFT, Flavour.NFT: Flavour.LEGACY}
    run(namespace, f"iptables-{flavour.value}", "--wait", "-t", "mangle", "-N", chain)
    run(namespace, f"iptables-{others[flavour].value}", "--wait", "-A", "INPUT", "-j", "ACCEPT")
    assert namespace.call(detect_flavour) is flavour


def test_without_kubelets_chains_the_flavour_is_the_one_with_more_rules(
    namespace: Namespace, flavour: Flavour
) -> None:
    assert namespace.call(detect_flavour) is Flavour.NFT
    run(namespace, f"iptables-{flavour.value}", "--wait", "-A", "INPUT", "-j", "ACCEPT")
    assert namespace.call(detect_flavour) is flavour


def test_a_rejected_line_is_named(namespace: Namespace, flavour: Flavour) -> None:
    programs = Programs(Family.IPV4, flavour)
    lines = ["*nat", "-A PREROUTING -d fd98::1 -j ACCEPT", "COMMIT"]
    with pytest.raises(RestoreError, match="fd98::1") as raised:
        namespace.call(lambda: programs.restore(lines))
    assert list(raised.value.faults) == [lines[1]]


def test_a_comment_that_is_not_utf8_is_read_and_written_back(
    namespace: Namespace, flavour: Flavour
) -> None:
    rule = b"-A PREROUTING -m comment --comment caf\xe9 -j ACCEPT"
    restore = [f"iptables-{flavour.value}-restore", "--wait"]
    text = b"*nat\n" + rule + b"\nCOMMIT\n"
    namespace.call(lambda: subprocess.run(restore, input=text, check=True))
    programs = Programs(Family.IPV4, flavour)
    (saved,) = namespace.call(programs.save)["nat"].chains["PREROUTING"]
    assert b"caf\xe9" in saved.encode("utf-8", "surrogateescape")
    lines = ["*nat", "-F PREROUTING", f"-A PREROUTING {saved}", "COMMIT"]
    namespace.call(lambda: programs.restore(lines))
    assert namespace.call(programs.save)["nat"].chains["PREROUTING"] == [saved]
    assert namespace.call(detect_flavour) is flavour


@pytest.mark.parametrize("end", ["\u2028", "\u0085", "\x0b", "\x0c", "\r"])
def test_a_comment_with_another_end_of_line_is_read_and_written_back(
    namespace: Namespace, flavour: Flavour, end: str
) -> None:
    rule = f'-m comment --comment "a{end}-A INPUT -j KUBE-SERVICES" -j RETURN'
    programs = Programs(Family.IPV4, flavour)
    texts = [rule, "-j RETURN"]
    for _ in range(2):
        rules = [f"-A PREROUTING {text}" for text in texts]
        lines = ["*nat", "-F PREROUTING", *rules, "COMMIT"]
        namespace.call(partial(programs.restore, lines))
        texts = namespace.call(programs.save)["nat"].chains["PREROUTING"]
        assert texts == [rule, "-j RETURN"]


def test_a_program_that_is_not_installed_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    programs = Programs(Family.IPV6, flavour)
    assert not programs.is_installed()
    with pytest.raises(UsageError, match=f"ip6tables-{flavour.value}-save is not on PATH"):
        programs.save()
    with pytest.raises(UsageError, match="install the package iptables"):
        programs.require()


@pytest.mark.parametrize(("family", "prefix"), [(Family.IPV4, "ipt"), (Family.IPV6, "ip6t")])
def test_modules_that_the_kernel_cannot_load_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Family, prefix: str
) -> None:
    programs = Programs(family, Flavour.NFT)
    script = tmp_path / f"{programs}-restore"
    # iptables 1.8.9 writes this on Linux 5.10 without modprobe.
    script.write_text(
        "#!/bin/sh\nexec >&2\n"
        "echo 'Warning: Extension conntrack revision 0 not supported, missing kernel module?'\n"
        "echo 'Warning: Extension comment revision 0 not supported, missing kernel module?'\n"
        "echo 'line 2: RULE_APPEND failed (No such file or directory): rule in chain INPUT'\n"
        "exit 1\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    wanted = f"cannot load {prefix}_comment, {prefix}_conntrack: load them on the node"
    with pytest.raises(RestoreError, match=wanted) as raised:
        programs.restore(["*filter", "-A INPUT -m comment --comment x", "COMMIT"])
    (line,) = raised.value.faults
    assert wanted in str(raised.value.of(line))


def test_all_lines_that_the_kernel_rejects_are_named(namespace: Namespace) -> None:
    programs = Programs(Family.IPV4, Flavour.NFT)
    bad = [f"-A INPUT -s 192.0.2.{each} -m nfacct --nfacct-name none -j DROP" for each in (1, 2, 3)]
    lines = ["*filter", bad[0], "-A INPUT -j DROP", *bad[1:], "COMMIT"]
    with pytest.raises(RestoreError) as raised:
        namespace.call(lambda: programs.restore(lines))
    assert list(raised.value.faults) == bad
    for line in bad:
        assert str(raised.value.of(line)).endswith(line)


@pytest.mark.parametrize(
    ("message", "status", "kind"),
    [
        ("line 2: RULE_APPEND failed (Cannot allocate memory): rule in chain INPUT", 4, None),
        ("line 2: CHAIN_DEL failed (Device or resource busy): chain KUBE-X", 4, None),
        ("line 3: COMMIT failed (No buffer space available): table filter", 4, None),
        ("line 3: COMMIT failed (Resource temporarily unavailable): table filter", 4, None),
        ("line 3: COMMIT failed (Interrupted system call): table filter", 4, None),
        ("iptables-restore: line 3 failed: Memory allocation problem.", 1, None),
        ("Another app is currently holding the xtables lock.", 4, None),
        ("line 2: RULE_APPEND failed (No such file or directory): rule in chain INPUT", 4, 2),
        ("line 2: RULE_APPEND failed (Invalid argument): rule in chain INPUT", 4, 2),
        ("iptables-restore: line 3 failed: Invalid argument.", 1, 3),
        ("iptables-restore: line 3 failed", 1, 3),
        ("Error occurred at line: 2", 2, 2),
    ],
)
def test_errors_that_pass_reject_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, status: int, kind: int | None
) -> None:
    programs = Programs(Family.IPV4, Flavour.NFT)
    script = tmp_path / f"{programs}-restore"
    script.write_text(f"#!/bin/sh\necho '{message}' >&2\nexit {status}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    lines = ["*filter", "-A INPUT -j ACCEPT", "COMMIT"]
    if kind is None:
        with pytest.raises(TransientKernelError):
            programs.restore(lines)
    else:
        with pytest.raises(RestoreError) as raised:
            programs.restore(lines)
        assert list(raised.value.faults) == [lines[kind - 1]]
