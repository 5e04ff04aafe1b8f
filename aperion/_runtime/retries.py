"""Attempts that wait for their time: each runs on its own, and holds up nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aperion._runtime.backlog import Rerun
from aperion.delivery import Outcome, Receipt

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from aperion._runtime.backlog import Backlog
    from aperion._runtime.execution import Execution
    from aperion._runtime.workers import Workers
    from aperion._threads import Job
    from aperion.delivery import Retry, Subscription


class Retries:
    """What waits for another attempt, or for a worker to make it; bounded by the events that are accepted."""

    # Mutable: the timer of each that waits.
    __slots__ = ("_backlog", "_execution", "_loop", "_timers", "_workers")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, backlog: Backlog, execution: Execution, workers: Workers
    ) -> None:
        self._loop = loop
        self._backlog = backlog
        self._execution = execution
        self._workers = workers
        self._timers: dict[Rerun, asyncio.TimerHandle] = {}

    def __iter__(self) -> Iterator[Rerun]:
        """Go through those that no handler has seen."""
        yield from self._timers
        yield from (unit for unit in self._backlog.ready if isinstance(unit, Rerun))

    def schedule(self, receipt: Receipt, index: int, subscription: Subscription, retry: Retry, job: Job | None) -> None:
        """Have a delivery attempted again, after the wait that its retry says."""
        result = receipt.results[index]
        attempt = result.attempts[-1].number if isinstance(result, Outcome) else 1
        rerun = Rerun(receipt, index, subscription, attempt + 1)
        receipt.retrying += 1
        wait = retry.wait(attempt)
        if job is None or job.ended:
            self._timers[rerun] = self._loop.call_later(wait, self._ready, rerun)
        else:
            # The thread of the last attempt still runs. The next one starts after it has ended, or
            # never, if it has not within the longest wait.
            self._timers[rerun] = self._loop.call_later(retry.wait_max, self._abandon, rerun)
            job.on_end = lambda: self._thread_ended(rerun, wait)

    def abandon_all(self) -> None:
        """Fail for good whatever has not begun, with the outcome of its last attempt each."""
        waiting = list(self)
        self._backlog.forget_reruns()
        for rerun in waiting:
            self._abandon(rerun)

    def _thread_ended(self, rerun: Rerun, wait: float) -> None:
        timer = self._timers.get(rerun)
        if timer is not None:
            timer.cancel()
            self._timers[rerun] = self._loop.call_later(wait, self._ready, rerun)

    def _ready(self, rerun: Rerun) -> None:
        del self._timers[rerun]
        self._backlog.ready.append(rerun)
        if not self._workers.awake:
            self._workers.wake()

    def _abandon(self, rerun: Rerun) -> None:
        timer = self._timers.pop(rerun, None)
        if timer is not None:
            timer.cancel()
        outcome = rerun.receipt.results[rerun.index]
        if isinstance(outcome, Outcome):
            self._execution.conclude_without(rerun, outcome)
