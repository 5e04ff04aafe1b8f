"""Waiting for events to settle: in tasks, in threads and in handlers, which lend their place and never wait for themselves."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from aperion.context import here_now
from aperion.engine.threads import in_handler_thread
from aperion.errors import BusNotRunningError, DeadlockError, WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from aperion.engine.flight import Flight, Host, Unit

_SLICE = 0.5
"""Seconds after which a thread that waits for a loop looks whether that is closed, and will never answer."""


class Waiting:
    """Who waits for what on one bus."""

    # Mutable: the events that handlers of an event wait for, on the loop's thread.
    __slots__ = ("_awaited", "_host", "_loop", "_thread")

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loop = host.loop
        self._thread = threading.get_ident()
        self._awaited: dict[Flight, list[Flight]] = {}

    def unit_here(self) -> Unit | None:
        """Return the work of an engine that this code is part of, unless that has settled."""
        here = here_now()
        unit: Unit | None = None if here is None else here.unit
        return None if unit is None or unit.flight.settled else unit

    def handler_here(self) -> Unit | None:
        """Return that work where its handler itself asks, and not a task that it has started."""
        unit = self.unit_here()
        return unit if unit is not None and self.is_own(unit) else None

    def is_own(self, unit: Unit) -> bool:
        """Tell whether the task that runs here is the one that runs a unit."""
        task = asyncio.current_task()
        if unit.rest is not None:
            return unit.rest.task is task
        return not unit.placed or unit.flight.engine.owns(task)

    def refuse_inside(self, method: str) -> None:
        """Refuse what would wait for the handler that calls it.

        Raises:
            DeadlockError: in a handler.
        """
        unit = self.handler_here()
        if unit is not None and unit.flight.engine is self._host:
            raise DeadlockError(
                f"{method} in a handler of {unit.event.event_type!r} would wait for that handler itself; "
                "call it outside of handlers, or in a task of its own"
            )

    def check_no_cycle(self, target: Flight, unit: Unit | None) -> None:
        """Refuse to wait for an event that waits for the unit itself.

        Raises:
            DeadlockError: naming the events on the way back.
        """
        mine: set[Flight] = set()
        while unit is not None:
            mine.add(unit.flight)
            unit = unit.within
        paths: list[tuple[Flight, ...]] = [(target,)]
        seen = {target}
        while paths:
            path = paths.pop()
            if path[-1] in mine:
                chain = ", which waits for ".join(f"{flight.event.event_type!r}" for flight in path)
                raise DeadlockError(f"this would wait for ever: {chain}, whose handler waits here")
            holder = path[-1].engine.holder(path[-1])
            for blocker in (*path[-1].engine.waiting.awaited(path[-1]), *([holder] if holder is not None else [])):
                if blocker not in seen:
                    seen.add(blocker)
                    paths.append((*path, blocker))

    @contextmanager
    def lent(self, unit: Unit | None) -> Iterator[None]:
        """Lend the place of a unit to others while it waits here."""
        if unit is None or unit.flight.engine.loop is not self._loop:  # of a bus that another thread runs
            yield
            return
        host = unit.flight.engine
        root = host.lend(unit)
        try:
            yield
        finally:
            host.take_back(root)

    def lent_here(self) -> AbstractContextManager[None]:
        """Lend the place of the handler that waits here, if any."""
        return self.lent(self.unit_here())

    async def wait_for(self, flight: Flight) -> None:
        """Wait until an event has settled.

        Raises:
            DeadlockError: when it waits for whoever waits here.
            WrongLoopError: in another loop.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoopError("settled")
        handler = self.handler_here()
        if handler is not None:
            self.check_no_cycle(flight, handler)
        unit, future = self.unit_here(), self._loop.create_future()
        flight.when_settled(future, lambda: _set(future))
        with self._noted(handler, flight), self.lent(unit):
            try:
                await future
            finally:
                if flight.waiters is not None:
                    flight.waiters.pop(future, None)

    def wait_in_thread(self, flight: Flight, timeout: float | None) -> None:
        """Do the same in another thread; blocks it.

        Raises:
            TimeoutError: when it has not settled in time.
            DeadlockError: when it waits for the handler that waits here.
            WrongLoopError: on the thread of the loop.
        """
        if threading.get_ident() == self._thread:
            raise WrongLoopError("settled_from_thread", inside=True)
        unit = self.unit_here()
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        undo: list[Any] = []
        is_handler = unit is not None and in_handler_thread()

        def begin() -> None:
            try:
                if flight.settled:
                    done.set_result(None)
                    return
                if is_handler:
                    self.check_no_cycle(flight, unit)
                flight.when_settled(done, lambda: _answer(done))
                if is_handler and unit is not None and unit.flight.engine.loop is self._loop:
                    undo.append(unit.flight.engine.lend_thread(unit))
            except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
                done.set_exception(error)

        def end() -> None:
            if flight.waiters is not None:
                flight.waiters.pop(done, None)
            for each in undo:
                each()

        try:
            self._loop.call_soon_threadsafe(begin)
            if not answered(done, self._loop, timeout):
                raise TimeoutError(
                    f"{flight.event.event_type} {flight.event.event_id} has not settled within {timeout:g} s"
                )
            done.result()
        except RuntimeError as error:
            if isinstance(error, DeadlockError):
                raise
            return  # the loop is closed, and everything has settled
        finally:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(end)

    @contextmanager
    def _noted(self, unit: Unit | None, flight: Flight) -> Iterator[None]:
        """Note for whom the handlers of an event wait, as long as they do."""
        if unit is None:
            yield
            return
        waiting = unit.flight.engine.waiting
        waiting.begin(unit.flight, flight)
        try:
            yield
        finally:
            waiting.end(unit.flight, flight)

    def awaited(self, flight: Flight) -> tuple[Flight, ...]:
        """Return the events that handlers of an event wait for."""
        return tuple(self._awaited.get(flight, ()))

    def begin(self, flight: Flight, awaited: Flight) -> None:
        """Take note that a handler of an event waits for another event."""
        self._awaited.setdefault(flight, []).append(awaited)

    def end(self, flight: Flight, awaited: Flight) -> None:
        """Take note that it does not any more."""
        left = self._awaited[flight]
        left.remove(awaited)
        if not left:
            del self._awaited[flight]


def answered(done: concurrent.futures.Future[Any], loop: asyncio.AbstractEventLoop, timeout: float | None) -> bool:
    """Wait in a thread for what a loop is to answer; False when the time is over.

    Raises:
        BusNotRunningError: when the loop is closed, and has not answered.
    """
    until = None if timeout is None else monotonic() + timeout
    while True:
        left = _SLICE if until is None else min(_SLICE, max(0.0, until - monotonic()))
        if concurrent.futures.wait([done], left).done:
            return True
        if until is not None and monotonic() >= until:
            return False
        if loop.is_closed() and not done.done():
            raise BusNotRunningError("the loop of the bus was closed before it could answer")


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _answer(done: concurrent.futures.Future[None]) -> None:
    with suppress(concurrent.futures.InvalidStateError):
        done.set_result(None)
