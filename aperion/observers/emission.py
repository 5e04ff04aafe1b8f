"""One emit as those see it who watch the bus: its span, and how long it took."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aperion.errors import EventTypeError, ValidationError

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from aperion.events import Event
    from aperion.instruments import BusMetrics
    from aperion.observers.spans import Spans


class Emission:
    """From what is handed in until it is accepted, refused or dropped."""

    # Mutable: the event and its span, once there is one.
    __slots__ = ("_began", "_event", "_metrics", "_span", "_spans", "_started")

    def __init__(self, spans: Spans | None, metrics: BusMetrics | None) -> None:
        self._spans = spans
        self._metrics = metrics
        self._began = time.time_ns()
        self._started = time.perf_counter()
        self._event: Event[Any] | None = None
        self._span: Span | None = None

    def made(self, event: Event[Any]) -> Event[Any]:
        """Take note that what was handed in is an event; the one returned carries the context of its span."""
        if self._spans is not None:
            event, self._span = self._spans.sent(event, self._began)
        self._event = event
        return event

    def ended(self) -> None:
        """Tell that the event was accepted, or dropped; its receipt says which."""
        if self._span is not None and self._event is not None and self._spans is not None:
            self._spans.sent_off(self._event, self._span)
        self._time()

    def refused(self, error: BaseException) -> None:
        """Tell that the emit raised."""
        spans = self._spans
        if spans is not None and self._span is not None:
            spans.refused(self._event, self._span, error)
        elif spans is not None and isinstance(error, ValidationError):
            # Not the type that is no type: it may be anything, and the name of a span is one of few.
            known = None if isinstance(error, EventTypeError) else error.event_type
            spans.no_event(known, self._began, error)
        self._time()

    def _time(self) -> None:
        if self._event is not None and self._metrics is not None:
            self._metrics.emitting(self._event.event_type, time.perf_counter() - self._started)
