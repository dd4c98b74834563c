"""One node with its agent for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.inspect.node import InspectedNode, inspected_node


@pytest.fixture(scope="module")
def whole_node() -> Iterator[InspectedNode]:
    with inspected_node() as made:
        yield made


@pytest.fixture
def node(whole_node: InspectedNode) -> Iterator[InspectedNode]:
    """The node; the test's objects are deleted afterwards."""
    yield whole_node
    whole_node.delete_created()
