"""The pytest plugin: fixtures for a running bus and a recorder of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aperion.bus import EventBus
    from aperion.testing.recorder import Recorder


@pytest.fixture
async def bus(anyio_backend: Any) -> AsyncIterator[EventBus]:  # noqa: ARG001 - makes anyio run this fixture
    """Give a running bus, drained after the test; define a fixture of this name to use your own."""
    from aperion.bus import EventBus  # as late as this, so that loading the plugin costs nothing

    async with EventBus(drain_timeout=5.0) as running:
        yield running


@pytest.fixture
async def recorded(bus: EventBus) -> AsyncIterator[Recorder]:
    """Give a recorder of what ``bus`` accepts during the test."""
    from aperion.testing.recorder import recording

    with recording(bus) as recorder:
        yield recorder
