"""`python -m pyproxy_lab.conformance --mode nftables cases/`: run cases against an agent."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyproxy.errors import PyproxyError, UsageError
from pyproxy.interrupts import interrupted_by
from pyproxy_lab import modes
from pyproxy_lab.client import ApiClient
from pyproxy_lab.cluster import Cluster
from pyproxy_lab.conformance import cases, kube_proxy
from pyproxy_lab.conformance.cases import Case
from pyproxy_lab.conformance.kube_proxy import Release
from pyproxy_lab.conformance.packet_marker import PacketMarker
from pyproxy_lab.conformance.runner import Runner, await_agent
from pyproxy_lab.conformance.tracing import check_of
from pyproxy_lab.modes import LabMode
from pyproxy_lab.process import Agent
from pyproxy_lab.sync_barrier import Alive, SyncBarrier
from pyproxy_lab.up import state
from pyproxy_lab.up.joined import joined

NODE = "na"


def main(arguments: Sequence[str]) -> int:
    """Run the cases; 0 where all hold, 1 where one does not, 2 for a usage error."""
    options = _parser().parse_args(arguments)
    try:
        mode = modes.named(options.mode)
        chosen = [
            case
            for path in options.cases
            for case in cases.read(path)
            if options.only in case.name and mode.proxy_mode.value not in case.without
        ]
        if not chosen:
            raise UsageError("no case is left to run: check --only and --mode")
        return _run(chosen, mode, options)
    except UsageError as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2
    except PyproxyError as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(chosen: Sequence[Case], mode: LabMode, options: argparse.Namespace) -> int:
    able = _able(chosen, mode, options)
    with interrupted_by(signal.SIGTERM), _subject(mode, options) as (runner, agent):
        await_agent(runner, agent)
        failed = sum(not _report(runner, case) for case in able)
        agent.require_alive()
    left_out = f", {len(chosen) - len(able)} left out" if len(able) < len(chosen) else ""
    print(f"{len(able) - failed} passed, {failed} failed{left_out}")
    return 1 if failed else 0


@contextmanager
def _subject(mode: LabMode, options: argparse.Namespace) -> Iterator[tuple[Runner, Alive]]:
    """Run the network and the agent inside, or join those of a lab. Raises UsageError, LabError."""
    if options.lab:
        with joined(options.lab) as lab:
            if lab.mode.name != mode.name:
                raise UsageError(f"--mode {mode.name}: the lab runs in mode {lab.mode.name}")
            check = check_of(mode, lab.network, NODE) if options.trace else None
            if lab.has_own_agents:
                barrier = lab.barrier(NODE)
            else:
                barrier = SyncBarrier(lab.client, lab, PacketMarker(lab.network, NODE))
            runner = Runner(lab.client, lab.network, mode, options.settle, check, barrier)
            # The cases write the addresses, and not the lab's controller.
            runner.load_balancer_class = "pyproxy-lab/conformance"
            runner.rejects_by_icmp = not lab.has_own_agents
            yield runner, lab
        return
    api = ApiClient(options.api, options.token) if options.api else None
    with (
        Cluster(api=api, secure=bool(options.agent)) as cluster,
        _agent(cluster, mode, options) as agent,
    ):
        check = check_of(mode, cluster.network, NODE) if options.trace else None
        if options.agent:
            barrier = SyncBarrier(cluster.client, agent, PacketMarker(cluster.network, NODE))
        else:
            barrier = cluster.barrier(NODE, agent)
        runner = Runner(cluster.client, cluster.network, mode, options.settle, check, barrier)
        runner.rejects_by_icmp = bool(options.agent)
        yield runner, agent


def _able(chosen: Sequence[Case], mode: LabMode, options: argparse.Namespace) -> list[Case]:
    """Return the cases that lack no need, and print the others. Raises UsageError."""
    release = Release.parse(options.kube_proxy) if options.kube_proxy else None
    able = []
    for case in chosen:
        lacks = cases.lacking(case, one_proxy=not options.lab)
        if release and not lacks:
            lacks = kube_proxy.lacking(case.requires, release, mode.proxy_mode.value)
        if lacks:
            print(f"--   {case.name}: {lacks}")
        else:
            able.append(case)
    return able


def _report(runner: Runner, case: Case) -> bool:
    """Run one case and print its line, with what was wanted and seen where it does not hold."""
    start = time.monotonic()
    try:
        failures = runner.run(case)
    except PyproxyError as error:
        failures = (str(error),)
    word, seconds = ("FAIL" if failures else "ok  "), time.monotonic() - start
    print(f"{word} {case.name} ({seconds:.1f} s)", *failures, sep="\n       ", flush=True)
    return not failures


def _agent(cluster: Cluster, mode: LabMode, options: argparse.Namespace) -> Agent:
    """Prepare the agent; a command of the caller's own may name the kubeconfig as {kubeconfig}."""
    log: Path = options.log or cluster.folder / "agent.log"
    if not options.agent:
        return cluster.agent(NODE, mode, log)
    kubeconfig = str(cluster.secure_kubeconfig())
    command = [word.replace("{kubeconfig}", kubeconfig) for word in shlex.split(options.agent)]
    return Agent(cluster.network.namespace(NODE), command, log)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m pyproxy_lab.conformance", description=__doc__)
    parser.add_argument("cases", nargs="+", type=Path, help="case files, or folders of them")
    parser.add_argument(
        "--mode", default="nftables", help=f"the proxy mode under test: {', '.join(modes.MODES)}"
    )
    parser.add_argument("--only", default="", help="run the cases with this in their name")
    parser.add_argument(
        "--trace",
        action="store_true",
        help="compare pyproxy's packet tracer with each probe, too",
    )
    parser.add_argument(
        "--agent",
        metavar="COMMAND",
        help="command of another agent to test; {kubeconfig} stands for the file's path",
    )
    parser.add_argument(
        "--lab",
        nargs="?",
        type=Path,
        const=state.DEFAULT,
        metavar="FOLDER",
        help=f"test the proxies of the lab that `pyproxy lab up` runs (default {state.DEFAULT})",
    )
    parser.add_argument(
        "--kube-proxy",
        metavar="RELEASE",
        help="leave out the cases that kube-proxy of this release, such as 1.30, cannot hold",
    )
    parser.add_argument("--api", metavar="URL", help="use this API server instead of the lab's own")
    parser.add_argument("--token", default="", help="the bearer token for --api")
    parser.add_argument(
        "--settle", type=float, default=8.0, help="seconds in which a probe must hold"
    )
    parser.add_argument("--log", type=Path, help="write the agent's log to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
