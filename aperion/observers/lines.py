"""Log lines about what happened to events; none shows a payload."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aperion._logs import logger as _log

if TYPE_CHECKING:
    from collections.abc import Callable

    from aperion.events import Event
    from aperion.outcomes import Attempt, DeadLetter, FailureReason
    from aperion.redaction import Redactor
    from aperion.subscriptions import Subscription


_OURS: Final = f'  File "{Path(__file__).parents[1]}'


class LogLines:
    """Writes a line for what somebody should look at, and at level DEBUG for each attempt that went well.

    A failure is shown with its traceback, without the frames of this package; at level DEBUG with all of them.
    """

    __slots__ = ("_debug", "_redactor", "ended")

    ended: Callable[[Event[Any], Subscription, Attempt], None] | None

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._debug = logging.getLogger("aperion").isEnabledFor(logging.DEBUG)
        self.ended = self._ended if self._debug else None

    def retried(self, event: Event[Any], subscription: Subscription, attempt: Attempt) -> None:
        """Tell of a failure that will be attempted again."""
        error_type = type(attempt.error).__name__
        _log.info(
            "delivery will be retried", **self._identity(event, subscription.name, attempt), error_type=error_type
        )

    def dead(self, letter: DeadLetter, attempt: Attempt | None, *, again: bool) -> None:
        """Tell of a delivery that has failed for good."""
        if letter.subscription is None or attempt is None or again:
            return
        identity = self._identity(letter.event, letter.subscription, attempt)
        trace = letter.traceback if self._debug else without_ours(letter.traceback)
        _log.error("delivery failed", **identity, error_type=letter.error_type, error=letter.error, exception=trace)

    def dropped(self, event: Event[Any], policy: str) -> None:
        """Tell of a dropped event."""
        _log.warning("event dropped", event_id=event.event_id, event_type=event.event_type, policy=policy)

    def rejected(self, event: Event[Any], reason: FailureReason, text: str) -> None:
        """Tell of a refused event."""
        _log.warning("event rejected", event_type=event.event_type, reason=reason.value, error=text)

    def _ended(self, event: Event[Any], subscription: Subscription, attempt: Attempt) -> None:
        if attempt.error is None:
            _log.debug("event handled", **self._identity(event, subscription.name, attempt))

    def _identity(self, event: Event[Any], subscription: str, attempt: Attempt) -> dict[str, Any]:
        return {
            "event_id": event.event_id,
            "event_type": event.event_type,
            "correlation_id": self._redactor.redact_text(event.correlation_id),
            "subscription": subscription,
            "attempt": attempt.number,
            "duration": round(attempt.duration, 6),
        }


def without_ours(trace: str) -> str:
    """Return a traceback as text without the frames of this package, which led to the handler."""
    kept, ours = [], False
    for line in trace.splitlines(keepends=True):
        if not line.startswith("    "):  # what is deeper belongs to the frame before
            ours = line.startswith(_OURS)
        if not ours:
            kept.append(line)
    return "".join(kept).rstrip("\n")
