"""A clock that a test moves: retries, timeouts and sleeps without waiting for them."""

from __future__ import annotations

import asyncio
import heapq
import math
import sys
import time
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from aperion.engine import admission, deadlines, execution, lifecycle, workers
from aperion.engine.pulse import Pulse
from aperion.errors import ConfigurationError
from aperion.testing.running import call_later, wait
from aperion.testing.stacks import in_flight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Context

    from aperion.bus import EventBus
    from aperion.engine.lifecycle import Engine

_GRACE = 0.1  # real seconds that threads get before time moves on without them
_ROUNDS_OF_QUIET = 3  # passes of the loop in which nothing new comes up
_MOST_ROUNDS = 100_000
_NEAR = 1e-7  # seconds that sums of floats may be off
_NANO = 1_000_000_000
_CLOCKED = (admission, deadlines, execution, lifecycle, workers)  # the modules that ask what time it is
_RUN_ONCE = asyncio.BaseEventLoop._run_once.__code__  # type: ignore[attr-defined]  # of the loop's own


class _Timer(asyncio.TimerHandle):
    """A call at a moment of the clock, or in real time if the clock was taken away before."""

    __slots__ = ()

    def cancel(self) -> None:
        """Do not call."""
        asyncio.Handle.cancel(self)  # that of TimerHandle tells the loop, which does not know of this one

    def call(self) -> None:
        """Call, unless cancelled."""
        if not self.cancelled():
            self._run()


