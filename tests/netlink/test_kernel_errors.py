"""Errors of netlink messages: errno, the kernel's text, and the message that failed."""

from __future__ import annotations

import errno
import struct

import pytest

from pyproxy.errors import (
    KernelError,
    PermissionKernelError,
    RejectedError,
    StaleStateError,
    TransientKernelError,
)
from pyproxy.netlink.attributes import attribute, string
from pyproxy.netlink.frames import NLM_F_ACK_TLVS, NLM_F_CAPPED, NLMSG_ERROR, pack_message
from pyproxy.netlink.kernel_errors import MessageError, kernel_error, read_acknowledgements

REQUEST = pack_message(0xA0C, 0, 1, b"body")


def acknowledgement(sequence: int, code: int = 0, *, capped: bool = True) -> bytes:
    quoted = REQUEST[:16] if capped else REQUEST
    extended = string(1, "no such set") + attribute(2, struct.pack("=I", 40))
    flags = NLM_F_ACK_TLVS | (NLM_F_CAPPED if capped else 0)
    return pack_message(NLMSG_ERROR, flags, sequence, struct.pack("=i", -code), quoted, extended)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EBUSY, TransientKernelError),
        (errno.ENOBUFS, TransientKernelError),
        (errno.ENOENT, StaleStateError),
        (errno.EEXIST, StaleStateError),
        (errno.EPERM, PermissionKernelError),
        (errno.EINVAL, RejectedError),
        (9999, RejectedError),
    ],
)
def test_an_errno_becomes_the_exception_that_says_whether_to_retry(
    number: int, kind: type[KernelError]
) -> None:
    error = kernel_error(number, "deleting a set")
    assert type(error) is kind
    assert error.errno == number
    assert str(error) == f"{errno.errorcode.get(number, number)}: deleting a set"


@pytest.mark.parametrize("capped", [False, True])
def test_an_error_has_the_kernels_text_and_the_offset(capped: bool) -> None:
    data = acknowledgement(7, errno.ENOENT, capped=capped)
    ((index, error),) = read_acknowledgements([data], 5)
    assert index == 2
    assert error == MessageError(2, errno.ENOENT, 40, "no such set")


def test_acknowledgements_of_earlier_batches_are_skipped() -> None:
    data = acknowledgement(4, errno.EINVAL) + acknowledgement(5) + acknowledgement(6, errno.EBUSY)
    found = list(read_acknowledgements([data], 5, -1))
    assert [(index, error and error.errno) for index, error in found] == [
        (-1, None),
        (0, errno.EBUSY),
    ]
