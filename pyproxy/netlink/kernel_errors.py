"""What the kernel says when it will not: errno translated once, and the words beside it.

Facts: net/netlink/af_netlink.c and include/uapi/linux/netlink.h. With extended acknowledgements an
NLMSG_ERROR may carry a sentence, and the offset of the attribute at fault.
"""

from __future__ import annotations

import errno
import struct

import msgspec

from pyproxy.errors import (
    KernelError,
    OutOfStepError,
    PermissionKernelError,
    RejectedError,
    TransientKernelError,
)
from pyproxy.netlink.attributes import attribute_map, text
from pyproxy.netlink.frames import HEADER, NLM_F_ACK_TLVS, NLM_F_CAPPED

_NLMSGERR_ATTR_MSG = 1
_NLMSGERR_ATTR_OFFS = 2

_TRANSIENT = {errno.EINTR, errno.EAGAIN, errno.ENOBUFS, errno.EBUSY, errno.ENOMEM}
_OUT_OF_STEP = {errno.ENOENT, errno.EEXIST, errno.ESRCH}
_FORBIDDEN = {errno.EPERM, errno.EACCES}


class MessageError(msgspec.Struct, frozen=True):
    """The kernel's word on one message of a batch.

    `index` is the message's place in the batch, -1 for the batch itself; `offset` is where in its
    bytes the attribute at fault begins, 0 where the kernel did not say.
    """

    index: int
    errno: int
    offset: int
    words: str

    @property
    def error(self) -> KernelError:
        """The refusal as an exception of the kind that tells what to do about it."""
        return kernel_error(self.errno, self.words)


def kernel_error(number: int, doing: str) -> KernelError:
    """Translate an errno, once, where the system call was made."""
    name = errno.errorcode.get(number, str(number))
    message = f"{name}: {doing}" if doing else name
    if number in _TRANSIENT:
        return TransientKernelError(message, number)
    if number in _OUT_OF_STEP:
        return OutOfStepError(message, number)
    if number in _FORBIDDEN:
        return PermissionKernelError(message, number)
    return RejectedError(message, number)


def error_code(reply: memoryview) -> int:
    """Read the errno of an NLMSG_ERROR, 0 where it acknowledges; EINVAL where it says none."""
    if len(reply) < HEADER.size + 4:
        return errno.EINVAL
    code: int = -struct.unpack_from("=i", reply, HEADER.size)[0]
    return code


def read_error(reply: memoryview, flags: int, index: int) -> MessageError | None:
    """Read an NLMSG_ERROR about the message at `index` of a batch; None where it acknowledges."""
    code = error_code(reply)
    if code == 0:
        return None
    offset, words = 0, ""
    if flags & NLM_F_ACK_TLVS:
        start = HEADER.size + 4 + HEADER.size
        if not flags & NLM_F_CAPPED and len(reply) >= start:
            start += struct.unpack_from("=I", reply, HEADER.size + 4)[0] - HEADER.size
        said = attribute_map(reply[start:])
        if len(said.get(_NLMSGERR_ATTR_OFFS, b"")) >= 4:
            offset = struct.unpack_from("=I", said[_NLMSGERR_ATTR_OFFS])[0]
        if _NLMSGERR_ATTR_MSG in said:
            words = text(said[_NLMSGERR_ATTR_MSG])
    return MessageError(index, code, offset, words)
