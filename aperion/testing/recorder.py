"""Recording what a bus accepts, and asserting on it."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, overload

import anyio

from aperion.engine.bridge import not_running
from aperion.engine.waiting import answered
from aperion.errors import WrongLoopError
from aperion.naming import RESERVED_DOMAIN
from aperion.patterns import matches
from aperion.testing.running import Wanted, limited_to, listening, meant, pattern_of
from aperion.testing.stacks import in_flight

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from aperion.bus import EventBus
    from aperion.events import Event
    from aperion.outcomes import Outcomes
    from aperion.receipts import Receipt
    from aperion.router import M
    from aperion.subscriptions import Filter

T = TypeVar("T")


class Recorder:
    """The events that a bus has accepted since the recording began, in that order."""

    # Mutable: all but the bus; the receipts and their times grow as events are accepted.
    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self.receipts: list[Receipt] = []
        self._times: list[float] = []  # of each receipt, by the clock of the loop
        self._began = self._now()
        self._news: anyio.Event | None = None

    def __len__(self) -> int:
        """Count the events, those of the bus itself left out."""
        return len(self.events)

    @property
    def events(self) -> list[Event[Any]]:
        """The events, those of the bus itself (``system.*``) left out."""
        return [event for event, _ in self._timed()]

    @overload
    def of(self, wanted: type[M]) -> list[Event[M]]: ...
    @overload
    def of(self, wanted: str) -> list[Event[Any]]: ...
    def of(self, wanted: Wanted) -> list[Event[Any]]:
        """Return the events of a model, or those that match a pattern; ``system.*`` works too."""
        pattern = pattern_of(wanted)
        return [receipt.event for receipt in self.receipts if matches(pattern, receipt.event.event_type)]

    def outcomes_of(self, wanted: Wanted) -> list[Outcomes]:
        """Return how the events of a model or pattern ended, as far as they have."""
        pattern = pattern_of(wanted)
        found = [r.outcomes for r in self.receipts if matches(pattern, r.event.event_type)]
        return [outcomes for outcomes in found if outcomes is not None]

    @overload
    def assert_emitted(
        self, wanted: type[M], *, times: int | None = ..., where: Filter | None = ..., within: float | None = ...
    ) -> Event[M]: ...
    @overload
    def assert_emitted(
        self, wanted: str, *, times: int | None = ..., where: Filter | None = ..., within: float | None = ...
    ) -> Event[Any]: ...
    def assert_emitted(
        self, wanted: Wanted, *, times: int | None = None, where: Filter | None = None, within: float | None = None
    ) -> Event[Any]:
        """Return the first event that matches; never waits, see ``wait_for``.

        Args:
            wanted: a model or a pattern.
            times: how often exactly; at least once when None. For never, see ``assert_not_emitted``.
            where: a filter.
            within: only what was emitted in the first so many seconds of the recording counts, or after
                the last ``clear()``; by the clock of the loop, so that a ``VirtualClock`` counts too.

        Raises:
            AssertionError: with a list of what was emitted and when, payloads redacted.
        """
        found = self._found(wanted, where, within)
        if not found or (times is not None and len(found) != times):
            expected = "at least once" if times is None else f"{times} times"
            limit = "" if within is None else f" within {within:g} s"
            headline = f"{_shown(wanted)} was emitted {len(found)} times{limit}, expected {expected}"
            raise AssertionError(self._report(headline))
        return found[0]

    def assert_not_emitted(self, wanted: Wanted, *, where: Filter | None = None) -> None:
        """Check that no event matches.

        Raises:
            AssertionError: with a list of what was emitted and when, payloads redacted.
        """
        found = self._found(wanted, where, None)
        if found:
            raise AssertionError(self._report(f"{_shown(wanted)} was emitted {len(found)} times, expected never"))

    @overload
    async def wait_for(
        self, wanted: type[M], *, timeout: float = ..., where: Filter | None = ..., times: int = ...
    ) -> Event[M]: ...
    @overload
    async def wait_for(
        self, wanted: str, *, timeout: float = ..., where: Filter | None = ..., times: int = ...
    ) -> Event[Any]: ...
    async def wait_for(
        self, wanted: Wanted, *, timeout: float = 5.0, where: Filter | None = None, times: int = 1
    ) -> Event[Any]:
        """Return an event that matches: at once if it was recorded, else as soon as it is accepted.

        Its handlers may not have run by then; ``settle`` waits for them.

        Args:
            wanted: a model or a pattern.
            timeout: real seconds.
            where: a filter.
            times: how many have to match; the last of them is returned.

        Raises:
            TimeoutError: with a list of what was emitted instead, payloads redacted.
        """
        with limited_to(timeout):
            while len(found := self._found(wanted, where, None)) < times:
                self._news = self._news or anyio.Event()
                await self._news.wait()
            return found[times - 1]
        found = self._found(wanted, where, None)
        raise TimeoutError(
            self._report(f"{_shown(wanted)} was emitted {len(found)} times within {timeout:g} s, waited for {times}")
        )

    async def settle(self, timeout: float = 5.0) -> None:
        """Wait until everything that was emitted has ended, and all that it caused.

        Raises:
            TimeoutError: after ``timeout`` real seconds, with what is in flight, and where in its code each
                handler is that has not ended.
        """
        with limited_to(timeout):
            await self.bus.wait_settled()
            return
        raise TimeoutError(f"still in flight after {timeout:g} s:\n{in_flight(self.bus._running('settle'))}")

    def settle_from_thread(self, timeout: float = 5.0) -> None:
        """Do what ``settle`` does in another thread than that of the bus; blocks it."""
        self._from_thread("settle_from_thread", self.settle(timeout))

    @overload
    def wait_for_from_thread(
        self, wanted: type[M], *, timeout: float = ..., where: Filter | None = ..., times: int = ...
    ) -> Event[M]: ...
    @overload
    def wait_for_from_thread(
        self, wanted: str, *, timeout: float = ..., where: Filter | None = ..., times: int = ...
    ) -> Event[Any]: ...
    def wait_for_from_thread(
        self, wanted: Wanted, *, timeout: float = 5.0, where: Filter | None = None, times: int = 1
    ) -> Event[Any]:
        """Do what ``wait_for`` does in another thread than that of the bus; blocks it."""
        wait: Coroutine[Any, Any, Event[Any]]
        wait = self.wait_for(wanted, timeout=timeout, where=where, times=times)
        return self._from_thread("wait_for_from_thread", wait)

    def _from_thread(self, method: str, waiting: Coroutine[Any, Any, T]) -> T:
        engine = self.bus._engine
        if engine is None or threading.get_ident() == engine.thread:
            waiting.close()
            raise not_running(method) if engine is None else WrongLoopError(method, inside=True)
        done = asyncio.run_coroutine_threadsafe(waiting, engine.loop)
        answered(done, engine.loop, None)
        return done.result()

    def clear(self) -> None:
        """Forget what was recorded so far; the seconds of ``within`` count from here."""
        self.receipts.clear()
        self._times.clear()
        self._began = self._now()

    def take(self, receipt: Receipt) -> None:
        """Record an event that was just accepted."""
        self.receipts.append(receipt)
        self._times.append(self._now() - self._began)
        if self._news is not None:
            self._news.set()
            self._news = None

    def _now(self) -> float:
        """Return the time of the loop on which the bus runs, from whichever thread."""
        engine = self.bus._engine
        return monotonic() if engine is None else engine.loop.time()

    def _found(self, wanted: Wanted, where: Filter | None, within: float | None) -> list[Event[Any]]:
        pattern = pattern_of(wanted)
        return [
            receipt.event
            for receipt, seconds in zip(self.receipts, self._times, strict=True)
            if matches(pattern, receipt.event.event_type)
            and (within is None or seconds <= within)
            and (where is None or where(receipt.event))
        ]

    def _timed(self) -> list[tuple[Event[Any], float]]:
        pairs = zip(self.receipts, self._times, strict=True)
        return [(r.event, at) for r, at in pairs if r.event.event_type.partition(".")[0] != RESERVED_DOMAIN]

    def _report(self, headline: str) -> str:
        events = self._timed()
        if not events:
            return f"{headline}; nothing was emitted"
        counts = Counter(event.event_type for event, _ in events)
        lines = [f"{headline}; emitted were:", *(f"  {count} x {name}" for name, count in counts.items()), "in order:"]
        redact: Callable[[object], object] = self.bus.redactor.redact
        lines += [f"  after {at:.3f} s {event.event_type} {redact(event.payload)!r}" for event, at in events]
        return "\n".join(lines)


@contextmanager
def recording(bus: EventBus, *wanted: Wanted) -> Iterator[Recorder]:
    """Record what a running bus accepts, as long as the block lasts.

    The block may be on another thread than the bus, as in a test with the ``TestClient`` of Starlette and FastAPI,
    whose application has a loop of its own; there, wait with ``settle_from_thread`` and ``wait_for_from_thread``.

    Args:
        bus: a bus that runs.
        wanted: models and patterns; everything without any.

    Raises:
        BusNotRunningError: when the bus does not run.
        PatternError: for a pattern that cannot match.
    """
    recorder = Recorder(bus)
    is_meant = meant(wanted) if wanted else None

    def take(receipt: Receipt) -> None:
        if is_meant is None or is_meant(receipt.event.event_type):
            recorder.take(receipt)

    with listening(bus, take):
        yield recorder


def _shown(wanted: Wanted) -> str:
    return repr(wanted) if isinstance(wanted, str) else wanted.__qualname__
