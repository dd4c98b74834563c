"""Ask one agent: run a command in its pod, and read its output up to a limit.

The output is that of a node, which may be compromised: it is bounded, and its text is not printed
before `printable` or `pyproxy.commands.output.text` has replaced control characters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import msgspec

from pyproxy.errors import SourceError, one_line
from pyproxy.kubectl.agents import Agent
from pyproxy.kubectl.rights import missing_right
from pyproxy.source.client import ApiStatusError, Client
from pyproxy.source.pod_exec import STDOUT, PodExec
from pyproxy.source.websocket import Deadline

SMALL = 8 << 20
"""Bytes of an answer about one agent or Service."""

LARGE = 64 << 20
"""Bytes of an answer with all Services; 10,000 with 10 endpoints each have about 15 MB."""

_ONLY_AGENT = "--require-agent"
_LARGEST_ERRORS = 64 << 10
_LONGEST_TEXT = 300
_NO_PROGRAM = ("executable file not found", "no such file or directory")

T = TypeVar("T")


class Answer(msgspec.Struct, frozen=True):
    """The output of a command on one node.

    `failure` is empty if the command ran to its end, else the reason in one line.
    """

    node: str
    output: bytes = b""
    errors: bytes = b""
    status: int = 0
    failure: str = ""


class Question(msgspec.Struct, frozen=True):
    """A command for all agents: its words, the limit of its output, its statuses with output."""

    words: Sequence[str]
    limit: int = SMALL
    statuses: Collection[int] = (0,)

    @property
    def command(self) -> tuple[str, ...]:
        """The command in the agent's pod."""
        return ("pyproxy", *self.words, _ONLY_AGENT, "-o", "json")


def ask(client: Client, agent: Agent, question: Question, deadline: Deadline) -> Answer:
    """Run a command in the pod of an agent; blocks until the deadline at most.

    A failure is part of the answer. Raises UsageError if the user may not run commands in pods.
    """
    if agent.container is None:
        return Answer(agent.node, failure=agent.problem)
    output, errors = bytearray(), bytearray()
    try:
        with PodExec(client, agent.container, question.command, deadline) as running:
            for channel, data in running.output():
                if channel == STDOUT:
                    output += data
                    if len(output) > question.limit:
                        limit = f"{question.limit >> 20} MiB"
                        return Answer(agent.node, failure=f"its answer is larger than {limit}")
                elif len(errors) < _LARGEST_ERRORS:
                    errors += data
            status = running.exit_status()
    except SourceError as error:
        if isinstance(error, ApiStatusError) and (denied := missing_right(error)):
            raise denied from None
        return Answer(agent.node, failure=_failure(agent, str(error)))
    return Answer(agent.node, bytes(output), bytes(errors), status)


def read(answer: Answer, question: Question, decode: Callable[[bytes], T]) -> T | str:
    """Return the decoded output, or why there is none, as one line."""
    if answer.failure:
        return answer.failure
    if answer.status not in question.statuses:
        line = _last_line(answer.errors)
        if _ONLY_AGENT in line:
            return f"its pyproxy is older than this plugin, and has no {_ONLY_AGENT}"
        return line or f"its command ended with status {answer.status}"
    try:
        return decode(answer.output)
    # ValueError covers invalid UTF-8 and numbers with more digits than Python parses.
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        return one_line(f"its answer is not understood: {error}", _LONGEST_TEXT)


def decoder(kind: type[T]) -> Callable[[bytes], T]:
    """Return a decoder of JSON that replaces invalid UTF-8 and ignores unknown fields."""
    inner = msgspec.json.Decoder(kind)
    return lambda data: inner.decode(data.decode(errors="replace"))


def printable(text: str) -> str:
    """Return a text with control characters replaced, line breaks and tabs aside."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for each in text
    )


def _failure(agent: Agent, text: str) -> str:
    if any(each in text for each in _NO_PROGRAM):
        return one_line(f"its pod has no pyproxy: image {agent.image}", _LONGEST_TEXT)
    return text


def _last_line(errors: bytes) -> str:
    lines = [each for each in errors.decode(errors="replace").splitlines() if each.strip()]
    return one_line(lines[-1].removeprefix("pyproxy: "), _LONGEST_TEXT) if lines else ""
