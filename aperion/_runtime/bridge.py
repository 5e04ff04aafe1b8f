"""Emitting from other threads: the event is made and accepted on the loop, while the thread waits."""

from __future__ import annotations

import concurrent.futures
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeAlias

from aperion.delivery import Receipt
from aperion.errors import BusNotRunningError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aperion._runtime.runtime import Runtime
    from aperion.events import Event

_Make: TypeAlias = "Callable[[], Event[Any] | Receipt]"
_Done: TypeAlias = "concurrent.futures.Future[Receipt]"


class Bridge:
    """The threads that wait for a bus to accept an event."""

    # Mutable: both, by the waiting threads and the loop; each has entries of its own there.
    __slots__ = ("_held", "_waiting")

    def __init__(self) -> None:
        self._waiting: set[_Done] = set()
        self._held: dict[_Done, asyncio.Future[None]] = {}  # accepted, and not on the disk yet

    def emit(self, runtime: Runtime, make: _Make, timeout: float | None) -> Receipt:
        """Have the loop make an event and accept it, in the context of this thread; blocks.

        Raises:
            TimeoutError: when it was not accepted within ``timeout`` seconds, or not on the disk.
            BusNotRunningError: when the bus stops, or has.
        """
        done: _Done = concurrent.futures.Future()
        self._waiting.add(done)
        try:
            runtime.loop.call_soon_threadsafe(self._make, runtime, make, done, context=copy_context())
            return done.result(timeout)
        except RuntimeError as error:
            if isinstance(error, BusNotRunningError) or not runtime.loop.is_closed():
                raise
            raise not_running("emit_from_thread") from None
        except concurrent.futures.TimeoutError:
            if not done.cancel():  # accepted at the last moment, or held until the disk has its record
                with suppress(RuntimeError):  # the loop is closed, and has answered
                    runtime.loop.call_soon_threadsafe(self._give_up_held, done)
                return done.result()
            raise TimeoutError(f"there was no room for the event within {timeout:g} s; it was not accepted") from None
        finally:
            self._waiting.discard(done)
            self._held.pop(done, None)

    def close(self) -> None:
        """Tell the threads that wait for room that the bus has stopped."""
        for waiting in tuple(self._waiting):
            waiting.set_exception(BusNotRunningError("the bus stopped before there was room for the event"))
        self._waiting.clear()

    def _make(self, runtime: Runtime, make: _Make, done: _Done) -> None:
        if done.cancelled():
            return
        try:
            event = make()
            receipt = event if isinstance(event, Receipt) else runtime.try_accept(event)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that emits
            _answer(done, error=error)
            return
        if receipt is not None:
            self._answer_when_synced(runtime, receipt, done)
            return
        place = runtime.wait_for_place()
        place.add_done_callback(lambda _: self._accept(runtime, event, place, done))  # type: ignore[arg-type]  # an event, or there was a receipt
        done.add_done_callback(
            lambda _: done.cancelled() and runtime.loop.call_soon_threadsafe(runtime.leave_line, place)
        )

    def _accept(self, runtime: Runtime, event: Event[Any], place: asyncio.Future[None], done: _Done) -> None:
        if place.cancelled():
            return
        error = place.exception()
        if error is None and not done.set_running_or_notify_cancel():
            return  # the thread has given up; its callback gives the place back
        try:
            if error is not None:
                raise error  # noqa: TRY301 - one place answers the thread
            self._answer_when_synced(runtime, runtime.accept_reserved(event), done)
        except BaseException as failure:  # noqa: BLE001 - raised in the thread that emits
            _answer(done, error=failure)

    def _answer_when_synced(self, runtime: Runtime, receipt: Receipt, done: _Done) -> None:
        synced = runtime.held.get(receipt)
        if synced is None:
            _answer(done, receipt)
        elif not done.running() and not done.set_running_or_notify_cancel():
            synced.cancel()  # the thread has given up
        else:
            self._held[done] = synced
            synced.add_done_callback(lambda _: _answer_synced(synced, receipt, done))

    def _give_up_held(self, done: _Done) -> None:
        synced = self._held.get(done)
        if synced is not None:
            synced.cancel()


def not_running(method: str) -> BusNotRunningError:
    """Return the error of a method that needs a running bus."""
    return BusNotRunningError(
        f"{method}() needs a running bus; use it inside 'async with bus:' or aperion.run(bus, main)"
    )


def _answer_synced(synced: asyncio.Future[None], receipt: Receipt, done: _Done) -> None:
    if synced.cancelled():
        _answer(done, error=TimeoutError("the disk did not have the record of the event in time; it was dropped"))
    elif synced.exception() is not None:
        _answer(done, error=synced.exception())
    else:
        _answer(done, receipt)


def _answer(done: _Done, receipt: Receipt | None = None, error: BaseException | None = None) -> None:
    """Tell a waiting thread, unless it has stopped waiting."""
    try:
        if error is not None:
            done.set_exception(error)
        elif receipt is not None:
            done.set_result(receipt)
    except concurrent.futures.InvalidStateError:
        pass
