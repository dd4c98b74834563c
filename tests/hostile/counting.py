"""Count the work of a call: the bytecode instructions that it executes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def instructions(action: Callable[[], object]) -> int:
    """Run an action, and count the instructions of all Python code that it runs.

    Unlike a duration, the number is the same on a busy machine. Work inside of C functions, such as
    a search through a tuple, is not counted.
    """
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        if event == "call":
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        elif event == "opcode":
            count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


class Unsearchable(tuple[Any, ...]):
    """A tuple that fails if it is searched, which takes time in proportion to its length."""

    __slots__ = ()

    def __contains__(self, value: object) -> bool:
        raise AssertionError(f"a tuple of {len(self)} is searched for {value!r}")
