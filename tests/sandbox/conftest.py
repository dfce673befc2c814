"""The fixture under test, whether or not the package is installed with its entry point."""

from collections.abc import AsyncIterator

import pytest

from midapi_async.sandbox import Sandbox
from midapi_async.sandbox.pytest_plugin import midapi_sandbox, pytest_configure
from tests.sandbox.world import Api, Endpoint, api_of

__all__ = ["midapi_sandbox", "pytest_configure"]

# Somebody else's tests: test_project.py runs them as that person would.
collect_ignore = ["project"]


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """A sandbox with the defaults."""
    async with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
async def api(sandbox: Sandbox) -> AsyncIterator[Api]:
    """Somebody's raw aiohttp session for it."""
    async with api_of(sandbox) as api:
        yield api


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    """A server that takes callbacks."""
    async with Endpoint() as endpoint:
        yield endpoint
