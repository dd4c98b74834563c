"""ipset's sets in a real kernel, made and listed by its own program."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

import pytest

from pyproxy.errors import OutOfStepError, TransientKernelError
from pyproxy.lab.namespace import Namespace
from pyproxy.netlink import ipsets
from pyproxy.netlink.nfnetlink import Nfnetlink
from tests.namespaces import empty_namespace

pytestmark = pytest.mark.kernel

T = TypeVar("T")


@pytest.fixture
def here() -> Iterator[Namespace]:
    if shutil.which("ipset") is None:
        pytest.skip("needs the command ipset")
    with empty_namespace("ipsets") as made:
        yield made


def asked(here: Namespace, question: Callable[[Nfnetlink], T]) -> T:
    with closing(here.call(Nfnetlink)) as netlink:
        return question(netlink)


def test_names_ports_and_the_end_of_a_set(here: Namespace) -> None:
    assert asked(here, ipsets.read_names) == set()
    many = range(1000, 4000, 3)  # more than one message of a dump holds
    for name, kind in (("plain", "bitmap:port range 0-65535"), ("pairs", "hash:ip,port")):
        here.run(["ipset", "create", name, *kind.split()])
    added = [
        *(f"add plain {port}\n" for port in many),
        "add pairs 192.0.2.1,udp:53\n",
        "add pairs 192.0.2.2,sctp:9999\n",
    ]
    here.run(["ipset", "restore"], text="".join(added))
    assert asked(here, ipsets.read_names) == {"plain", "pairs"}
    assert sorted(asked(here, lambda kernel: list(ipsets.read_ports(kernel, "plain")))) == [*many]
    assert set(asked(here, lambda kernel: list(ipsets.read_ports(kernel, "pairs")))) == {53, 9999}
    for name in ("plain", "pairs"):
        assert asked(here, lambda kernel, name=name: ipsets.destroy(kernel, name)) is None
    assert here.run(["ipset", "list", "-n"]).stdout == ""


def test_a_set_that_is_gone_or_in_use(here: Namespace) -> None:
    gone = asked(here, lambda kernel: ipsets.destroy(kernel, "nowhere"))
    assert isinstance(gone, OutOfStepError)
    with pytest.raises(OutOfStepError):
        asked(here, lambda kernel: list(ipsets.read_ports(kernel, "nowhere")))
    here.run(["ipset", "create", "member", "hash:ip"])
    here.run(["ipset", "create", "list", "list:set"])
    here.run(["ipset", "add", "list", "member"])
    used = asked(here, lambda kernel: ipsets.destroy(kernel, "member"))
    assert isinstance(used, TransientKernelError)
    assert used.errno == errno.EBUSY
