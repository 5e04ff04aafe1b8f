"""The tasks that run handlers: as many as events are handled at a time, started when there is something to do."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from contextvars import copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio

from aperion._runtime.deadlines import Deadlines
from aperion._runtime.driver import Suspended
from aperion.delivery import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from contextvars import Context

    from anyio.abc import TaskStatus

    from aperion._runtime.backlog import Backlog, Rerun
    from aperion._runtime.execution import Execution
    from aperion._runtime.reporter import Reporter
    from aperion.delivery import Run, Subscription

_EVENTS_BEFORE_YIELD = 64  # handlers that never wait must not keep the loop from everything else


class Workers:
    """Tasks that take from the backlog what is ready, and run its handlers; each carries on where others wait."""

    # Mutable: all of it.
    __slots__ = (
        "_backlog",
        "_calls",
        "_cancelled",
        "_closed",
        "_context",
        "_count",
        "_execution",
        "_idle",
        "_lent",
        "_limit",
        "_loop",
        "_reporter",
        "_resolve",
        "_tasks",
        "_wanted",
        "awake",
        "deadlines",
        "suspended",
    )

    def __init__(
        self,
        limit: int,
        backlog: Backlog,
        execution: Execution,
        reporter: Reporter,
        resolve: Callable[[str], tuple[Subscription, ...]],
    ) -> None:
        self._limit = limit
        self._backlog = backlog
        self._execution = execution
        self._reporter = reporter
        self._resolve = resolve
        self._loop = asyncio.get_running_loop()
        self.deadlines = Deadlines(self._loop)
        self._context: Context = copy_context()
        self.suspended: dict[Run, Suspended] = {}  # what waits in a handler, and where
        self.awake = 0  # workers that will look at the backlog before they wait for anything
        self._count = 0
        self._wanted = 0  # workers that the host has yet to start
        self._lent = 0
        self._idle: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._calls: asyncio.Future[None] = self._loop.create_future()  # wakes the host
        self._closed = False
        self._cancelled = False

    def wake(self) -> None:
        """Have one worker look at the backlog; when it has to wait in a handler, it wakes the next."""
        while self._idle:
            future = self._idle.pop()
            if not future.done():
                self.awake += 1
                future.set_result(None)
                return
        if self._count < self._limit + self._lent:
            self._count += 1
            self.awake += 1
            self._wanted += 1
            self._call_host()

    async def host(self, *, task_status: TaskStatus[None]) -> None:
        """Start workers when they are wanted, until closed; then cancel them and wait until they have ended."""
        # Shielded: when the task around the bus is cancelled, workers go on until the drain is over.
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                task_status.started()
                while not self._closed:
                    await self._calls
                    self._calls = self._loop.create_future()
                    while self._wanted:
                        self._wanted -= 1
                        group.start_soon(self._work, name="aperion worker")
                self._cancelled = True
                group.cancel_scope.cancel()
        self.deadlines.close()

    def close(self) -> None:
        """Have the host end."""
        self._closed = True
        self._call_host()

    def _call_host(self) -> None:
        """Have the host start workers, or close: here may be a callback, where anyio finds no task to start from."""
        if not self._calls.done():
            self._calls.set_result(None)

    async def run_here(self, run: Run, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run handlers in the calling task, in a context of their own."""
        context = copy_context()
        try:
            waiting = context.run(coroutine.send, None)
        except StopIteration:
            return
        rest = Suspended(coroutine, context, waiting, run, self.deadlines)
        task = asyncio.current_task(self._loop)
        if task is None:  # pragma: no cover - a coroutine that runs has a task
            return
        run.task = task
        run.cancelling = task.cancelling()
        self.suspended[run] = rest
        try:
            await rest
        finally:
            self.suspended.pop(run, None)

    def is_ours(self, task: asyncio.Task[Any]) -> bool:
        """Tell whether a task is a worker that nobody meant to cancel."""
        return task in self._tasks and not self._cancelled

    @contextmanager
    def place_lent(self) -> Iterator[None]:
        """Let another event be handled while a handler waits for one."""
        self.lend_place()
        try:
            yield
        finally:
            self.take_place_back()

    def lend_place(self) -> None:
        """Allow one more worker."""
        self._lent += 1
        if self._backlog.ready and not self.awake:
            self.wake()

    def take_place_back(self) -> None:
        """Allow one less; a worker too many ends when it has nothing to do."""
        self._lent -= 1

    def from_thread(self, callback: Callable[[], None]) -> None:
        """Call back on the loop, from another thread."""
        self._loop.call_soon_threadsafe(callback)

    async def _work(self) -> None:
        task = asyncio.current_task(self._loop)
        if task is None:  # pragma: no cover - a coroutine that runs has a task
            return
        self._tasks.add(task)
        try:
            while True:
                await self._work_off(task)
                self.awake -= 1
                if self._count > self._limit + self._lent:
                    return
                await self._rest()
        finally:
            self._count -= 1
            self._tasks.discard(task)

    async def _work_off(self, task: asyncio.Task[Any]) -> None:
        """Handle what is ready, until nothing is."""
        ready, execution, copy, count = self._backlog.ready, self._execution, self._context.copy, 0
        while ready:
            unit = ready.popleft()
            if type(unit) is Receipt:
                if unit.is_settled:  # dropped while it stood in line
                    continue
                self._begin(unit)
                coroutine = execution.deliver(unit)
            else:
                coroutine = execution.redeliver(unit)  # type: ignore[arg-type]  # the other kind of unit
            context = copy()
            try:
                waiting = context.run(coroutine.send, None)
            except StopIteration:
                count += 1
                if count % _EVENTS_BEFORE_YIELD == 0:
                    await asyncio.sleep(0)
            else:
                await self._finish(task, Suspended(coroutine, context, waiting, unit, self.deadlines), unit)

    def _begin(self, receipt: Receipt) -> None:
        receipt.begun = True
        receipt.plan = receipt.plan or self._resolve(receipt.event.event_type)
        if self._reporter.observes and not receipt.system:
            self._reporter.begun(receipt.event, monotonic() - receipt.started)

    async def _finish(self, task: asyncio.Task[Any], rest: Suspended, run: Receipt | Rerun) -> None:
        run.task = task
        self.suspended[run] = rest
        self.awake -= 1
        if self._backlog.ready and not self.awake:
            self.wake()
        try:
            await rest
        finally:
            self.awake += 1
            self.suspended.pop(run, None)

    async def _rest(self) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._idle.append(future)
        try:
            await future
        except BaseException:
            if not future.cancelled():  # woken and cancelled at once: somebody else has to look
                self.awake -= 1
                if self._backlog.ready:
                    self.wake()
            raise
