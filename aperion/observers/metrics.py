"""Metrics as an observer: facts become measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aperion.events import Event
    from aperion.instruments import BusMetrics
    from aperion.outcomes import Attempt, DeadLetter, FailureReason
    from aperion.subscriptions import Subscription


class Measurements:
    """Measures what happens to events."""

    __slots__ = ("_metrics", "pending")

    def __init__(self, metrics: BusMetrics) -> None:
        self._metrics = metrics
        self.pending = metrics.pending

    def accepted(self, event: Event[Any], pending: int) -> None:
        """Count an accepted event."""
        self._metrics.emitted(event.event_type, event.source)
        self._metrics.pending(pending)

    def begun(self, event: Event[Any], waited: float) -> None:
        """Time how long it waited."""
        self._metrics.begun(event.event_type, waited)

    def ended(self, event: Event[Any], subscription: Subscription, attempt: Attempt) -> None:
        """Count and time an attempt."""
        self._metrics.handled(event.event_type, subscription.name, attempt.state, attempt.duration)

    def retried(self, event: Event[Any], subscription: Subscription, attempt: Attempt) -> None:  # noqa: ARG002 - a fact
        """Count an attempt that will follow."""
        self._metrics.retried(event.event_type, subscription.name)

    def dead(self, letter: DeadLetter, attempt: Attempt | None, *, again: bool) -> None:
        """Count a letter; one that a redrive has left again is no new one."""
        if not again and (attempt is not None or letter.subscription is None):
            self._metrics.dead_lettered(letter.event.event_type, letter.subscription or "", letter.reason)

    def dropped(self, event: Event[Any], policy: str) -> None:
        """Count a dropped event."""
        self._metrics.dropped(event.event_type, policy)

    def rejected(self, event: Event[Any], reason: FailureReason, text: str) -> None:  # noqa: ARG002 - a fact
        """Count a refused event."""
        self._metrics.rejected(event.event_type, reason)
