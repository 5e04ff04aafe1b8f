"""One emit as those see it who watch the bus: its span, and how long it took."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aperion.errors import EventTypeError, ValidationError

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from aperion._runtime.reporter import Reporter
    from aperion.events import Event


class Emission:
    """From what is handed in until it is accepted, refused or dropped."""

    # Mutable: the event and its span, once there is one.
    __slots__ = ("_began", "_event", "_reporter", "_span", "_started", "_timed")

    def __init__(self, reporter: Reporter, *, timed: bool = True) -> None:
        self._reporter = reporter
        self._timed = timed
        self._began = time.time_ns()
        self._started = time.perf_counter()
        self._event: Event[Any] | None = None
        self._span: Span | None = None

    def made(self, event: Event[Any]) -> Event[Any]:
        """Take note that what was handed in is an event; the one returned carries the context of its span."""
        if self._reporter.spans is not None:
            event, self._span = self._reporter.spans.sent(event, self._began)
        self._event = event
        return event

    def ended(self) -> None:
        """Tell that the event was accepted, or dropped; its receipt says which."""
        if self._span is not None and self._event is not None and self._reporter.spans is not None:
            self._reporter.spans.accepted(self._event, self._span)
        self._time()

    def refused(self, error: BaseException) -> None:
        """Tell that the emit raised."""
        spans = self._reporter.spans
        if spans is not None and self._span is not None:
            spans.refused(self._event, self._span, error)
        elif spans is not None and isinstance(error, ValidationError):
            # Not the type that is no type: it may be anything, and the name of a span is one of few.
            known = None if isinstance(error, EventTypeError) else error.event_type
            spans.rejected(known, self._began, error)
        self._time()

    def _time(self) -> None:
        if self._timed and self._event is not None and self._reporter.metrics is not None:
            self._reporter.metrics.emitting(self._event.event_type, time.perf_counter() - self._started)
