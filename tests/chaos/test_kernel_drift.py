"""Other programs change the table: each change is repaired, counted and logged.

A repair should take less than a second. The test waits longer, because a busy machine delays it,
and prints the time that it took. It compares the whole table, with all rules.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import msgspec
import pytest
from pyproxy_lab.namespace import Namespace

from tests.builders import endpoint_slice, service
from tests.chaos.kernel_agent import RunningAgent, Snapshot
from tests.waiting import until

pytestmark = pytest.mark.kernel

WEB, WEB_SLICE = service("web", 1), endpoint_slice("web", ["10.244.1.5", "10.244.2.5"])
API, API_SLICE = service("api", 2), endpoint_slice("api", ["10.244.1.6"])
EMPTY = service("empty", 3)
AFFINITY_FRONTENDS = msgspec.structs.replace(service("affinity-frontends", 4), affinity_timeout=60)
STICKY_SLICE = endpoint_slice("affinity-frontends", ["10.244.1.7", "10.244.2.7", "10.244.2.8"])
OBJECTS = (WEB, WEB_SLICE, API, API_SLICE, EMPTY, AFFINITY_FRONTENDS, STICKY_SLICE)

WEB_KEY = "10.96.0.1 . tcp . 80"
EMPTY_KEY = "10.96.0.3 . tcp . 80"

HARM = {
    "everything flushed": ("flush ruleset", {"ruleset", "chain", "element"}),
    "the table deleted": ("delete table inet pyproxy", {"ruleset", "chain", "element"}),
    "a hook deleted": ("delete chain inet pyproxy nat-prerouting", {"ruleset"}),
    "a chain made when needed deleted": (
        "flush map inet pyproxy services4; delete chain inet pyproxy cluster4-2",
        {"chain", "element"},
    ),
    "a fixed chain flushed": ("flush chain inet pyproxy services", {"ruleset"}),
    "a chain made when needed flushed": ("flush chain inet pyproxy cluster4-2", {"chain"}),
    "a learning hook deleted": ("delete chain inet pyproxy learn-postrouting", {"chain"}),
    "a rule added": ("insert rule inet pyproxy nat-prerouting accept", {"ruleset"}),
    "a rule added to a chain made when needed": (
        "insert rule inet pyproxy cluster4-1 drop",
        {"chain"},
    ),
    "a verdict deleted": (f"delete element inet pyproxy services4 {{ {WEB_KEY} }}", {"element"}),
    "an endpoint deleted": (
        f"delete element inet pyproxy endpoints4 {{ {WEB_KEY} . 0 }}",
        {"element"},
    ),
    "a verdict changed": (
        f"delete element inet pyproxy services4 {{ {WEB_KEY} }}; "
        f"add element inet pyproxy services4 {{ {WEB_KEY} : goto refuse }}",
        {"element"},
    ),
    "a foreign verdict": (
        "add element inet pyproxy services4 { 10.96.0.77 . tcp . 80 : drop }",
        {"element"},
    ),
    "a foreign rejection": (
        f"add element inet pyproxy no-endpoint-services4 {{ {WEB_KEY} }}",
        {"element"},
    ),
    "a foreign endpoint": (
        f"add element inet pyproxy endpoints4 {{ {WEB_KEY} . 2 : 10.244.9.9 . 8080 }}",
        {"element"},
    ),
    "a foreign pod network": ("add element inet pyproxy pods4 { 192.168.0.0/16 }", {"element"}),
    "a map emptied": ("flush map inet pyproxy endpoints4", {"element"}),
    "a map deleted": (
        "flush chain inet pyproxy services; delete map inet pyproxy services4",
        {"ruleset", "element"},
    ),
    "the seal broken": ("delete chain inet pyproxy {seal}", {"ruleset"}),
    "the table made by another program": (
        "delete table inet pyproxy; add table inet pyproxy; "
        "add map inet pyproxy services4 { type ipv4_addr : verdict; }; "
        "add set inet pyproxy mine { type inet_service; }; "
        "add chain inet pyproxy input { type filter hook input priority 0; }",
        {"element", "chain"},
    ),
    "a chain added": (
        "add chain inet pyproxy theirs { type filter hook forward priority 0; policy drop; }; "
        "add chain inet pyproxy more; add rule inet pyproxy theirs jump more; "
        "add map inet pyproxy ports { type inet_service : verdict; elements = { 80 : jump more } }",
        {"ruleset"},
    ),
}

REPAIR = re.compile(r"repaired changes by nft \(pid \d+\): \d+ (element|chain|ruleset)")


@pytest.fixture
def live(namespace: Namespace) -> Iterator[RunningAgent]:
    with RunningAgent(namespace) as made:
        yield made


def seal(held: Snapshot) -> str:
    return next(name for name in held.layout.chains if name.startswith("loaded-"))


@pytest.mark.parametrize("harm", HARM)
def test_a_change_is_repaired_counted_and_logged(
    live: RunningAgent,
    harm: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = live.start(*OBJECTS)
    text, kinds = HARM[harm]
    with caplog.at_level(logging.WARNING, "pyproxy.agent.core"):
        live.nft(text.replace("{seal}", seal(whole)))
        took = until(lambda: live.snapshot() == whole and kinds <= live.repairs().keys(), harm)
        until(lambda: bool(REPAIR.search(caplog.text)), "a line in the log")
    print(f"{harm}: undone after {took:.2f} s")
    assert not live.reported
