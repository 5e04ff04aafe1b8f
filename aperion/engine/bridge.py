"""Emitting from other threads: the event is made and accepted on the loop, while the thread waits."""

from __future__ import annotations

import asyncio
import concurrent.futures
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeAlias

from aperion.engine.flight import Flight
from aperion.engine.waiting import answered
from aperion.errors import BusNotRunningError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aperion.engine.lifecycle import Engine
    from aperion.events import Event

_Make: TypeAlias = "Callable[[], Event[Any] | Flight]"
_Done: TypeAlias = "concurrent.futures.Future[Flight]"


class Bridge:
    """The threads that wait for a bus to accept an event."""

    # Mutable: both, by the waiting threads and the loop; each has entries of its own there.
    __slots__ = ("_tasks", "_waiting")

    def __init__(self) -> None:
        self._waiting: set[_Done] = set()
        self._tasks: dict[_Done, asyncio.Task[None]] = {}  # of those that cannot be accepted at once

    def emit(self, engine: Engine, make: _Make, timeout: float | None) -> Flight:
        """Have the loop make an event and accept it, in the context of this thread; blocks.

        Raises:
            TimeoutError: when it was not accepted within ``timeout`` seconds, or not on the disk.
            BusNotRunningError: when the bus stops, or has.
        """
        done: _Done = concurrent.futures.Future()
        self._waiting.add(done)
        try:
            try:
                engine.loop.call_soon_threadsafe(self._make, engine, make, done, context=copy_context())
            except RuntimeError:  # the loop is closed
                raise not_running("emit_from_thread") from None
            if not answered(done, engine.loop, timeout):
                with suppress(RuntimeError):  # the loop is closed
                    engine.loop.call_soon_threadsafe(self._give_up, done)
                answered(done, engine.loop, None)
            return done.result()
        except _LeftError as left:
            if timeout is None:
                raise BusNotRunningError(str(left)) from None
            if left.held:
                text = "the disk did not have the record of the event in time; it was dropped"
            else:
                text = f"there was no room for the event within {timeout:g} s; it was not accepted"
            raise TimeoutError(text) from None
        finally:
            self._waiting.discard(done)

    def close(self) -> None:
        """Tell the threads that wait that the bus has stopped."""
        for done in tuple(self._waiting):
            _answer(done, error=BusNotRunningError("the bus stopped before there was room for the event"))

    def _make(self, engine: Engine, make: _Make, done: _Done) -> None:
        if done.done():
            return
        try:
            made = make()
            flight = made if isinstance(made, Flight) else engine.admission.enter(made)
            if flight is not None and flight is not made and not flight.dropped:
                engine.admission.queue(flight)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that emits
            _answer(done, error=error)
            return
        if flight is not None and flight not in engine.admission.held:
            _answer(done, flight)
            return
        task = engine.loop.create_task(self._accept(engine, made, flight, done), name="aperion emit from a thread")
        self._tasks[done] = task
        task.add_done_callback(lambda _: self._ended(engine, task, flight, done))

    def _ended(self, engine: Engine, task: asyncio.Task[None], flight: Flight | None, done: _Done) -> None:
        """Answer for a task that was cancelled, perhaps before its first step; what waits for the disk is dropped."""
        self._tasks.pop(done, None)
        if task.cancelled():
            synced = engine.admission.held.get(flight) if flight is not None else None
            if synced is not None:
                synced.cancel()
            _answer(done, error=_LeftError(held=flight is not None))

    async def _accept(self, engine: Engine, event: Any, flight: Flight | None, done: _Done) -> None:
        """Wait for a place, and for the disk."""
        admission = engine.admission
        try:
            if flight is None:
                flight = await admission.enter_when_free(event)
                admission.queue(flight)
            await admission.until_synced(flight)
        except asyncio.CancelledError:
            _answer(done, error=_LeftError(held=flight is not None))
        except BaseException as error:  # noqa: BLE001 - raised in the thread that emits
            _answer(done, error=error)
        else:
            _answer(done, flight)

    def _give_up(self, done: _Done) -> None:
        task = self._tasks.get(done)
        if task is not None:
            task.cancel()
        else:  # unless it was accepted at the last moment
            _answer(done, error=_LeftError(held=False))


class _LeftError(Exception):
    """The thread has given up, or the loop goes down."""

    def __init__(self, *, held: bool) -> None:
        super().__init__("the bus stopped before there was room for the event")
        self.held = held


def not_running(method: str) -> BusNotRunningError:
    """Return the error of a method that needs a running bus."""
    return BusNotRunningError(
        f"{method}() needs a running bus; use it inside 'async with bus:' or aperion.run(bus, main)"
    )


def _answer(done: _Done, flight: Flight | None = None, error: BaseException | None = None) -> None:
    """Tell a waiting thread, unless it has its answer."""
    with suppress(concurrent.futures.InvalidStateError):
        if error is not None:
            done.set_exception(error)
        elif flight is not None:
            done.set_result(flight)
