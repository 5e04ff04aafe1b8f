"""Handlers that do nothing, and the bare loop over them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.wiring import Batch, Handler, Wiring


def _named(handlers: list[Handler]) -> tuple[Handler, ...]:
    # Some peers tell handlers apart by name.
    for number, handler in enumerate(handlers):
        handler.__name__ = handler.__qualname__ = f"handler_{number}"
    return tuple(handlers)


def idle_handlers(count: int) -> tuple[Handler, ...]:
    """Make async handlers that return at once."""

    def make() -> Handler:
        async def handler(event: object, payload: object = None) -> None:
            return

        return handler

    return _named([make() for _ in range(count)])


def yielding_handlers() -> tuple[Handler, ...]:
    """Make one async handler that lets the loop go round once."""

    async def handler(event: object, payload: object = None) -> None:
        await asyncio.sleep(0)

    return _named([handler])


def sync_handlers() -> tuple[Handler, ...]:
    """Make one sync handler that returns at once."""

    def handler(event: object, payload: object = None) -> None:
        return

    return _named([handler])


def counting_handlers(wiring: Wiring, seen: Callable[[], None]) -> tuple[Handler, ...]:
    """Make as many handlers, of the same kind, that call ``seen``."""

    def make_async() -> Handler:
        async def handler(event: object, payload: object = None) -> None:
            seen()

        return handler

    def make_sync() -> Handler:
        def handler(event: object, payload: object = None) -> None:
            seen()

        return handler

    make = make_sync if wiring.sync else make_async
    return _named([make() for _ in wiring.handlers])


def bare_loop(wiring: Wiring) -> Batch:
    """Return the loop that calls the wiring's handlers itself."""
    if wiring.sync:
        return _bare_calls(wiring)
    return _bare_one(wiring) if len(wiring.handlers) == 1 else _bare_many(wiring)


def _bare_one(wiring: Wiring) -> Batch:
    (handler,) = wiring.handlers
    event = wiring.load.fields

    async def batch(count: int) -> None:
        for _ in range(count):
            await handler(event)

    return batch


def _bare_many(wiring: Wiring) -> Batch:
    handlers, event = wiring.handlers, wiring.load.fields

    async def batch(count: int) -> None:
        for _ in range(count):
            for handler in handlers:
                await handler(event)

    return batch


def _bare_calls(wiring: Wiring) -> Batch:
    (handler,) = wiring.handlers
    event = wiring.load.fields

    async def batch(count: int) -> None:
        for _ in range(count):
            handler(event)

    return batch
