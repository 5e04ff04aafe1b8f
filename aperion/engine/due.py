"""What is due later: attempts that wait for their time. Each runs on its own, and holds up nothing."""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from aperion.engine.flight import Rerun
    from aperion.engine.queue import Queue
    from aperion.engine.threads import Job


class Due:
    """A heap of attempts by their times, and one timer for the first; bounded by the events that are accepted."""

    # Mutable: all of it, on the loop's thread. An entry counts as long as it is the one that ``_waiting`` names.
    __slots__ = ("_abandon", "_heap", "_loop", "_order", "_queue", "_timer", "_waiting", "_wake")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, queue: Queue, wake: Callable[[], None], abandon: Callable[[Rerun], None]
    ) -> None:
        self._loop = loop
        self._queue = queue
        self._wake = wake
        self._abandon = abandon
        self._heap: list[tuple[float, int, Rerun, bool]] = []
        self._waiting: dict[Rerun, int] = {}
        self._order = count()
        self._timer: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[Rerun]:
        """Go through the attempts that wait for their time."""
        return iter(tuple(self._waiting))

    def retry(self, rerun: Rerun, wait: float, longest: float, job: Job | None) -> None:
        """Have a delivery attempted again in ``wait`` seconds.

        Where the thread of the last attempt still runs, the wait begins when that has ended; if it has not
        within ``longest`` seconds, the delivery has failed for good.
        """
        if job is None or job.ended:
            self._add(rerun, wait, ready=True)
        else:
            self._add(rerun, longest, ready=False)
            job.on_end = lambda: self._thread_ended(rerun, wait)

    def close(self) -> list[Rerun]:
        """Forget all that waits, and return it."""
        waiting, self._waiting = list(self._waiting), {}
        self._heap.clear()
        self._set_timer()
        return waiting

    def _thread_ended(self, rerun: Rerun, wait: float) -> None:
        if rerun in self._waiting:
            self._add(rerun, wait, ready=True)

    def _add(self, rerun: Rerun, wait: float, *, ready: bool) -> None:
        number = self._waiting[rerun] = next(self._order)
        heapq.heappush(self._heap, (self._loop.time() + wait, number, rerun, ready))
        if self._heap[0][1] == number:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._heap[0][0], self._fire) if self._heap else None

    def _fire(self) -> None:
        now, ready_now = self._loop.time(), False
        while self._heap and self._heap[0][0] <= now:
            _, number, rerun, ready = heapq.heappop(self._heap)
            if self._waiting.get(rerun) != number:
                continue
            del self._waiting[rerun]
            if ready:
                self._queue.add_again(rerun)
                ready_now = True
            else:
                self._abandon(rerun)
        self._set_timer()
        if ready_now:
            self._wake()
