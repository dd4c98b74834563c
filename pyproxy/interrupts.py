"""Signals that end a command as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_WAKING = signal.SIGURG
"""The signal that ends a wait of the main thread. The kernel sends it for sockets that ask for it,
which pyproxy has none of, and by default a process ignores it."""

_AGAIN = 0.05
"""Seconds after which the main thread is woken again."""

_MOST_NUMBERS = 64


@contextmanager
def interrupted_by(*numbers: signal.Signals) -> Iterator[None]:
    """Raise KeyboardInterrupt inside the block for SIGINT and these signals, at once.

    A command then removes what it has made. Does nothing in other threads than the main one, the
    only one that may set signal handlers. An ignored SIGINT stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(_woken_by((signal.SIGINT, *numbers)))
        for number in numbers:
            before = signal.signal(number, signal.default_int_handler)
            stack.callback(signal.signal, number, before)
        yield


@contextmanager
def _woken_by(numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """End a wait of the main thread when one of these signals has arrived. Main thread only.

    Python runs a signal handler in the main thread alone, between two bytecodes. A signal that
    arrives after the last bytecode before a wait, or that another thread takes, interrupts nothing.
    Python's own C code writes its number to a pipe all the same.
    """
    main = threading.get_ident()
    is_awake = False

    def note(*_: object) -> None:
        # No lock here, because a handler may interrupt itself.
        nonlocal is_awake
        is_awake = True

    def watch() -> None:
        nonlocal is_awake
        while received := os.read(read_end, _MOST_NUMBERS):
            if set(received).isdisjoint(numbers):
                continue
            is_awake = False
            # Python runs handlers in the order of their numbers, so this one is not the first.
            while not is_awake:
                signal.pthread_kill(main, _WAKING)
                time.sleep(_AGAIN)

    with ExitStack() as stack:
        read_end, write_end = os.pipe()
        stack.callback(os.close, read_end)
        os.set_blocking(write_end, False)
        stack.callback(signal.signal, _WAKING, signal.signal(_WAKING, note))
        thread = threading.Thread(target=watch, name="interrupts", daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(os.close, write_end)
        before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        stack.callback(signal.set_wakeup_fd, before)
        yield
