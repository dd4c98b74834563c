"""The table of rules around IPVS: loaded through nft, filled and read back over netlink."""

from __future__ import annotations

import hashlib
import logging
import shutil

import msgspec

from pyproxy.dataplane.ipvs import ruleset
from pyproxy.dataplane.ipvs.ruleset import Options
from pyproxy.dataplane.ipvs.schema import BY_NAME, TABLE
from pyproxy.dataplane.nftables.loader import run_nft
from pyproxy.dataplane.nftables.readback import read_table, read_tables
from pyproxy.dataplane.nftables.schema import Table
from pyproxy.errors import KernelError, StaleStateError, UsageError
from pyproxy.netlink import nftables, rules
from pyproxy.netlink.elements import ElementMessage
from pyproxy.netlink.kernel_errors import MessageError
from pyproxy.netlink.monitor import Foreign, Monitor
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM, delete_table

log = logging.getLogger(__name__)

_SEAL = "loaded-"


class _Layout(msgspec.Struct, frozen=True):
    """The table without its elements."""

    chains: dict[str, bytes]
    rules: dict[str, list[bytes]]
    sets: dict[str, bytes]

    def seal(self, options: Options) -> str:
        """Name the empty chain that says what nft and the kernel made of these options' text."""
        digest = hashlib.sha256()
        for name, hook in sorted(self.chains.items()):
            if not name.startswith(_SEAL):
                digest.update(repr((name, hook, self.rules.get(name, []))).encode())
        for name in sorted(self.sets.keys() & BY_NAME.keys()):
            digest.update(repr((name, self.sets[name])).encode())
        return f"{_SEAL}{ruleset.fingerprint(options)}-{digest.hexdigest()[:12]}"


class RulesTable:
    """Table `inet pyproxy-ipvs` of the network namespace that it was made in."""

    def __init__(self) -> None:
        self.netlink = Nfnetlink()
        self._monitor = Monitor(TABLE, self.netlink.port)

    def prepare(self) -> None:
        """Find out whether nft and nf_tables are here. Raises UsageError, KernelError."""
        if shutil.which("nft") is None:
            raise UsageError("nft is not on PATH: install the package nftables")
        self.prepare_to_read()
        self._monitor.listen()

    def prepare_to_read(self) -> None:
        """Find out whether nf_tables is here. Raises KernelError."""
        read_tables(self.netlink)

    def read(self) -> Table:
        """Read all elements. Raises KernelError."""
        return read_table(self.netlink, TABLE, BY_NAME)

    def is_loaded(self, options: Options) -> bool:
        """Tell whether the fixed rules are those of these options, untouched."""
        layout = self._layout()
        return layout.seal(options) in layout.chains

    def load(self, options: Options) -> None:
        """Make the fixed rules so, keeping every element.

        A table that has what is not ours is replaced, and StaleStateError says that its elements
        are gone. Raises KernelError.
        """
        layout = self._layout()
        if strays := _strays(layout):
            log.warning("table inet %s has what is not ours, replacing it: %s", TABLE, strays)
            self.delete()
            self._load(options)
            raise StaleStateError("the table was replaced, with all elements gone", 0)
        self._load(options)

    def write(self, elements: list[ElementMessage]) -> MessageError | None:
        """Write elements in one transaction; None says that it was committed."""
        refusals = self.netlink.transact([each.message for each in elements], SUBSYSTEM)
        return refusals[0] if refusals else None

    def delete(self) -> None:
        """Delete the table; one that is not there is all right. Raises KernelError."""
        refusals = self.netlink.transact([delete_table(TABLE)], SUBSYSTEM)
        if refusals and not isinstance(refusals[0].error, StaleStateError):
            raise refusals[0].error

    def pause(self) -> None:
        """Hear nothing of others until `listen`."""
        self._monitor.pause()

    def listen(self) -> None:
        """Hear of others again."""
        self._monitor.listen()

    def wait(self) -> Foreign | None:
        """Wait for another program's write; None at the end. Raises KernelError."""
        foreign = self._monitor.wait()
        if foreign is None:
            self._monitor.close()
        return foreign

    def close(self) -> None:
        """Give back the sockets; the table stays."""
        self._monitor.end()
        self.netlink.close()

    def _load(self, options: Options) -> None:
        run_nft(ruleset.ruleset(options))
        layout = self._layout()
        seal = layout.seal(options)
        stale = [name for name in layout.chains if name.startswith(_SEAL) and name != seal]
        messages = [
            *(nftables.delete_chain(TABLE, name) for name in stale),
            rules.new_chain(TABLE, seal),
        ]
        for refusal in self.netlink.transact(messages, SUBSYSTEM):
            raise refusal.error

    def _layout(self) -> _Layout:
        found = nftables.read_chains(self.netlink.dump(nftables.get_chains()), TABLE)
        if not found:
            return _Layout({}, {}, {})
        return _Layout(
            found,
            nftables.read_rules(self.netlink.dump(nftables.get_rules(TABLE))),
            nftables.read_sets(self.netlink.dump(nftables.get_sets(TABLE))),
        )


def _strays(layout: _Layout) -> list[str]:
    ours = ruleset.chain_names()
    chains = [name for name in layout.chains if name not in ours and not name.startswith(_SEAL)]
    # Sets without a name of their own belong to a rule.
    sets = [name for name in layout.sets.keys() - BY_NAME.keys() if name[:2] != "__"]
    return [*chains, *sets]


def unusable(error: KernelError) -> UsageError:
    """Say what a person can do about a kernel that does not let us."""
    return UsageError(f"this kernel or these rights are not enough for ipvs mode: {error}")
