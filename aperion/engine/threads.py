"""Sync handlers in worker threads: bounded, and counted until they really end."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from aperion.engine.slots import Slots
from aperion.errors import ThreadsExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable


class Job:
    """One call in a worker thread."""

    # Mutable: all but what it is made of; abandoned and on_end on the loop's thread, the rest once by its own.
    __slots__ = ("abandoned", "call", "context", "delivery", "ended", "failure", "future", "name", "on_end", "result")

    def __init__(self, name: str, delivery: tuple[str, str], call: Callable[[], Any]) -> None:
        self.name = name
        self.delivery = delivery  # event id and subscription
        self.call = call
        self.context: Context = copy_context()
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
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


def in_handler_thread() -> bool:
    """Tell whether this code runs in the thread of a sync handler."""
    return _job.get() is not None


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
    """At most ``limit`` threads for the sync handlers of one bus, over all its lives.

    A thread cannot be killed. When its delivery times out, nobody waits for it any more, but it is
    counted as abandoned and its slot is not given away until the handler returns, also when the bus has
    stopped and started again meanwhile. Threads are daemons, so that a stuck one does not delay the exit of
    the process (those of anyio are not, and anyio gives the limiter's token back at once: 40 live threads
    were measured at a limit of 4).
    """

    # Mutable: the loop and whether it is closed, by the bus; the jobs and the idle threads under the lock.
    __slots__ = ("_abandoned", "_idle", "_lock", "_loop", "_open", "_running", "slots")

    def __init__(self, limit: int) -> None:
        self.slots = Slots(limit)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = False
        self._idle: list[SimpleQueue[Job | None]] = []
        self._running: dict[Job, None] = {}
        self._abandoned: dict[Job, None] = {}

    @property
    def abandoned(self) -> int:
        """Threads that nobody waits for any more and that still run."""
        return len(self._abandoned)

    @property
    def running(self) -> tuple[Job, ...]:
        """The calls that are under way and awaited."""
        with self._lock:
            return tuple(self._running)

    @property
    def are_exhausted(self) -> bool:
        """Whether every thread is abandoned."""
        return len(self._abandoned) >= self.slots.limit + self.slots.lent

    def is_stuck(self, event_id: str, subscription: str) -> bool:
        """Tell whether an abandoned thread still runs a delivery."""
        with self._lock:
            return any(job.delivery == (event_id, subscription) for job in self._abandoned)

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to work for a bus that starts on this loop."""
        self._loop, self._open = loop, True
        self.slots.lend(-self.slots.lent)  # what a loop that is gone has not taken back

    def close(self) -> None:
        """Let idle threads end now and busy ones when they are done."""
        with self._lock:
            self._open = False
            idle, self._idle = self._idle, []
        for inbox in idle:
            inbox.put(None)

    async def run(self, job: Job) -> Any:
        """Make a call in a thread, on a slot that was taken for it, and return its result.

        The slot is given back when the call has ended, whatever happens here; on cancellation the thread is
        abandoned.

        Raises:
            RuntimeError: when no thread can be started.
        """
        try:
            self._hand_over(job)
        except BaseException:
            self.slots.release()
            self.slots.grant()
            raise
        try:
            await job.future
        except BaseException:
            self._abandon(job)
            raise
        if job.failure is not None:
            raise job.failure
        return job.result

    def exhausted(self) -> ThreadsExhaustedError:
        """Return the error of a delivery for which there is no thread."""
        with self._lock:
            names = {job.name for job in self._abandoned}
        return ThreadsExhaustedError(self.slots.limit, sorted(names))

    def _hand_over(self, job: Job) -> None:
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
            self._running[job] = None
        if inbox is not None:
            inbox.put(job)
            return
        inbox = SimpleQueue()
        inbox.put(job)
        try:
            threading.Thread(target=self._work, args=(inbox,), name="aperion-worker", daemon=True).start()
        except BaseException:
            with self._lock:
                del self._running[job]
            raise

    def _work(self, inbox: SimpleQueue[Job | None]) -> None:
        while (job := inbox.get()) is not None:
            job.run()
            stays = self._ended(job, inbox)
            del job  # an idle thread must not keep the last event alive
            if not stays:
                return

    def _ended(self, job: Job, inbox: SimpleQueue[Job | None]) -> bool:
        """Give the slot back and tell the loops; on the thread that made the call. Tell whether it is used again."""
        with self._lock:
            job.ended = True
            self._running.pop(job, None)
            self._abandoned.pop(job, None)
            stays = self._open and len(self._idle) < self.slots.limit
            if stays:
                self._idle.append(inbox)
        self.slots.release()
        own, now = job.future.get_loop(), self._loop
        with suppress(RuntimeError):  # the loop is closed, and nobody waits there
            own.call_soon_threadsafe(self._tell, job)
        if now is not None and now is not own:  # the bus was started again on another loop
            with suppress(RuntimeError):
                now.call_soon_threadsafe(self.slots.grant)
        return stays

    def _tell(self, job: Job) -> None:
        if not job.future.done():
            job.future.set_result(None)
        self.slots.grant()
        if job.on_end is not None:
            job.on_end()

    def _abandon(self, job: Job) -> None:
        with self._lock:
            if job.ended:
                return
            job.abandoned = True
            self._running.pop(job, None)
            self._abandoned[job] = None
        if self.are_exhausted:
            self.slots.refuse(self.exhausted)
