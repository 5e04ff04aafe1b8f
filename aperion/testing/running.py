"""What the tools for tests share: which event types are meant, and waits in real time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

import anyio

from aperion.engine.waiting import answered
from aperion.naming import RESERVED_DOMAIN
from aperion.patterns import check_pattern, matches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aperion.bus import EventBus
    from aperion.engine.flight import Flight
    from aperion.events import Payload
    from aperion.receipts import Receipt

T = TypeVar("T")
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


@contextmanager
def listening(bus: EventBus, tap: Callable[[Receipt], None]) -> Iterator[None]:
    """Have a bus call ``tap`` with each event that it accepts in the block, which may be on any thread.

    Raises:
        BusNotRunningError: when the bus does not run.
    """
    stop = on_loop_of(bus, lambda: bus.listen(tap))
    try:
        yield
    finally:
        stop()


def on_loop_of(bus: EventBus, call: Callable[[], T]) -> T:
    """Return what a function returns on the loop of a running bus, called there from whichever thread this is.

    Raises:
        BusNotRunningError: when the bus does not run.
    """
    engine = bus._engine
    if engine is None or threading.get_ident() == engine.thread:
        return call()
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def answer() -> None:
        try:
            done.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that asks
            done.set_exception(error)

    engine.loop.call_soon_threadsafe(answer)
    answered(done, engine.loop, None)
    return done.result()


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
