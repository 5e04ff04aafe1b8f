"""The tasks that run handlers: as many as events are handled at a time, started when there is something to do."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from aperion.engine.driver import Driver
from aperion.engine.flight import DONE, Flight, Halt, Park, root_of

if TYPE_CHECKING:
    from contextvars import Context

    from aperion.engine.deadlines import Deadlines
    from aperion.engine.facts import Facts
    from aperion.engine.flight import Unit
    from aperion.engine.queue import Queue
    from aperion.engine.settlement import Settlement
    from aperion.engine.slots import Slots, Turn

_EVENTS_BEFORE_YIELD = 64  # handlers that never wait must not keep the loop from everything else


class Runs(Protocol):
    """What knows how the handlers of a unit are run."""

    free: list[Any]

    def begin(self, unit: Unit, /) -> tuple[Any, Any]:
        """Return a coroutine that runs the handlers of a unit, and what it has to be sent first."""

    def another(self) -> Any:
        """Return one more coroutine that waits for an event."""

    def keep(self, run: Any, /) -> None:
        """Keep a coroutine for another event."""


class Workers:
    """Tasks that take from the queue what is ready, and run its handlers; each carries on where others wait.

    A worker that waits in a handler has a place; no further event begins while all are taken. Events that
    wait for a thread have none: they are parked, and ready again once there is one.
    """

    # Mutable: all of it, on the loop's thread.
    __slots__ = (
        *("_calls", "_closed", "_count", "_deadlines", "_execution", "_facts", "_idle", "_limit", "_loop"),
        *("_queue", "_settlement", "_tasks", "_wanted", "awake", "context", "parked", "places", "running"),
    )

    def __init__(
        self,
        limit: int,
        queue: Queue,
        execution: Runs,
        settlement: Settlement,
        deadlines: Deadlines,
        facts: Facts,
    ) -> None:
        self._limit = limit
        self._queue = queue
        self._execution = execution
        self._settlement = settlement
        self._deadlines = deadlines
        self._facts = facts
        self._loop = asyncio.get_running_loop()
        self.context: Context = copy_context()
        self.places = limit
        self.running: dict[Unit, Driver] = {}  # what waits in a handler, and where; dispatches too
        self.parked: dict[Unit, tuple[Slots, Turn]] = {}  # what waits for a thread or a process, without a task
        self.awake = 0  # workers that will look at the queue before they wait for anything
        self._count = 0
        self._wanted = 0  # workers that the host has yet to start
        self._idle: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._calls: asyncio.Future[None] = self._loop.create_future()  # wakes the host
        self._closed = False

    # Their tasks

    def wake(self) -> None:
        """Have one worker look at the queue; when it has to wait in a handler, it wakes the next."""
        if self.awake or self.places <= 0 or self._closed:
            return
        while self._idle:
            future = self._idle.pop()
            if not future.done():
                self.awake += 1
                future.set_result(None)
                return
        self._count += 1
        self.awake += 1
        self._wanted += 1
        self._call_host()

    async def host(self) -> None:
        """Start workers when they are wanted, until closed; return when all have ended."""
        async with anyio.create_task_group() as group:
            try:
                while not self._closed:
                    await self._calls
                    self._calls = self._loop.create_future()
                    while self._wanted:
                        self._wanted -= 1
                        group.start_soon(self._work, name="aperion worker")
            finally:
                self._release()

    def close(self) -> None:
        """Let workers end that have nothing to do, and begin nothing more."""
        self._closed = True
        self._release()
        self._call_host()

    def _release(self) -> None:
        self._closed = True
        idle, self._idle = self._idle, []
        for future in idle:
            if not future.done():
                self.awake += 1
                future.set_result(None)

    def _call_host(self) -> None:
        """Have the host start workers, or close: here may be a callback, where anyio finds no task to start from."""
        if not self._calls.done():
            self._calls.set_result(None)

    @property
    def is_starting(self) -> bool:
        """Whether a worker was called that has not begun."""
        return self._count > len(self._tasks)

    def owns(self, task: asyncio.Task[Any] | None) -> bool:
        """Tell whether a task is a worker."""
        return task in self._tasks

    async def _work(self) -> None:
        task = asyncio.current_task(self._loop)
        if task is None:  # pragma: no cover - a coroutine that runs has a task
            return
        self._tasks.add(task)
        try:
            while True:
                try:
                    await self._work_off(task)
                finally:
                    self.awake -= 1
                if self._closed or self._count > self._limit:
                    return
                await self._rest()
        finally:
            self._count -= 1
            self._tasks.discard(task)
            if self._queue.ready:  # it was cancelled from outside: somebody else has to look
                self.wake()

    async def _work_off(self, task: asyncio.Task[Any]) -> None:
        """Handle what is ready, until nothing is, or every place is taken."""
        queue, execution, copy, count = self._queue, self._execution, self.context.copy, 0
        ready, begun, free = queue.ready, self._facts.begun, execution.free
        while ready and self.places > 0 and not self._closed:
            unit = ready.popleft()
            first: Any = None
            if unit.parked is not None:
                (coroutine, context), unit.parked = unit.parked, None
            elif type(unit) is Flight:
                if unit.settled:  # dropped while it stood in line
                    queue.passed_over()
                    continue
                if unit.system or queue.by_age:
                    queue.begun(unit)
                else:  # the same, without the call
                    unit.begun = True
                    queue.queued -= 1
                unit.placed = True
                if begun is not None and not unit.system:
                    begun(unit.event, monotonic() - unit.started)
                coroutine, context, first = free.pop() if free else execution.another(), copy(), unit
            else:
                queue.again -= 1
                unit.placed = True
                (coroutine, first), context = execution.begin(unit), copy()
            try:
                waiting = context.run(coroutine.send, first)
            except StopIteration:
                pass
            except BaseException as error:  # noqa: BLE001 - what comes out here is a fault of the engine
                self._settlement.broke(unit, error)
            else:
                if waiting is DONE:
                    free.append(coroutine)
                elif type(waiting) is Park:
                    unit.parked = coroutine, context
                else:
                    await self._finish(Driver(unit, coroutine, context, waiting, self._deadlines, task))
                    count = 0
            if task.cancelling():
                await _absorb(task)
            count += 1
            if count % _EVENTS_BEFORE_YIELD == 0:
                await asyncio.sleep(0)

    async def _finish(self, driver: Driver) -> None:
        """See a unit through that waits for something; somebody else looks at the queue meanwhile."""
        unit = driver.unit
        self.running[unit] = driver
        self.places -= 1
        self.awake -= 1
        if self._queue.ready:
            self.wake()
        try:
            self._ended(driver, await driver)
        except BaseException as error:
            self._settlement.broke(unit, error)
            if isinstance(error, GeneratorExit):
                raise
        finally:
            self.awake += 1
            self.places += not unit.lent  # lent, it was given back before
            unit.lent = 0
            self.running.pop(unit, None)

    def _ended(self, driver: Driver, how: Any) -> None:
        """Take note of how a unit ended that had to wait."""
        if how is None:
            self._settlement.left_behind(driver.unit)
        elif how is DONE and type(driver.unit) is Flight:
            self._execution.keep(driver.coroutine)

    async def _rest(self) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._idle.append(future)
        try:
            await future
        except BaseException:
            if not future.cancelled():  # woken and cancelled at once
                self.awake -= 1
            raise

    # Dispatches

    async def run_here(self, unit: Unit) -> None:
        """Run a unit in the task that dispatches, in a context of its own."""
        (coroutine, first), context = self._execution.begin(unit), self.context.copy()
        try:
            waiting = context.run(coroutine.send, first)
        except StopIteration:
            return
        if waiting is DONE:
            self._execution.keep(coroutine)
        else:
            await self.finish_here(unit, coroutine, context, waiting)

    async def finish_here(self, unit: Unit, coroutine: Any, context: Context, waiting: Any) -> None:
        """Make the rest of the steps in the task that dispatches."""
        task = asyncio.current_task(self._loop)
        if task is None:  # pragma: no cover - a coroutine that runs has a task
            return
        driver = Driver(unit, coroutine, context, waiting, self._deadlines, task)
        self.running[unit] = driver
        around = unit.within
        is_own = around is not None and (around.rest is None or around.rest.task is task)
        outer = around.flight if around is not None and is_own else None  # and not of a task that a handler has started
        if outer is not None:
            outer.engine.waiting.begin(outer, unit.flight)
        try:
            self._ended(driver, await driver)
        finally:
            self.running.pop(unit, None)
            if outer is not None:
                outer.engine.waiting.end(outer, unit.flight)

    # Places

    def lend(self, unit: Unit | None) -> Unit | None:
        """Let another event begin while a handler waits for one; return who has lent his place, if anybody."""
        root = root_of(unit) if unit is not None else None
        if root is None or not root.placed or root.parked is not None or root.passed or root.flight.settled:
            return None  # a task that its handler has left behind may ask when there is no place to lend any more
        root.lent += 1
        if root.lent == 1:
            self.places += 1
            if self._queue.ready:
                self.wake()
        return root

    def take_back(self, root: Unit | None) -> None:
        """End that; no event begins before one has ended, where all places are taken."""
        if root is not None and root.lent:
            root.lent -= 1
            if not root.lent:
                self.places -= 1

    # Parking

    def ready_again(self, unit: Unit) -> None:
        """Queue a unit again that was parked; before others, since it began before them."""
        self.parked.pop(unit, None)
        self._queue.ready.appendleft(unit)
        self.wake()

    def unpark(self, unit: Unit) -> None:
        """Have a parked unit end now, since the drain is over."""
        slots, turn = self.parked.pop(unit, (None, None))
        if slots is not None and turn is not None:
            slots.leave(turn)
        unit.halt = Halt.STOPPED
        (coroutine, context), unit.parked = unit.parked, None
        try:
            if context.run(coroutine.throw, asyncio.CancelledError()) is DONE:
                self._execution.keep(coroutine)
        except StopIteration:
            return
        except BaseException as error:  # noqa: BLE001 - a fault of the engine
            self._settlement.broke(unit, error)


async def _absorb(task: asyncio.Task[Any]) -> None:
    """Take a cancellation of a worker away that a handler has left: the next event must not meet it."""
    while task.cancelling():
        task.uncancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
