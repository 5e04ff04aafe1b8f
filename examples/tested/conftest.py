"""The application under test, and how its tests run."""

import pytest

import aperion
from examples.tested import service


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def aperion_app() -> aperion.App:
    return service.app


@pytest.fixture(autouse=True)
def warehouse() -> service.Warehouse:
    service.warehouse.__init__()
    return service.warehouse
