"""Objects of the API as they are read, and what a test compares of them."""

from __future__ import annotations

import json
from typing import Any

from pyproxy.errors import Problem
from pyproxy.model.address import address_text
from pyproxy.model.objects import (
    Kind,
)
from pyproxy.source.decode import DecodedObject, decode_object


def reading(kind: Kind, obj: object) -> DecodedObject:
    return decode_object(kind, json.dumps(obj).encode())


def texts(addresses: tuple[Any, ...]) -> list[str]:
    return [address_text(address) for address in addresses]


def where(problems: tuple[Problem, ...]) -> list[str]:
    return [problem.field for problem in problems]
