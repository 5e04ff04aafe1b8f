"""Sync handlers in worker threads: bounded, and counted until they really end."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextvars import Context, ContextVar, copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from aperion.errors import ThreadsExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable


class Job:
    """One call in a worker thread."""

    # Mutable: abandoned, ended and the result, all on the loop's thread but for failure and result.
    __slots__ = ("abandoned", "call", "context", "delivery", "ended", "failure", "future", "name", "on_end", "result")

    def __init__(self, name: str, call: Callable[[], Any], future: asyncio.Future[None]) -> None:
        self.name = name
        self.call = call
        self.context: Context = copy_context()
        self.future = future
        self.delivery: tuple[str, str] | None = None  # event id and subscription
        self.abandoned = False
        self.ended = False
        self.result: Any = None
        self.failure: BaseException | None = None
        self.on_end: Callable[[], None] | None = None

    def run(self) -> None:
        """Make the call; whatever it raises is kept, SystemExit too: threads do not die of handlers."""
        try:
            self.result = self.context.run(self._run)
        except BaseException as error:  # noqa: BLE001 - raised again in the task that waits
            self.failure = error

    def _run(self) -> Any:
        _job.set(self)
        return self.call()


_job: ContextVar[Job | None] = ContextVar("aperion_job", default=None)


def check_cancelled() -> None:
    """Stop a sync handler whose delivery has timed out, so that its thread can be used again.

    Call it between steps of long work. Outside a sync handler, and in one whose delivery still
    waits for it, it does nothing.

    Raises:
        asyncio.CancelledError: when nobody waits for the handler any more. As with anyio, let it
            pass: ``except Exception`` does.
    """
    job = _job.get()
    if job is not None and job.abandoned:
        raise asyncio.CancelledError(f"the delivery to {job.name} has timed out")


class WorkerThreads:
    """At most ``limit`` threads for the sync handlers of one bus.

    A thread cannot be killed. When its delivery times out, nobody waits for it any more, but it is
    counted as abandoned and its place is not given away until the handler returns. Threads are
    daemons, so that a stuck one does not delay the exit of the process (those of anyio are not, and
    anyio gives the limiter's token back at once: 40 live threads were measured at a limit of 4).

    Used on the thread of the loop only, but for the threads' own loop.
    """

    # Mutable: all of it. A place is taken in _acquire and given back in _ended, nowhere else.
    __slots__ = ("_closed", "_idle", "_jobs", "_loop", "_waiting", "busy", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.busy = 0
        self._loop = asyncio.get_running_loop()
        self._idle: deque[SimpleQueue[Job | None]] = deque()
        self._jobs: set[Job] = set()  # abandoned and still running
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False

    @property
    def abandoned(self) -> int:
        """Threads that nobody waits for any more and that still run."""
        return len(self._jobs)

    def is_stuck(self, event_id: str, subscription: str) -> bool:
        """Tell whether an abandoned thread still runs a delivery."""
        return any(job.delivery == (event_id, subscription) for job in self._jobs)

    async def run(self, name: str, call: Callable[[], Any], started: Callable[[Job], None]) -> Any:
        """Make the call in a thread and return its result; on cancellation the thread is abandoned.

        Args:
            name: who runs, for errors.
            call: what to run.
            started: called with the job just before a thread gets it, when waiting for one is over;
                what it raises keeps the call from being made.

        Raises:
            ThreadsExhaustedError: when every thread is abandoned.
        """
        await self._acquire()
        job = Job(name, call, self._loop.create_future())
        try:
            started(job)
        except BaseException:
            self._give_back()
            raise
        self._hand_over(job)
        try:
            await job.future
        except BaseException:
            self._abandon(job)
            raise
        if job.failure is not None:
            raise job.failure
        return job.result

    def close(self) -> None:
        """Let idle threads end now and busy ones when they are done."""
        self._closed = True
        while self._idle:
            self._idle.pop().put(None)

    async def _acquire(self) -> None:
        if self.busy < self.limit:
            self.busy += 1
            return
        if self.abandoned >= self.limit:
            raise self._exhausted()
        place = self._loop.create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._give_back()
            raise

    def _hand_over(self, job: Job) -> None:
        if self._idle:
            self._idle.pop().put(job)
            return
        inbox: SimpleQueue[Job | None] = SimpleQueue()
        inbox.put(job)
        threading.Thread(target=self._work, args=(inbox,), name="aperion-worker", daemon=True).start()

    def _work(self, inbox: SimpleQueue[Job | None]) -> None:
        while (job := inbox.get()) is not None:
            job.run()
            try:
                self._loop.call_soon_threadsafe(self._ended, job, inbox)
            except RuntimeError:  # the loop is closed: nobody is left to be told
                return
            del job  # an idle thread must not keep the last event alive

    def _ended(self, job: Job, inbox: SimpleQueue[Job | None]) -> None:
        job.ended = True
        self._jobs.discard(job)
        if self._closed:
            inbox.put(None)
        else:
            self._idle.append(inbox)
        if not job.future.done():
            job.future.set_result(None)
        self._give_back()
        if job.on_end is not None:
            job.on_end()

    def _give_back(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.busy -= 1

    def _abandon(self, job: Job) -> None:
        if job.ended:
            return
        job.abandoned = True
        self._jobs.add(job)
        while self.abandoned >= self.limit and self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_exception(self._exhausted())

    def _exhausted(self) -> ThreadsExhaustedError:
        return ThreadsExhaustedError(self.limit, sorted({job.name for job in self._jobs}))
