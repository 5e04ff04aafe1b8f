"""The pytest plugin: fixtures for an application, its bus and a recorder, a clock, and a check for leaks.

Nothing of aperion is loaded before a fixture wants it, so that loading the plugin costs nothing.
"""

from __future__ import annotations

import inspect
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator

    from aperion.app import App
    from aperion.bus import EventBus
    from aperion.testing.clock import VirtualClock
    from aperion.testing.recorder import Recorder

_FAULTS = "aperion.testing.faults"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what can be said on the command line and in the settings."""
    group = parser.getgroup("aperion")
    group.addoption("--aperion-seed", type=int, help="the seed of failing() and duplicated() where they have none")
    parser.addini("aperion_leaks", "check every async test for tasks, threads and subscriptions left", "bool")


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest of the marker, and everybody of the seed."""
    config.addinivalue_line("markers", "aperion_leaks(check=True): whether what the test leaves behind makes it fail")
    if (seed := config.getoption("--aperion-seed")) is not None:
        os.environ["APERION_TEST_SEED"] = str(seed)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the check for leaks around the other fixtures of the tests that want it."""
    for item in items:
        marker = item.get_closest_marker("aperion_leaks")
        wanted = config.getini("aperion_leaks") if marker is None else marker.kwargs.get("check", True)
        names = getattr(item, "fixturenames", None)
        if wanted and names is not None and "no_leaks" not in names and _is_async(item):
            names.insert(0, "no_leaks")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Show the seeds of a test that fails."""
    report = yield
    faults = sys.modules.get(_FAULTS)
    if faults is not None and report.failed and faults.used:
        report.sections.append(("aperion", "\n".join(faults.used)))
    if faults is not None and report.when == "teardown":
        faults.used.clear()
    return report


@pytest.fixture
def aperion_app() -> App:
    """Give the application that ``bus`` and ``app`` run; define a fixture of this name to test your own."""
    from aperion.app import App
    from aperion.bus import EventBus

    return App(EventBus(drain_timeout=5.0))


@pytest.fixture
async def bus(anyio_backend: Any, aperion_app: App) -> AsyncIterator[EventBus]:  # noqa: ARG001 - makes anyio run this
    """Give the running bus of ``aperion_app``, drained after the test; define a fixture of this name to use your own."""
    async with aperion_app:
        yield aperion_app.bus


@pytest.fixture
def app(aperion_app: App, bus: EventBus) -> App:
    """Give ``aperion_app``, running: its lifespan is entered, and its bus and its services run."""
    if aperion_app.bus is not bus:
        raise pytest.UsageError("bus is not the bus of aperion_app; define the fixture aperion_app instead of bus")
    return aperion_app


@pytest.fixture
async def recorded(bus: EventBus) -> AsyncIterator[Recorder]:
    """Give a recorder of what ``bus`` accepts during the test."""
    from aperion.testing.recorder import recording

    with recording(bus) as recorder:
        yield recorder


@pytest.fixture
async def clock(bus: EventBus) -> AsyncIterator[VirtualClock]:
    """Let time stand still during the test, and give what moves it."""
    from aperion.testing.clock import virtual_time

    with virtual_time(bus) as clock:
        yield clock


@pytest.fixture
async def no_leaks(anyio_backend: Any) -> AsyncIterator[None]:  # noqa: ARG001 - makes anyio run this fixture
    """Fail when the test leaves a task, a thread or a subscription behind; name it first, or set ``aperion_leaks``."""
    from aperion.testing.leaks import no_leaks

    async with no_leaks():
        yield


def _is_async(item: pytest.Item) -> bool:
    """Tell whether a test runs on an event loop, under the plugin of anyio."""
    function: Any = getattr(item, "function", None)
    inner = function.hypothesis.inner_test if hasattr(function, "hypothesis") else function
    return inspect.iscoroutinefunction(inner) and "anyio_backend" in getattr(item, "fixturenames", ())
