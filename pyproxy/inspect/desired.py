"""What the kernel should hold, as one value: whoever has it can compare without the agent."""

from __future__ import annotations

import msgspec

from pyproxy.config.settings import Settings
from pyproxy.dataplane.interface import NodeAnswer
from pyproxy.inspect.endpoint import Endpoint, Nothing
from pyproxy.inspect.snapshot import Snapshot, Witness
from pyproxy.policy.answer import ServiceAnswer


class Desired(msgspec.Struct, frozen=True):
    """All answers, and what dataplanes need to know besides. As JSON, addresses are base64."""

    settings: Settings
    node: NodeAnswer
    answers: tuple[ServiceAnswer, ...]
    pending: int


def desired(snapshot: Snapshot) -> Desired:
    """Take what a snapshot says should be programmed."""
    return Desired(
        snapshot.settings,
        snapshot.node_answer,
        tuple(snapshot.answers.values()),
        snapshot.pending,
    )


def _answer(witness: Witness, _: Nothing) -> Desired:
    return desired(witness.snapshot())


DESIRED = Endpoint("/desired", Nothing, Desired, _answer)
