"""The service under test, and how its tests run."""

import pytest
import shop

import aperion


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def aperion_app() -> aperion.App:
    shop.warehouse = shop.Warehouse()
    return shop.app
