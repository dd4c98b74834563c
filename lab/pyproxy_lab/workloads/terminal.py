"""Programs with a client's streams, on pipes or on a terminal of their own."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Mapping, Sequence

from pyproxy_lab.apiserver.exec import STDERR, STDOUT, StartError, Streams, TerminalSize

_PART = 1 << 16


async def run(
    command: Sequence[str], streams: Streams, environment: Mapping[str, str], *, tty: bool
) -> int:
    """Run a program to its end, and return its exit status. Raises StartError."""
    if tty:
        return await _on_terminal(command, streams, environment)
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
        )
    except OSError as error:
        raise StartError(f"{command[0]}: {error.strerror}") from error
    feeding = asyncio.ensure_future(_feed(process, streams))
    try:
        await asyncio.gather(
            _copy(process.stdout, streams, STDOUT), _copy(process.stderr, streams, STDERR)
        )
        return _status(await process.wait())
    finally:
        feeding.cancel()
        await _end(process)


async def _on_terminal(
    command: Sequence[str], streams: Streams, environment: Mapping[str, str]
) -> int:
    ours, theirs = os.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            # setsid --ctty makes the terminal the program's own, for Ctrl-C and job control.
            *("setsid", "--ctty", "--wait", *command),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": environment.get("TERM", "xterm")},
            start_new_session=True,
        )
    except OSError as error:
        os.close(ours)
        raise StartError(f"setsid: {error.strerror}") from error
    finally:
        os.close(theirs)

    def resize(size: TerminalSize) -> None:
        packed = struct.pack("HHHH", size.height & 0xFFFF, size.width & 0xFFFF, 0, 0)
        fcntl.ioctl(ours, termios.TIOCSWINSZ, packed)

    streams.resized = resize
    os.set_blocking(ours, False)
    feeding = asyncio.ensure_future(_type(ours, streams))
    try:
        await _show(ours, streams)
        return _status(await process.wait())
    finally:
        feeding.cancel()
        await _end(process)
        streams.resized = _ignore
        os.close(ours)


async def _show(terminal: int, streams: Streams) -> None:
    """Copy a terminal's output until its program has ended, or the client's connection has."""
    loop = asyncio.get_running_loop()
    while True:
        readable = asyncio.Event()
        loop.add_reader(terminal, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(terminal)
        try:
            data = os.read(terminal, _PART)
        except BlockingIOError:
            continue
        except OSError:  # EIO: nothing has the terminal open any more
            return
        if not data:
            return
        with contextlib.suppress(ConnectionError):
            await streams.write(STDOUT, data)


async def _type(terminal: int, streams: Streams) -> None:
    while data := await streams.stdin.read(_PART):
        while data:
            try:
                data = data[os.write(terminal, data) :]
            except BlockingIOError:
                await asyncio.sleep(0.01)
            except OSError:
                return
    with contextlib.suppress(OSError):
        os.write(terminal, b"\x04")  # the end of input, as Ctrl-D types it


async def _feed(process: asyncio.subprocess.Process, streams: Streams) -> None:
    """Copy the client's input, and close the program's at its end."""
    if process.stdin is None:
        return
    with contextlib.suppress(ConnectionError):
        while data := await streams.stdin.read(_PART):
            process.stdin.write(data)
            await process.stdin.drain()
    process.stdin.close()


async def _copy(source: asyncio.StreamReader | None, streams: Streams, channel: int) -> None:
    """Copy output until its end, or until the client has closed the connection."""
    if source is None:
        return
    with contextlib.suppress(ConnectionError):
        while data := await source.read(_PART):
            await streams.write(channel, data)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _status(code: int) -> int:
    """Return an exit status as a shell shows it."""
    return 128 - code if code < 0 else code


def _ignore(size: TerminalSize) -> None:
    """Ignore the size of a terminal that is gone."""
