"""What beats on the loop of a running bus, and what listens to that from another thread: loop lag, gauges, watchdog."""

from __future__ import annotations

import math
import os
import sys
import threading
from itertools import dropwhile, takewhile
from time import monotonic
from typing import TYPE_CHECKING

from aperion._logs import logger as _log
from aperion.engine.execution import Execution
from aperion.engine.frames import is_ours, outwards
from aperion.engine.frames import shown as shown_frames
from aperion.errors import ConfigurationError, shown
from aperion.instruments import ABANDONED, AUDIT_LAG, BUSY, IN_FLIGHT, QUEUED

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import FrameType

    from aperion.engine.lifecycle import Engine
    from aperion.instruments import BusMetrics, Instrument
    from aperion.protocols import Recorder
    from aperion.redaction import Redactor

DEFAULT_LIMIT = 0.2
"""Seconds that a handler may hold up the loop in development."""

_BEAT = 0.25  # seconds between two looks at how much there is to do
_SECONDS_BETWEEN_LOG_LINES = 60.0
_NAMES_REMEMBERED = 1024
WATCHDOG = "APERION_WATCHDOG"
"""The variable of the environment that decides where a bus does not: seconds, or 0 for never."""
_RUNS_HANDLERS = frozenset({Execution.deliveries.__code__, Execution.redeliver.__code__})
_LOOPS = ("asyncio", "selectors", "uvloop", "anyio")


def check_watchdog(watchdog: object) -> float | bool | None:
    """Return what was passed as ``watchdog`` to a bus.

    Raises:
        ConfigurationError: for something else than seconds above 0, True, False or None.
    """
    if watchdog is None or isinstance(watchdog, bool):
        return watchdog
    if isinstance(watchdog, int | float) and 0 < watchdog < math.inf:
        return float(watchdog)
    raise ConfigurationError(f"watchdog={shown(watchdog)} makes no sense; pass seconds above 0, True, False or None")


def limit_of(watchdog: float | bool | None, loop: asyncio.AbstractEventLoop) -> float | None:  # noqa: FBT001
    """Return after how many seconds a bus that starts on this loop is to be told; None for never."""
    if watchdog is None and WATCHDOG in os.environ:
        return _from_environment(os.environ[WATCHDOG])
    if watchdog is None:
        watchdog = loop.get_debug()
    if isinstance(watchdog, bool):
        return DEFAULT_LIMIT if watchdog else None
    return watchdog


