"""Whom a command asks: the agent on this node, or nobody but API and kernel."""

from __future__ import annotations

import argparse
import sys

from pyproxy.config import command_line
from pyproxy.config.settings import Settings
from pyproxy.inspect.client import Client
from pyproxy.inspect.endpoint import Endpoint, Q, R


class Asker:
    """Answers to questions, wherever they come from."""

    def __init__(self, namespace: argparse.Namespace) -> None:
        self.settings: Settings = command_line.settings(namespace)
        self._client = Client(self.settings.inspect_socket)

    def ask(self, endpoint: Endpoint[Q, R], question: Q) -> R:
        """Ask one question. Raises PyproxyError."""
        return self._client.ask(endpoint, question)


def remark(text: str) -> None:
    """Tell a person something beside the answer."""
    print(f"pyproxy: {text}", file=sys.stderr)
