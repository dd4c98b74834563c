"""What the API server says of a Service and its pods, asked by whoever has a client for it."""

from __future__ import annotations

import msgspec

from pyproxy.inspect.endpoint import Endpoint
from pyproxy.inspect.services import object_name
from pyproxy.inspect.snapshot import Witness
from pyproxy.source.found import Lookup


class Named(msgspec.Struct, frozen=True):
    """NAMESPACE/NAME."""

    name: str


def _answer(witness: Witness, question: Named) -> Lookup:
    return witness.look_up(object_name(question.name))


LOOKUP = Endpoint("/lookup", Named, Lookup, _answer)
