"""Fixtures for test files that need a Hub: `from tests.hub.fixtures import hub_server  # noqa: F401`."""

from collections.abc import Iterator

import pytest

from .server import HubServer


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    """A fresh, empty loopback Hub."""
    with HubServer() as hub:
        yield hub
