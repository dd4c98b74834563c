import sys

import pytest
from pyproxy_lab import modes
from pyproxy_lab.bench.contestant import parse

from pyproxy.errors import UsageError


def test_pyproxy_is_this_one() -> None:
    found = parse("pyproxy", modes.NFTABLES)
    assert found.name == "pyproxy"
    assert found.command == (sys.executable, "-m", "pyproxy", "run", "--proxy-mode=nftables")
    assert found.announces


def test_pyproxy_alone_is_told_the_flavour() -> None:
    found = parse("pyproxy", modes.IPTABLES_LEGACY)
    assert found.command[-2:] == ("--proxy-mode=iptables", "--iptables-flavour=legacy")
    other = parse("other=/bin/true", modes.IPTABLES_LEGACY)
    assert other.command == ("/bin/true", "--proxy-mode=iptables")
    assert not found.announces


@pytest.mark.parametrize(
    ("text", "command", "mode"),
    [
        ("other=/bin/true", ("/bin/true", "--proxy-mode=iptables"), "iptables"),
        ("other=/bin/true --proxy-mode=ipvs", ("/bin/true", "--proxy-mode=ipvs"), "ipvs"),
        ("other=/bin/true --proxy-mode ipvs", ("/bin/true", "--proxy-mode", "ipvs"), "ipvs"),
        (
            "other='/bin/true' -v 2",
            ("/bin/true", "-v", "2", "--proxy-mode=iptables"),
            "iptables",
        ),
    ],
)
def test_a_command_keeps_its_own_flags(text: str, command: tuple[str, ...], mode: str) -> None:
    found = parse(text, modes.IPTABLES)
    assert (found.name, found.command, found.mode) == ("other", command, mode)
    assert not found.announces


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kube-proxy", "--agent kube-proxy: name its program: --agent kube-proxy=PATH"),
        ("x=/no/such", "--agent x=/no/such: /no/such is not a program that can be run"),
    ],
)
def test_what_is_no_program_is_said_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(text, modes.NFTABLES)
    assert str(error.value) == message
