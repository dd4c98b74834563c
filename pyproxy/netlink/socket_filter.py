"""Socket filters in classic BPF: the kernel runs them on each packet or message for a socket.

Facts: linux/filter.h, linux/bpf_common.h; socket(7), SO_ATTACH_FILTER.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

SO_ATTACH_FILTER = 26
SO_ATTACH_REUSEPORT_CBPF = 51

LOAD_WORD, LOAD_HALF, LOAD_BYTE, TO_X = 0x20, 0x28, 0x30, 0x07
"""Load 4, 2 or 1 bytes at an offset, in network order; copy them to the register X."""

JUMP, IF_EQUAL, RETURN, RETURN_A = 0x05, 0x15, 0x06, 0x16
XOR_X, XOR, MULTIPLY, SHIFT_RIGHT = 0xAC, 0xA4, 0x24, 0x74

ACCEPT, REJECT = 0xFFFFFFFF, 0
"""Return values: the number of bytes to keep."""

Step = tuple[int, int, int, int]
"""Code, steps to skip if true and if false, operand."""

_STEP = struct.Struct("=HBBI")
"""struct sock_filter."""


def attach(sock: socket.socket, option: int, steps: Sequence[Step]) -> None:
    """Attach a filter to a socket by one of the options above. Raises OSError."""
    code = ctypes.create_string_buffer(b"".join(_STEP.pack(*step) for step in steps))
    # struct sock_fprog: the number of steps, and a pointer to them.
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, option, program)
