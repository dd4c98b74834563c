"""Takeover: the rules of earlier proxies are removed once pyproxy serves.

Those are the rules of pyproxy's own other modes, and with `--takeover` those of kube-proxy. The
first commit has all Services, so that no packet needs the old rules afterwards. They are removed at
once, because they would send connections to endpoints that may be gone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from pyproxy.agent import mode_cleanup
from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.commit import Commit
from pyproxy.dataplane import modes
from pyproxy.dataplane.interface import Dataplane
from pyproxy.errors import KernelError, PermissionKernelError
from pyproxy.metrics.syncs import SyncMetrics
from pyproxy.takeover.leftovers import InService, Leftovers
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

_PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds before each attempt. After the last one a log line asks a person to act."""


class Takeover:
    """A listener that removes leftovers after the first full commit, in a thread of its own.

    `of_kube_proxy` says whether it removes those of kube-proxy too. `when_clean` is called in that
    thread once all are removed.
    """

    def __init__(
        self,
        metrics: SyncMetrics,
        dataplane: Dataplane[Any],
        when_clean: Callable[[], None],
        *,
        of_kube_proxy: bool,
    ) -> None:
        self._metrics = metrics
        self._dataplane = dataplane
        self._of_kube_proxy = of_kube_proxy
        self._when_clean = when_clean
        self._started = False

    def committed(self, commit: Commit, cluster_state: ClusterState) -> None:  # noqa: ARG002
        """Start the removal once all Services are in the kernel. Does not block."""
        if commit.full and not self._started:
            self._started = True
            # A daemon thread may end with the process at any moment, because each table is removed
            # in one transaction.
            Worker("takeover", self._run).start()

    def _run(self) -> None:
        for pause in _PAUSES:
            time.sleep(pause)
            clean = remove_own(self._dataplane)
            if self._of_kube_proxy:
                clean &= remove_leftovers(_in_service(self._dataplane))
            if clean:
                self._when_clean()
                return
            self._metrics.cleanup_failed()
        log.error(
            "cannot remove all leftovers, giving up: stop the agent and run `pyproxy cleanup "
            "--takeover`, or run `kube-proxy --cleanup`"
        )


def _in_service(dataplane: Dataplane[Any]) -> InService:
    mode = next(mode for mode in modes.MODES.values() if mode.name == dataplane.name)
    return mode.in_service(dataplane)


def remove_own(serving: Dataplane[Any]) -> bool:
    """Remove and log our objects that do not serve; return False if a retry may remove more."""
    done = mode_cleanup.remove(serving)
    for error in done.failed:
        log.warning("cannot remove leftovers of another mode: %s", error)
    if done.removed:
        log.info("removed leftovers of another mode: %s", "; ".join(done.removed))
    # A capability that is missing now is missing at each retry.
    return all(isinstance(error, PermissionKernelError) for error in done.failed)


def remove_leftovers(stays: InService) -> bool:
    """Remove and log kube-proxy's objects except `stays`; return whether all were removed."""
    # Imports pyroute2, which an agent without leftovers does without.
    from pyproxy.takeover import kernel  # noqa: PLC0415

    try:
        found = kernel.find(stays)
        for line in found.lines():
            log.debug("leftover of kube-proxy: %s", line)
        failures = kernel.remove(found)
    except KernelError as error:
        log.warning("cannot search for leftovers of kube-proxy: %s", error)
        return False
    for failure in found.unread:
        log.warning(
            "cannot search for leftovers of kube-proxy: %s: %s", failure.what, failure.error
        )
    for failure in failures:
        log.warning("cannot remove leftovers of kube-proxy: %s: %s", failure.what, failure.error)
    if removed := found.without(failures):
        share = "the other " if failures else ""
        log.info("removed %sleftovers of kube-proxy: %s", share, removed)
    elif not (found or found.unread):
        log.info("no leftovers of kube-proxy in the kernel")
    _warn_of_closed_chains(found)
    return not (failures or found.unread)


def _warn_of_closed_chains(found: Leftovers) -> None:
    # A jump to kube-proxy's chains, such as KUBE-FORWARD, accepted these connections before the
    # policy applied. Docker, for example, sets the policy of FORWARD to DROP.
    for each in found.iptables:
        for chain in each.removal.closed:
            log.warning(
                "%s: chain %s drops by policy, and kube-proxy's rules no longer let connections "
                "to Services and pods through it: accept them in a rule of your own",
                each,
                chain,
            )
