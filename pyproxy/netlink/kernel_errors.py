"""Errors of netlink messages: errno translated to an exception, and the kernel's extended text.

Facts: net/netlink/af_netlink.c and include/uapi/linux/netlink.h. With extended acknowledgements an
NLMSG_ERROR may carry a sentence, and the offset of the attribute at fault.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator

import msgspec

from pyproxy.errors import (
    KernelError,
    PermissionKernelError,
    RejectedError,
    StaleStateError,
    TransientKernelError,
)
from pyproxy.netlink.attributes import attribute_map, text
from pyproxy.netlink.frames import (
    HEADER,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLMSG_ERROR,
    read_messages,
)

_ERRNO_SIZE = 4
_NLMSGERR_ATTR_MSG = 1
_NLMSGERR_ATTR_OFFS = 2

# EBUSY: the object is still in use, often by a deleted rule that nf_tables has not freed yet.
TRANSIENT = {errno.EINTR, errno.EAGAIN, errno.ENOBUFS, errno.EBUSY, errno.ENOMEM}
"""Errors that may pass."""
# IPVS reports a missing virtual service as ESRCH, and a missing real server as ENOENT.
_OUT_OF_STEP = {errno.ENOENT, errno.EEXIST, errno.ESRCH}
_FORBIDDEN = {errno.EPERM, errno.EACCES}


class MessageError(msgspec.Struct, frozen=True):
    """The kernel's error for one message of a batch.

    `index` is the message's place in the batch, -1 for the batch itself. `offset` is where in its
    bytes the attribute at fault begins, 0 if the kernel gave none. `words` is the kernel's text.
    """

    index: int
    errno: int
    offset: int
    words: str

    @property
    def error(self) -> KernelError:
        """The error as an exception; its class says whether a retry is useful."""
        return kernel_error(self.errno, self.words)


def kernel_error(number: int, doing: str) -> KernelError:
    """Translate an errno into an exception; `doing` is what failed, such as "sending 8 bytes"."""
    name = errno.errorcode.get(number, str(number))
    message = f"{name}: {doing}" if doing else name
    if number in TRANSIENT:
        return TransientKernelError(message, number)
    if number in _OUT_OF_STEP:
        return StaleStateError(message, number)
    if number in _FORBIDDEN:
        return PermissionKernelError(message, number)
    return RejectedError(message, number)


def program_error(program: str, error: OSError) -> TransientKernelError:
    """Return the exception for a program that could not be started, which may pass.

    EMFILE, ENFILE: no descriptors for its pipes. EAGAIN, ENOMEM: no process or memory. ENOENT: the
    program is being replaced.
    """
    name = errno.errorcode.get(error.errno or 0, str(error))
    return TransientKernelError(f"{name}: starting {program}", error.errno or 0)


def error_code(reply: memoryview) -> int:
    """Return the errno of an NLMSG_ERROR: 0 is an acknowledgement, EINVAL if it is cut short."""
    if len(reply) < HEADER.size + _ERRNO_SIZE:
        return errno.EINVAL
    code: int = -struct.unpack_from("=i", reply, HEADER.size)[0]
    return code


def read_error(reply: memoryview, flags: int, index: int) -> MessageError | None:
    """Read an NLMSG_ERROR for the message at `index` of a batch; None if it acknowledges."""
    code = error_code(reply)
    if code == 0:
        return None
    offset, words = 0, ""
    if flags & NLM_F_ACK_TLVS:
        # The request's header is quoted; its body too, unless NETLINK_CAP_ACK capped it.
        start = HEADER.size + _ERRNO_SIZE + HEADER.size
        if not flags & NLM_F_CAPPED and len(reply) >= start:
            start += struct.unpack_from("=I", reply, HEADER.size + _ERRNO_SIZE)[0] - HEADER.size
        extended = attribute_map(reply[start:])
        # The offset counts from the request's netlink header.
        if len(extended.get(_NLMSGERR_ATTR_OFFS, b"")) >= 4:
            offset = struct.unpack_from("=I", extended[_NLMSGERR_ATTR_OFFS])[0]
        if _NLMSGERR_ATTR_MSG in extended:
            words = text(extended[_NLMSGERR_ATTR_MSG])
    return MessageError(index, code, offset, words)


def read_done(reply: memoryview, flags: int) -> MessageError | None:
    """Read the NLMSG_DONE that ends a dump; None if the dump is complete.

    A dump that fails midway, such as of a set that is deleted meanwhile, has its errno there.
    """
    code = error_code(reply) if len(reply) >= HEADER.size + _ERRNO_SIZE else 0
    if code <= 0:
        return None
    words = ""
    if flags & NLM_F_ACK_TLVS:
        extended = attribute_map(reply[HEADER.size + _ERRNO_SIZE :])
        words = text(extended.get(_NLMSGERR_ATTR_MSG, memoryview(b"")))
    return MessageError(0, code, 0, words)


def read_acknowledgements(
    datagrams: Iterable[bytes], first: int, index: int = 0
) -> Iterator[tuple[int, MessageError | None]]:
    """Yield the acknowledgements of a batch, each with its message's index and its error if any.

    `first` is the batch's first sequence number, and belongs to the message at `index`. Replies to
    an earlier batch, which may still wait in the socket, are passed over.
    """
    for data in datagrams:
        for kind, flags, sequence, _, message in read_messages(data):
            # An acknowledgement of success is an NLMSG_ERROR too, with errno 0.
            if kind == NLMSG_ERROR and sequence >= first:
                place = index + sequence - first
                yield place, read_error(message, flags, place)
