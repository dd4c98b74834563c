"""Read files of bounded size that are no devices, pipes or sockets."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class UnreadableFileError(OSError):
    """The file is not a regular one, or is too large; `strerror` is the reason."""


def read_file(path: str | Path, limit: int) -> bytes:
    """Return the bytes of a regular file, through symlinks.

    Blocks on the disk only: opening a FIFO without a writer would block forever, and a device may
    have no end. Raises OSError.
    """
    # O_NONBLOCK has no effect on regular files.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise UnreadableFileError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise UnreadableFileError(errno.EINVAL, "not a regular file", str(path))
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UnreadableFileError(errno.EFBIG, f"larger than {limit} bytes", str(path))
    return data
