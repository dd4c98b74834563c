"""Taking over: once pyproxy serves, what served before it is removed.

That is what kube-proxy has left, where it is asked for, and what pyproxy itself has left in another
mode. The first commit has all Services, so from then on every packet is served without those rules.
They must go at once all the same: where they are first to see a connection they send it where an
endpoint used to be.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from pyproxy.agent import mode_cleanup
from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.core import Commit
from pyproxy.dataplane import modes
from pyproxy.dataplane.interface import Dataplane
from pyproxy.errors import KernelError, PermissionKernelError
from pyproxy.metrics import Metrics
from pyproxy.takeover.leftovers import InService, Leftovers
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

_PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds before each attempt: what fails for longer is for a person to look at."""


class Takeover:
    """A follower that removes leftovers after the first commit, in its own thread.

    Those of kube-proxy are left alone where they are not `asked_for`.
    """

    def __init__(self, metrics: Metrics, dataplane: Dataplane[Any], *, asked_for: bool) -> None:
        self._metrics = metrics
        self._dataplane = dataplane
        self._asked_for = asked_for
        self._begun = False

    def committed(self, commit: Commit, cluster_state: ClusterState) -> None:  # noqa: ARG002
        """Begin the removal once all Services are in the kernel."""
        if commit.full and not self._begun:
            self._begun = True
            # Every table is taken out as a whole, so the process may end at any moment of it.
            Worker("takeover", self._run).start()

    def _run(self) -> None:
        for pause in _PAUSES:
            time.sleep(pause)
            clean = remove_own(self._dataplane)
            if self._asked_for:
                clean &= remove_leftovers(_in_service(self._dataplane))
            if clean:
                return
            self._metrics.cleanup_failed()
        log.error(
            "giving up on what was left here: `pyproxy cleanup --takeover` while no agent runs, or "
            "`kube-proxy --cleanup`, may remove it"
        )


def _in_service(dataplane: Dataplane[Any]) -> InService:
    mode = next(mode for mode in modes.MODES.values() if mode.name == dataplane.name)
    return mode.in_service(dataplane)


def remove_own(serving: Dataplane[Any]) -> bool:
    """Remove and log our objects that do not serve; return whether another try would be no use."""
    done = mode_cleanup.remove(serving)
    for error in done.failed:
        log.warning("cannot remove what another mode may have left: %s", error)
    if done.removed:
        log.info("removed what another mode has left: %s", "; ".join(done.removed))
    return all(isinstance(error, PermissionKernelError) for error in done.failed)


def remove_leftovers(stays: InService) -> bool:
    """Remove what there is of kube-proxy's, and log it; whether nothing of it is left."""
    # Where nobody asks for it, its libraries are spared.
    from pyproxy.takeover import kernel  # noqa: PLC0415

    try:
        found = kernel.find(stays)
        for line in found.lines():
            log.debug("kube-proxy has left %s", line)
        failures = kernel.remove(found)
    except KernelError as error:
        log.warning("cannot look for what kube-proxy has left: %s", error)
        return False
    for failure in found.unread:
        log.warning("cannot look for what kube-proxy has left: %s: %s", failure.what, failure.error)
    for failure in failures:
        log.warning("cannot remove what kube-proxy has left: %s: %s", failure.what, failure.error)
    if found:
        share = "the rest of " if failures else ""
        log.info("removed %swhat kube-proxy has left: %s", share, found)
    elif not found.unread:
        log.info("kube-proxy has left nothing in the kernel")
    _warn_of_closed_chains(found)
    return not (failures or found.unread)


def _warn_of_closed_chains(found: Leftovers) -> None:
    for each in found.iptables:
        for chain in each.removal.closed:
            log.warning(
                "%s: chain %s drops by policy, and kube-proxy's rules no longer let connections "
                "to Services and pods through it: accept them in a rule of your own",
                each,
                chain,
            )