class VirtualClock:
    """The time of an event loop, which stands still until a test moves it; see ``virtual_time``."""

    # Mutable: all of it, on the thread of the loop.
    def __init__(self, buses: tuple[EventBus, ...]) -> None:
        self._loop = asyncio.get_running_loop()
        self._engines: list[Engine] = [bus._running("virtual_time") for bus in buses]
        self._now = self._began = max(self._loop.time(), time.monotonic())
        self._moved = 0  # nanoseconds: ten steps of 0.1 are 1.0, which a sum of floats is not
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = count()
        self._calls = 0  # of call_soon, to notice when nothing comes up any more
        self._call_soon = self._loop.call_soon
        self._slow: set[object] = set()  # threads that were waited for in vain

    @property
    def elapsed(self) -> float:
        """The seconds that the clock has been moved."""
        return self._moved / _NANO

    async def advance(self, seconds: float) -> None:
        """Move the clock, from one timer to the next that is due, and let happen what that causes.

        Before each step, and at the end, it waits until the loop has nothing to do and the sync handlers of
        the buses have ended; for those that have not after a tenth of a real second it waits no more.

        Raises:
            ConfigurationError: for seconds below 0, or for ever.
        """
        if not 0 <= seconds < math.inf:
            raise ConfigurationError(f"advance({seconds!r}) makes no sense; time goes forward, by a number of seconds")
        await self._rest()
        moved = self._moved + round(seconds * _NANO)
        target = self._began + moved / _NANO
        while (due := self._next()) is not None and due <= target + _NEAR:
            await self._move(due)
        self._now, self._moved = max(self._now, target), moved

    async def settle(self, within: float = 3600.0) -> float:
        """Move the clock from one timer to the next until no event is in flight; return the seconds that took.

        Raises:
            TimeoutError: when that is not so after ``within`` seconds of the clock, with what is in flight, and
                where in its code each handler is that has not ended.
        """
        began, moved = self._now, self._moved
        await self._rest()
        while any(each.ledger.pending or each.system_ledger.pending for each in self._engines):
            due = self._next()
            if due is None or due > began + within:
                raise TimeoutError(self._why_not(within if due is not None else None))
            await self._move(due)
        return (self._moved - moved) / _NANO

    def _why_not(self, within: float | None) -> str:
        why = "nothing on the clock is awaited" if within is None else f"{within:g} s of the clock have passed"
        return f"{why}, and still in flight are:\n" + "\n".join(in_flight(each) for each in self._engines)

    def _next(self) -> float | None:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        # anyio.sleep_forever() sets a timer for the end of all days.
        return self._timers[0][0] if self._timers and self._timers[0][0] < math.inf else None

    async def _move(self, due: float) -> None:
        self._now = max(self._now, due)
        self._moved = max(self._moved, round((due - self._began) * _NANO))
        while self._timers and self._timers[0][0] <= self._now:
            self._loop.call_soon(heapq.heappop(self._timers)[2].call)
        await self._rest()

    async def _rest(self) -> None:
        """Wait until nothing happens any more without the clock."""
        await self._quiet()
        last_change, before = time.monotonic(), self._busy()
        while before:
            await wait(0.001)
            await self._quiet()
            busy = self._busy()
            if busy == before and time.monotonic() > last_change + _GRACE:
                self._slow |= busy
                return
            if busy != before:
                last_change, before = time.monotonic(), busy

    async def _quiet(self) -> None:
        quiet = 0
        for _ in range(_MOST_ROUNDS):
            before = self._calls
            await asyncio.sleep(0)  # one call, to wake this task
            quiet = quiet + 1 if self._calls == before + 1 else 0
            if quiet == _ROUNDS_OF_QUIET:
                return
        raise TimeoutError("the loop does not come to rest: a task asks again and again without waiting for anything")

    def _busy(self) -> set[object]:
        """Return what goes on outside of the loop, and was not waited for in vain."""
        jobs: set[object] = {job for each in self._engines for job in each.threads.running}
        held: set[object] = {flight for each in self._engines for flight in each.admission.held}
        return (jobs | held) - self._slow

    def _time(self) -> float:
        # asyncio's own loop asks in order to serve the timers that were set before, in real time.
        if sys._getframe(1).f_code is _RUN_ONCE:
            return type(self._loop).time(self._loop)
        return self._now

    def _monotonic(self) -> float:
        return self._now if asyncio._get_running_loop() is self._loop else time.monotonic()

    def _call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self._call_at(self._now + delay, callback, *args, context=context)

    def _call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if isinstance(getattr(callback, "__self__", None), Pulse):  # how late the loop is, it is in real time
            return call_later(self._loop, when - self._now, lambda: callback(*args))
        timer = _Timer(when, callback, args, self._loop, context)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def _counted(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        self._calls += 1
        return self._call_soon(callback, *args, context=context)

    def _install(self) -> None:
        own = {"time": self._time, "call_later": self._call_later, "call_at": self._call_at, "call_soon": self._counted}
        vars(self._loop).update(own)
        for module in _CLOCKED:
            module.monotonic = self._monotonic  # type: ignore[attr-defined]  # what it has imported by this name
        for each in self._engines:
            each.deadlines.fire()  # for the handlers that wait already: its timer is to be one of this clock

    def _remove(self) -> None:
        for name in ("time", "call_later", "call_at", "call_soon"):
            del vars(self._loop)[name]
        for module in _CLOCKED:
            module.monotonic = time.monotonic  # type: ignore[attr-defined]
        for when, _, timer in self._timers:
            if not timer.cancelled():
                call_later(self._loop, max(0.0, when - self._now), timer.call)


@contextmanager
def virtual_time(*buses: EventBus) -> Iterator[VirtualClock]:
    """Let the time of the running loop stand still while the block lasts, but for what the clock is moved.

    Retries and the timeouts of handlers obey, and so does all else on the loop: ``anyio.sleep``,
    ``asyncio.sleep``, ``fail_after``, ``wait_for``. What a test waits for itself, it puts around the block,
    or waits for with ``Recorder.wait_for`` and ``Recorder.settle``, which count real seconds. Threads do not
    obey: ``time.sleep`` takes its time. Timers set before stay as they are; those left over go on in real time.

    Args:
        buses: the buses, running, whose timeouts and threads it looks after.

    Raises:
        BusNotRunningError: when a bus does not run.
        ConfigurationError: inside such a block.
    """
    clock = VirtualClock(buses)
    if "call_at" in vars(clock._loop):
        raise ConfigurationError("the time of this loop is virtual already; use the clock that there is")
    clock._install()
    try:
        yield clock
    finally:
        clock._remove()
