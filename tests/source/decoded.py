"""Decode objects of the API, and show the parts that tests compare."""

from __future__ import annotations

import json
from typing import Any

from pyproxy.errors import Problem
from pyproxy.model.address import address_text
from pyproxy.model.objects import (
    Kind,
)
from pyproxy.source.decode import DecodedObject, decode_object


def decoded(kind: Kind, obj: object) -> DecodedObject:
    return decode_object(kind, json.dumps(obj).encode())


def texts(addresses: tuple[Any, ...]) -> list[str]:
    return [address_text(address) for address in addresses]


def fields_of(problems: tuple[Problem, ...]) -> list[str]:
    return [problem.field for problem in problems]