def _from_environment(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise ConfigurationError(f"{WATCHDOG}={shown(text)} makes no sense; set it to seconds, or to 0 for no watchdog")
    return seconds or None


def watched(
    engine: Engine, metrics: BusMetrics | None, recorder: Recorder | None, redactor: Redactor
) -> Callable[[], None]:
    """Beat as long as a bus runs, where somebody listens; return what ends that."""
    limit = limit_of(engine.settings.watchdog, engine.loop)
    if limit is None and metrics is None:
        return _nothing

    def tell_load(late: float) -> None:
        if metrics is not None:
            metrics.late(late)
            metrics.load(_load(engine, recorder))

    def tell_blocked(subscription: str) -> None:
        engine.counters.loop_blocked += 1
        if metrics is not None:
            metrics.blocked(subscription)

    pulse = Pulse(engine.loop, _BEAT if limit is None else min(_BEAT, limit / 4), tell_load)
    watchdog = Watchdog(limit, pulse, redactor, tell_blocked) if limit is not None else None

    def stop() -> None:
        pulse.stop()
        if watchdog is not None:
            watchdog.stop()

    return stop


def _load(engine: Engine, recorder: Recorder | None) -> dict[Instrument, float]:
    queued = engine.queue.queued + engine.queue.again
    gauges: dict[Instrument, float] = {
        QUEUED: queued,
        IN_FLIGHT: max(0, engine.ledger.balance().pending - queued),
        BUSY: engine.threads.slots.busy,
        ABANDONED: engine.threads.abandoned,
    }
    buffered = recorder.buffered_bytes() if recorder is not None else None
    if buffered is not None:
        gauges[AUDIT_LAG] = buffered
    return gauges


def _nothing() -> None:
    """End what never began."""


class Pulse:
    """A timer on the loop; how late it comes tells how late the loop is."""

    # Mutable: all but the interval, on the loop's thread; ``last`` is read by others.
    __slots__ = ("_due", "_loop", "_tell", "_timer", "interval", "last")

    def __init__(self, loop: asyncio.AbstractEventLoop, interval: float, tell: Callable[[float], None]) -> None:
        self._loop = loop
        self._tell = tell
        self.interval = interval
        self.last = monotonic()
        self._wait()

    def stop(self) -> None:
        """Beat no more."""
        self._timer.cancel()

    def _wait(self) -> None:
        self._due = self.last + self.interval
        self._timer = self._loop.call_later(self.interval, self._beat)

    def _beat(self) -> None:
        self.last = monotonic()
        try:
            self._tell(max(0.0, self.last - self._due))
        finally:
            self._wait()


class Watchdog:
    """A thread that notices when the pulse stays away, and finds out whose doing that is."""

    # Mutable: after which beat it told of whom, so that it does so once, and when the next line about a
    # handler may be written; by its own thread.
    __slots__ = ("_limit", "_loop_thread", "_next_line", "_pulse", "_redactor", "_stopped", "_tell", "_thread", "_told")

    def __init__(self, limit: float, pulse: Pulse, redactor: Redactor, tell: Callable[[str], None]) -> None:
        self._limit = limit
        self._pulse = pulse
        self._redactor = redactor
        self._tell = tell
        self._loop_thread = threading.get_ident()
        self._next_line: dict[str, float] = {}
        self._told = (0.0, "")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="aperion watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; waits for it, which takes no longer than writing a line."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._limit / 4):
            last = self._pulse.last
            held = monotonic() - last - self._pulse.interval
            if held >= self._limit:
                try:
                    self._look(last, held)
                except Exception as error:  # noqa: BLE001 - a redactor of the user's must not end the watch
                    _log.warning("the watchdog failed", error_type=type(error).__name__)

    def _look(self, last: float, held: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        if frame is None:  # pragma: no cover - the loop's thread is gone
            return
        name, frames = _blamed(frame)
        if not name and _is_of_a_loop(frame):  # the whole process stood still, or the loop goes on again
            return
        if self._told == (last, name):
            return
        self._told = (last, name)
        self._tell(name)
        now = monotonic()
        if now >= self._next_line.get(name, 0.0) and len(self._next_line) < _NAMES_REMEMBERED:
            self._next_line[name] = now + _SECONDS_BETWEEN_LOG_LINES
            _log.warning(
                "a handler holds up the event loop" if name else "the event loop is held up",
                subscription=name or None,
                seconds=round(held, 3),
                stack=self._redactor.redact_text(shown_frames(frames)),
            )


def _blamed(frame: FrameType) -> tuple[str, list[FrameType]]:
    """Return the subscription whose handler is on a stack, and the frames from the user's code on, outermost first."""
    frames: list[FrameType] = []
    for each in outwards(frame):
        if each.f_code in _RUNS_HANDLERS:
            subscription = each.f_locals.get("subscription")
            return getattr(subscription, "name", ""), _from_users_code(frames)
        frames.append(each)
    # What started the loop is above it on the stack: the command line, or the lines that run the bus.
    return "", _from_users_code([*takewhile(lambda each: not _is_of_a_loop(each), frames)])


def _from_users_code(inwards: list[FrameType]) -> list[FrameType]:
    frames = inwards[::-1]
    return list(dropwhile(is_ours, frames)) or frames  # it may be nobody's doing but ours


def _is_of_a_loop(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] in _LOOPS
