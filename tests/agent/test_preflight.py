"""Which modes a machine can serve in, on machines made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyproxy.agent.preflight import Preflight

TOOLS = {"nft", "iptables-restore"}
SILENT = "cannot read nf_tables: EOPNOTSUPP"


@pytest.mark.parametrize(
    ("tools", "files", "nf_tables", "expected"),
    [
        (
            TOOLS,
            {"proc/net/ip_tables_names": "", "proc/net/ip_vs": ""},
            "",
            "nftables: yes; iptables: yes; ipvs: yes",
        ),
        (
            TOOLS,
            {
                "proc/sys/kernel/osrelease": "6.1\n",
                "lib/modules/6.1/modules.dep": "kernel/net/netfilter/ipvs/ip_vs.ko.xz:\n",
                "lib/modules/6.1/modules.builtin": "kernel/net/ipv4/netfilter/ip_tables.ko\n",
            },
            SILENT,
            f"nftables: no, {SILENT}; iptables: yes; ipvs: no, {SILENT}",
        ),
        (
            {"iptables-restore"},
            {},
            "",
            "nftables: no, nft is not on PATH (package nftables); "
            "iptables: yes; "
            "ipvs: no, nft is not on PATH (package nftables), the kernel has no ip_vs",
        ),
        (
            TOOLS,
            {},
            SILENT,
            f"nftables: no, {SILENT}; iptables: no, the kernel has no ip_tables, and {SILENT}; "
            f"ipvs: no, the kernel has no ip_vs, {SILENT}",
        ),
    ],
)
def test_verdicts(
    tmp_path: Path, tools: set[str], files: dict[str, str], nf_tables: str, expected: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    preflight = Preflight(tmp_path, lambda tool: tool if tool in tools else None, lambda: nf_tables)
    assert str(preflight) == expected


@pytest.mark.kernel
def test_this_machine_has_nftables() -> None:
    assert str(Preflight()).startswith("nftables: yes; ")
