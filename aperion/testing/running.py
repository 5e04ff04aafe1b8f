"""What the tools for tests share: which event types are meant, and waits in real time."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias, cast

import anyio

from aperion.naming import RESERVED_DOMAIN
from aperion.patterns import check_pattern, matches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aperion.engine.flight import Flight
    from aperion.events import Payload
    from aperion.receipts import Receipt

Wanted: TypeAlias = "str | type[Payload]"


def pattern_of(wanted: Wanted) -> str:
    """Return the pattern that a model or a pattern stands for.

    Raises:
        PatternError: for a pattern that cannot match.
    """
    return check_pattern(wanted, any_name=True) if isinstance(wanted, str) else wanted.event_type


def meant(wanted: tuple[Wanted, ...]) -> Callable[[str], bool]:
    """Return what tells whether an event type is one of those; without any all are, but for ``system.*``."""
    patterns = [pattern_of(each) for each in wanted] or ["*"]

    def is_meant(event_type: str) -> bool:
        is_system = event_type.partition(".")[0] == RESERVED_DOMAIN
        fitting = [p for p in patterns if p.partition(".")[0] == RESERVED_DOMAIN] if is_system else patterns
        return any(matches(pattern, event_type) for pattern in fitting)

    return is_meant


def flight_behind(receipt: Receipt) -> Flight:
    """Return what the engine moves of an event; users hold a receipt, and nothing of the engine."""
    return cast("Flight", receipt._ticket)


def call_later(loop: asyncio.AbstractEventLoop, seconds: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
    """Call back after real seconds, whatever time a ``VirtualClock`` shows."""
    # The methods of the class: those of the instance may be the clock's. And no method may be used that
    # looks for another one at the instance, as call_later of asyncio and call_at of uvloop do.
    kind = type(loop)
    if isinstance(loop, asyncio.BaseEventLoop):
        return kind.call_at(loop, kind.time(loop) + seconds, callback)
    return kind.call_later(loop, seconds, callback)


async def wait(seconds: float) -> None:
    """Wait for real seconds."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not over.done():
            over.set_result(None)

    timer = call_later(loop, seconds, end)
    try:
        await over
    finally:
        timer.cancel()


@contextmanager
def limited_to(seconds: float) -> Iterator[anyio.CancelScope]:
    """Leave the block after real seconds; ``anyio.move_on_after`` obeys a ``VirtualClock``."""
    with anyio.CancelScope() as scope:
        timer = call_later(asyncio.get_running_loop(), seconds, scope.cancel)
        try:
            yield scope
        finally:
            timer.cancel()
