"""Arguments that the commands share, and the connection to the API server that they select."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import msgspec

from pyproxy.commands.arguments import parse_seconds
from pyproxy.errors import UsageError
from pyproxy.source.client import Client
from pyproxy.source.connect import connect_as_kubectl

SELECTORS = ("app.kubernetes.io/name=pyproxy", "k8s-app=kube-proxy")
"""The labels of the pods of deploy/, and of a kubeadm DaemonSet whose image is replaced."""

_PARALLEL = 64
_MOST_PARALLEL = 512


class Options(msgspec.Struct, frozen=True):
    """The pods to ask: by namespace, label selectors and names of nodes, which may be empty.

    At most `parallel` are asked at the same time, each for `timeout` seconds. If `adapts`, a node
    that takes much longer than the others is given up before.
    """

    namespace: str
    selectors: Sequence[str]
    nodes: Sequence[str]
    timeout: float
    parallel: int
    adapts: bool = True


def add_options(
    parser: argparse.ArgumentParser, *, one_node: bool = False, timeout: float = 10.0
) -> None:
    """Declare the arguments; `one_node` makes --node a single and required one."""
    group = parser.add_argument_group("cluster")
    add = group.add_argument
    add("--kubeconfig", default="", metavar="FILE", help="kubeconfig (default as in kubectl)")
    add("--context", default="", metavar="NAME", help="context of the kubeconfig")
    add(
        "-n",
        "--namespace",
        dest="agent_namespace",
        default="kube-system",
        metavar="NAMESPACE",
        help="namespace of the agents' DaemonSet (default kube-system)",
    )
    add(
        "-l",
        "--selector",
        default="",
        metavar="LABELS",
        help=f"label selector of the agents' pods (default {' or '.join(SELECTORS)})",
    )
    if one_node:
        add("--node", required=True, metavar="NODE", help="node to ask")
        return
    add("--node", action="append", metavar="NODE", help="ask this node only; may be repeated")
    add(
        "--timeout",
        type=parse_seconds("--timeout"),
        metavar="SECONDS",
        help=f"longest wait for one node (default {timeout:g}, less if others respond much faster)",
    )
    parser.set_defaults(default_timeout=timeout)
    add(
        "--parallel",
        type=_parse_parallel,
        default=_PARALLEL,
        metavar="N",
        help=f"nodes that are asked at the same time, 1 to {_MOST_PARALLEL} (default {_PARALLEL}); "
        "those that take more than a second do not count",
    )


def options(namespace: argparse.Namespace, most_parallel: int = _MOST_PARALLEL) -> Options:
    """Return the options of parsed arguments."""
    nodes = namespace.node if isinstance(namespace.node, list) else [namespace.node]
    return Options(
        namespace.agent_namespace,
        (namespace.selector,) if namespace.selector else SELECTORS,
        tuple(dict.fromkeys(each for each in nodes if each)),
        namespace.timeout or namespace.default_timeout,
        min(namespace.parallel, most_parallel),
        namespace.timeout is None,
    )


def connect(namespace: argparse.Namespace) -> Client:
    """Make the client of the selected kubeconfig. Raises UsageError."""
    return connect_as_kubectl(namespace.kubeconfig, namespace.context, os.environ)


def _parse_parallel(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _MOST_PARALLEL):
        raise UsageError(f"--parallel: {text!r} is not a number from 1 to {_MOST_PARALLEL}")
    return int(text)
