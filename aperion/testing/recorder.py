"""Recording what a bus accepts, and asserting on it."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

import anyio

from aperion.naming import RESERVED_DOMAIN
from aperion.patterns import check_pattern, matches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aperion.bus import EventBus
    from aperion.delivery import Filter, Outcomes, Receipt
    from aperion.events import Event, Payload
    from aperion.router import M


class Recorder:
    """The events that a bus has accepted since the recording began, in that order."""

    # Mutable: the receipts, which grow as events are accepted.
    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self.receipts: list[Receipt] = []

    def __len__(self) -> int:
        """Count the events, those of the bus itself left out."""
        return len(self.events)

    @property
    def events(self) -> list[Event[Any]]:
        """The events, those of the bus itself (``system.*``) left out."""
        return [event for event in self._all() if event.event_type.partition(".")[0] != RESERVED_DOMAIN]

    @overload
    def of(self, wanted: type[M]) -> list[Event[M]]: ...
    @overload
    def of(self, wanted: str) -> list[Event[Any]]: ...
    def of(self, wanted: str | type[Payload]) -> list[Event[Any]]:
        """Return the events of a model, or those that match a pattern; ``system.*`` works too."""
        pattern = _pattern(wanted)
        return [event for event in self._all() if matches(pattern, event.event_type)]

    def outcomes_of(self, wanted: str | type[Payload]) -> list[Outcomes]:
        """Return how the events of a model or pattern ended, as far as they have."""
        pattern = _pattern(wanted)
        found = [r.outcomes for r in self.receipts if matches(pattern, r.event.event_type)]
        return [outcomes for outcomes in found if outcomes is not None]

    @overload
    def assert_emitted(self, wanted: type[M], *, times: int | None = ..., where: Filter | None = ...) -> Event[M]: ...
    @overload
    def assert_emitted(self, wanted: str, *, times: int | None = ..., where: Filter | None = ...) -> Event[Any]: ...
    def assert_emitted(
        self, wanted: str | type[Payload], *, times: int | None = None, where: Filter | None = None
    ) -> Event[Any]:
        """Return the first event that matches.

        Args:
            wanted: a model or a pattern.
            times: how often exactly; at least once when None. For never, see ``assert_not_emitted``.
            where: a filter.

        Raises:
            AssertionError: with a list of what was emitted, payloads redacted.
        """
        found = [event for event in self.of(wanted) if where is None or where(event)]
        if not found or (times is not None and len(found) != times):
            expected = "at least once" if times is None else f"{times} times"
            raise AssertionError(self._report(f"{_shown(wanted)} was emitted {len(found)} times, expected {expected}"))
        return found[0]

    def assert_not_emitted(self, wanted: str | type[Payload], *, where: Filter | None = None) -> None:
        """Check that no event matches.

        Raises:
            AssertionError: with a list of what was emitted, payloads redacted.
        """
        found = [event for event in self.of(wanted) if where is None or where(event)]
        if found:
            raise AssertionError(self._report(f"{_shown(wanted)} was emitted {len(found)} times, expected never"))

    async def settle(self, timeout: float = 5.0) -> None:
        """Wait until everything that was emitted has ended, and all that it caused.

        Raises:
            TimeoutError: after ``timeout`` seconds, naming what is still in flight.
        """
        with anyio.move_on_after(timeout):
            await self.bus.wait_settled()
            return
        left = [f"{r.event.event_type} {r.event_id}{_waiting_for(r)}" for r in self.receipts if not r.is_settled]
        raise TimeoutError(
            f"still in flight after {timeout:g} s: {'; '.join(left) or 'events from before the recording'}"
        )

    def clear(self) -> None:
        """Forget what was recorded so far."""
        self.receipts.clear()

    def _all(self) -> list[Event[Any]]:
        return [receipt.event for receipt in self.receipts]

    def _report(self, headline: str) -> str:
        events = self.events
        if not events:
            return f"{headline}; nothing was emitted"
        counts = Counter(event.event_type for event in events)
        lines = [f"{headline}; emitted were:", *(f"  {count} x {name}" for name, count in counts.items()), "in order:"]
        lines += [f"  {event.event_type} {self.bus.redactor.redact(event.payload)!r}" for event in events]
        return "\n".join(lines)


@contextmanager
def recording(bus: EventBus) -> Iterator[Recorder]:
    """Record what a running bus accepts, as long as the block lasts.

    Raises:
        BusNotRunningError: when the bus does not run.
    """
    recorder = Recorder(bus)
    stop = bus.listen(recorder.receipts.append)
    try:
        yield recorder
    finally:
        stop()


def _pattern(wanted: str | type[Payload]) -> str:
    return check_pattern(wanted, any_name=True) if isinstance(wanted, str) else wanted.event_type


def _shown(wanted: str | type[Payload]) -> str:
    return repr(wanted) if isinstance(wanted, str) else wanted.__qualname__


def _waiting_for(receipt: Receipt) -> str:
    if not receipt.begun:
        return " (not started)"
    if receipt.retrying:
        return " (waits for a retry)"
    left = receipt.plan[len(receipt.results) :]
    return f" (in {left[0].name})" if left else ""
