"""Send the tests to the pods, and read their answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from pyproxy.errors import SourceError, one_line
from pyproxy.kubectl.check import objects
from pyproxy.kubectl.check.plan import ConnectionTest
from pyproxy.kubectl.fan_out import Slots, in_threads
from pyproxy.kubectl.rights import CHECK_RIGHTS_FILE, missing_right
from pyproxy.source.client import ApiStatusError, Client
from pyproxy.source.pod_exec import STDOUT, Container, PodExec
from pyproxy.source.websocket import Deadline

_LARGEST = 1 << 20
_LONGEST_TEXT = 300
_NO_PYTHON = ("executable file not found", "no such file or directory")


class _Answer(msgspec.Struct, frozen=True):
    problems: tuple[str, ...] = ()


class Question(msgspec.Struct, frozen=True):
    """How to test: seconds to repeat failing tests, and of connections without a pause."""

    settle: float
    flood: float = 0.0


class PodTests(msgspec.Struct, frozen=True):
    """The tests of one pod."""

    pod: str
    tests: tuple[ConnectionTest, ...]


def by_pod(tests: Iterable[ConnectionTest]) -> tuple[PodTests, ...]:
    """Group tests by the pod that runs them."""
    found: dict[str, list[ConnectionTest]] = {}
    for test in tests:
        found.setdefault(test.pod, []).append(test)
    return tuple(PodTests(pod, tuple(each)) for pod, each in found.items())


class Pods:
    """The pods of a check, in one namespace; each has `timeout` seconds for an answer."""

    def __init__(self, client: Client, namespace: str, timeout: float, parallel: int) -> None:
        self._client = client
        self._namespace = namespace
        self._timeout = timeout
        self._slots = Slots(parallel, parallel)

    def ask(self, tests: Iterable[ConnectionTest], question: Question) -> dict[ConnectionTest, str]:
        """Run tests and return the problem of each, empty if it has none.

        Raises UsageError if the user may not run commands in pods.
        """
        found: dict[ConnectionTest, str] = {}
        groups = by_pod(tests)
        for group, problems in in_threads(
            lambda each: (each, self._problems(each, question)), groups, self._slots
        ):
            found.update(zip(group.tests, problems, strict=True))
        return found

    def _problems(self, group: PodTests, question: Question) -> Sequence[str]:
        answer = self._answer(group, question)
        if isinstance(answer, str):
            return [answer] * len(group.tests)
        if len(answer.problems) != len(group.tests):
            return [f"pod {group.pod}: its answer is not complete"] * len(group.tests)
        return [one_line(each, _LONGEST_TEXT) for each in answer.problems]

    def _answer(self, group: PodTests, question: Question) -> _Answer | str:
        where = Container(self._namespace, group.pod, objects.CONTAINER)
        text = _input(group.tests, question)
        output, errors = bytearray(), bytearray()
        try:
            with PodExec(
                self._client, where, objects.question_command(), Deadline(self._timeout), stdin=True
            ) as running:
                running.write(text)
                for channel, data in running.output():
                    (output if channel == STDOUT else errors).extend(data)
                    if len(output) + len(errors) > _LARGEST:
                        return f"pod {group.pod}: its answer is larger than 1 MiB"
                status = running.exit_status()
        except SourceError as error:
            if isinstance(error, ApiStatusError) and (
                denied := missing_right(error, CHECK_RIGHTS_FILE)
            ):
                raise denied from None
            why = str(error)
            if any(each in why for each in _NO_PYTHON):
                why = "its image has no python3: use --image"
            return one_line(f"pod {group.pod}: {why}", _LONGEST_TEXT)
        if status:
            last = errors.decode(errors="replace").strip().splitlines()[-1:]
            why = f"its program ended with status {status} {' '.join(last)}"
            return one_line(f"pod {group.pod}: {why}", _LONGEST_TEXT)
        try:
            return msgspec.json.decode(bytes(output), type=_Answer)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            why = f"its answer is not understood: {error}"
            return one_line(f"pod {group.pod}: {why}", _LONGEST_TEXT)


def _input(tests: Sequence[ConnectionTest], question: Question) -> bytes:
    asked = {
        "targets": [msgspec.to_builtins(each.target) for each in tests],
        "settle": question.settle,
        "flood": question.flood,
    }
    return b"%s\n%s\n" % (msgspec.json.encode(objects.program()), msgspec.json.encode(asked))
