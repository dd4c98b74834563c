"""Run a program without IPv6 sockets, or without ip6tables: python -m tests.without_ipv6 WAY ....

`sockets` makes socket(AF_INET6) fail with EAFNOSUPPORT in the program and its children, as on a
kernel without IPv6. `programs` takes the programs whose names begin with ip6tables off PATH.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
import tempfile
from pathlib import Path

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_FILTER = 2
_SOCKET = {"x86_64": 41, "aarch64": 198}
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
# struct seccomp_data: the number of the system call, and the low half of its first argument.
_CALL_AT, _FAMILY_AT = 0, 16


def refuse_ipv6_sockets() -> None:
    """Refuse IPv6 sockets to this process and its children."""
    steps = (
        (_LOAD, 0, 0, _CALL_AT),
        (_IF_EQUAL, 0, 3, _SOCKET[platform.machine()]),
        (_LOAD, 0, 0, _FAMILY_AT),
        (_IF_EQUAL, 0, 1, socket.AF_INET6),
        (_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _FILTER, program, 0, 0)):
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), "prctl")


def hide_ip6tables() -> None:
    """Set PATH to a folder with links to all programs but ip6tables."""
    folder = Path(tempfile.mkdtemp())
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(place).glob("*"):
            if not program.name.startswith("ip6tables"):
                (folder / program.name).unlink(missing_ok=True)
                (folder / program.name).symlink_to(program)
    os.environ["PATH"] = str(folder)


if __name__ == "__main__":
    {"sockets": refuse_ipv6_sockets, "programs": hide_ip6tables}[sys.argv[1]]()
    os.execv(sys.argv[2], sys.argv[2:])
