"""`pyproxy lab up`, `lab down` and `lab env`: flags, life cycle and output."""

from __future__ import annotations

import argparse
import os
import select
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pyproxy.errors import UsageError
from pyproxy_lab import leftovers, modes
from pyproxy_lab.namespace import LabError, require_root
from pyproxy_lab.owner import Owner
from pyproxy_lab.up import state
from pyproxy_lab.up.options import MOST_NODES, Options, check, proxy_command
from pyproxy_lab.up.state import LockedError, StateFolder

if TYPE_CHECKING:
    from pyproxy_lab.up.lab import Lab

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TERMINATION = 30.0
"""Seconds that `lab down` waits for the lab's own end before it kills the lab."""

_TO_TRY = (
    "kubectl create deployment hello --image=hello:1 --replicas=3 --port=80 && "
    "kubectl expose deployment hello",
    "kubectl run client --image=curl -it --rm --restart=Never -- curl -s hello",
    "kubectl -n kube-system exec pyproxy-na -- pyproxy explain default/hello",
)
"""Commands for a person; the last one is for pyproxy alone."""

_PATIENCE = 60.0
_POLL = 0.05
_CHECK_PERIOD = 1.0


def add_up_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `pyproxy lab up`."""
    add = parser.add_argument
    add(
        "--mode",
        choices=tuple(modes.MODES),
        default=modes.NFTABLES.name,
        help="the proxy mode (default nftables)",
    )
    add("--nodes", type=int, default=2, help=f"nodes, 1 to {MOST_NODES} (default 2)")
    add("--dual-stack", action="store_true", help="use IPv6 beside IPv4")
    add(
        "--proxy",
        metavar="COMMAND",
        help="run this program, which takes kube-proxy's flags, instead of pyproxy on each node",
    )
    add("--page", action="store_true", help="print the URL of each node's page")
    _add_state(parser)


def add_down_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `pyproxy lab down`."""
    _add_state(parser)


add_env_arguments = add_down_arguments


def up(arguments: argparse.Namespace) -> int:
    """Run a lab until a signal ends it, and remove it.

    Returns 0 after `lab down` or Ctrl-C once the lab was ready. Raises UsageError, LabError.
    """
    began = time.monotonic()
    require_root()
    options = _options(arguments)
    state.remove_unfinished(options.folder)
    with _interruptible(), StateFolder(options.folder) as folder:
        _remove_leftovers(folder)
        try:
            # A signal that has come meanwhile is delivered here.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)
            folder.write_record(state.own_record(options))
            _mark_programs(options.folder)
            _run(options, began)
        finally:
            _uninterruptible()
            leftovers.remove(Owner.this_process())
            folder.remove()
    return 0


def down(arguments: argparse.Namespace) -> int:
    """End the lab, and remove what a killed one has left. Raises UsageError, LabError."""
    require_root()
    path: Path = arguments.state.absolute()
    deadline = time.monotonic() + _PATIENCE
    removed = state.remove_unfinished(path)
    while path.exists():
        removed = removed or state.record(path) is not None
        try:
            with StateFolder(path) as folder:
                _remove_leftovers(folder)
                folder.remove()
            break
        except LockedError:
            if time.monotonic() > deadline:
                raise LabError(f"the lab in {path} has not ended in {_PATIENCE:.0f} s") from None
            _end(path)
    print("the lab is removed" if removed else "no lab is up")
    return 0


def env(arguments: argparse.Namespace) -> int:
    """Print the shell's commands that set KUBECONFIG. Raises UsageError without a lab."""
    path = state.kubeconfig(arguments.state)
    found = state.record(arguments.state)
    if found is None or not found.owner.is_alive or not path.exists():
        raise UsageError("no lab is up: start one with `sudo pyproxy lab up`")
    print(f"export KUBECONFIG={shlex.quote(str(path))}")
    return 0


def _add_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state",
        type=Path,
        default=state.DEFAULT,
        metavar="FOLDER",
        help=f"folder of the lab's lock and kubeconfig (default {state.DEFAULT})",
    )


def _options(arguments: argparse.Namespace) -> Options:
    mode = modes.named(arguments.mode)
    options = Options(
        folder=arguments.state.absolute(),
        mode=mode,
        nodes=arguments.nodes,
        dual_stack=arguments.dual_stack,
        proxy=proxy_command(arguments.proxy, mode) if arguments.proxy is not None else (),
        page=arguments.page,
    )
    check(options)
    return options


def _run(options: Options, began: float) -> None:
    # The command `lab env` and error messages need no aiohttp.
    from pyproxy_lab.up import lab  # noqa: PLC0415

    with lab.running(options) as running:
        try:
            _announce(options, running, time.monotonic() - began)
            while True:
                time.sleep(_CHECK_PERIOD)
                running.maintain()
        except KeyboardInterrupt:
            print("removing the lab", flush=True)


def _announce(options: Options, running: Lab, seconds: float) -> None:
    names = ", ".join(site.node for site in options.topology.sites)
    what = shlex.join(options.proxy) if options.proxy else f"pyproxy in {options.mode.name} mode"
    state_flag = "" if options.folder == state.DEFAULT else f" --state {options.folder}"
    program = _program()
    lines = [f"ready after {seconds:.1f} s: {names}, each with {what}"]
    lines += [f"page of {node}: {url}" for node, url in running.pages.items()]
    lines += [
        "",
        "In another terminal:",
        "",
        f'    eval "$({program} lab env{state_flag})"',
        *(f"    {each}" for each in _TO_TRY[: 2 if options.proxy else 3]),
        "",
        "docs/learn.md of pyproxy's repository is a tutorial for it, in ten steps.",
        f"Ctrl-C or `sudo {program} lab down{state_flag}` removes it all.",
    ]
    if shutil.which("kubectl") is None:
        lines.append("kubectl is not installed: Debian has it as kubernetes-client.")
    print("\n".join(lines), flush=True)


def _mark_programs(folder: Path) -> None:
    """Let all programs be found after SIGKILL, and temporary files be made in the lab's folder."""
    os.environ[leftovers.MARKER] = str(Owner.this_process())
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def _program() -> str:
    """Return how a shell finds this program."""
    path = Path(sys.argv[0])
    if path.name != "pyproxy":
        return shlex.join([sys.executable, "-m", "pyproxy"])
    return path.name if shutil.which(path.name) == str(path) else shlex.quote(str(path))


def _remove_leftovers(folder: StateFolder) -> None:
    """Remove what a lab left in this folder and outside of it when it was killed."""
    found = state.record(folder.path)
    if found is None:
        return
    if found.owner.pid and found.owner != Owner.this_process():
        leftovers.remove(found.owner)
    folder.empty()


def _end(path: Path) -> None:
    """End the process of a lab with SIGTERM, later with SIGKILL; wait a little without one."""
    found = state.record(path)
    try:
        handle = os.pidfd_open(found.owner.pid if found and found.owner.pid else -1)
    except OSError:
        # The lab has just been started, or another process is removing it.
        time.sleep(_POLL)
        return
    try:
        if found is None or not found.owner.is_alive:
            return
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        if not ended.poll(_TERMINATION * 1000):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            ended.poll(_TERMINATION * 1000)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt for the first signal that asks the lab to end.

    The signals are blocked until the caller can be interrupted.
    """

    def interrupt(*_: object) -> None:
        _uninterruptible()
        raise KeyboardInterrupt

    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
    before = {number: signal.signal(number, interrupt) for number in _ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _uninterruptible() -> None:
    """Ignore these signals from now on: the removal is bounded, and must be complete."""
    for number in _ENDINGS:
        signal.signal(number, signal.SIG_IGN)
