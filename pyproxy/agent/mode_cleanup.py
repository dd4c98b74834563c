"""What pyproxy itself has left in the kernel in other modes than the one that serves.

Whoever changes the mode has the rules of both for a moment, which serve the same Services. The old
ones go right after the first commit, for they would go on sending connections where an endpoint
used to be. What removes them is imported where there are any.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import msgspec

from pyproxy.dataplane.ipvs.schema import DEVICE
from pyproxy.dataplane.ipvs.schema import TABLE as IPVS_TABLE
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.errors import KernelError, PyproxyError, StaleStateError, UsageError
from pyproxy.netlink.nfnetlink import NFPROTO_INET, Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM, delete_table, get_tables, read_table_names
from pyproxy.takeover.leftovers import InService
from pyproxy.takeover.tools import find_own_rules


class Done(msgspec.Struct, frozen=True):
    """What has been removed, and why the rest has not."""

    removed: tuple[str, ...]
    failed: tuple[PyproxyError, ...]


def remove(stays: InService) -> Done:
    """Remove what is ours and does not serve; what cannot be removed hides nothing else."""
    removed: list[str] = []
    failed: list[PyproxyError] = []
    for step in (_remove_table, _remove_rules, _remove_ipvs):
        try:
            removed += step(stays)
        except (KernelError, UsageError) as error:
            failed.append(error)
    return Done(tuple(removed), tuple(failed))


def _remove_table(stays: InService) -> Iterator[str]:
    if stays.nftables or not _is_there(TABLE):
        return
    netlink = Nfnetlink()
    try:
        for refusal in netlink.transact([delete_table(TABLE)], SUBSYSTEM):
            if not isinstance(refusal.error, StaleStateError):
                raise refusal.error
    finally:
        netlink.close()
    yield f"nftables table inet {TABLE}"


def _remove_ipvs(stays: InService) -> Iterator[str]:
    # Where there is no table there never was this mode, and nobody should load IPVS to find out.
    if stays.ipvs or not _is_there(IPVS_TABLE):
        return
    from pyproxy.dataplane.ipvs.dataplane import IpvsDataplane  # noqa: PLC0415
    from pyproxy.dataplane.ipvs.ruleset import Options  # noqa: PLC0415

    with closing(IpvsDataplane(Options())) as dataplane:
        dataplane.cleanup()
    yield f"virtual services, network device {DEVICE}, and nftables table inet {IPVS_TABLE}"


def _is_there(table: str) -> bool:
    netlink = Nfnetlink()
    try:
        return table in read_table_names(netlink.dump(get_tables(NFPROTO_INET)))
    finally:
        netlink.close()


def _remove_rules(stays: InService) -> Iterator[str]:
    found = find_own_rules(stays)
    failures = found.unread
    if found:
        from pyproxy.takeover import kernel  # noqa: PLC0415

        failures += kernel.remove(found)
    for failure in failures:
        raise failure.error
    if found:
        yield str(found)
