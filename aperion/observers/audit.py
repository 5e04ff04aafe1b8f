"""The audit log as an observer: what became of an event that it has recorded, or had to refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aperion._logs import logger as _log
from aperion.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aperion.events import Event
    from aperion.outcomes import Attempt, DeadLetter, FailureReason
    from aperion.protocols import Recorder
    from aperion.subscriptions import Subscription


class AuditTrail:
    """Records outcomes and all else that happened; what has happened cannot be refused any more, so failures count."""

    # Mutable: the failures, on the loop's thread.
    __slots__ = ("_failed", "_sink", "failures", "started")

    started: Callable[[Event[Any], Subscription, int], None] | None

    def __init__(self, sink: Recorder, failed: Callable[[], None]) -> None:
        self._sink = sink
        self._failed = failed
        self.failures = 0
        self.started = self._started if sink.wants("handler_started") else None

    def ended(self, event: Event[Any], subscription: Subscription, attempt: Attempt) -> None:
        """Record how an attempt ended."""
        try:
            self._sink.attempted(event, subscription.name, attempt)
        except AuditUnavailable as error:
            self._missed(error)

    def dead(self, letter: DeadLetter, attempt: Attempt | None, *, again: bool) -> None:  # noqa: ARG002 - a fact
        """Record that a letter was left."""
        self._noted("dead_lettered", letter.event, _about(letter))

    def redriven(self, letter: DeadLetter) -> None:
        """Record that it is gone."""
        self._noted("redriven", letter.event, _about(letter))

    def dropped(self, event: Event[Any], policy: str) -> None:
        """Record that an event was dropped."""
        self._noted("dropped", event, {"policy": policy})

    def rejected(self, event: Event[Any], reason: FailureReason, text: str) -> None:
        """Record that it was refused."""
        self._noted("rejected", event, {"reason": reason.value, "error": text})

    def announced(self, event: Event[Any], payload: Mapping[str, Any]) -> None:
        """Record what the bus says of itself."""
        self._noted("system", event, payload)

    def _started(self, event: Event[Any], subscription: Subscription, number: int) -> None:
        self._noted("handler_started", event, {"subscription": subscription.name, "attempt": number})

    def _noted(self, kind: str, event: Event[Any], details: Mapping[str, Any]) -> None:
        try:
            self._sink.noted(kind, event, details)
        except AuditUnavailable as error:
            self._missed(error)

    def _missed(self, error: AuditUnavailable) -> None:
        self.failures += 1
        self._failed()
        if self.failures == 1:  # the counter tells the rest; a log line for each would drown the cause
            _log.error("audit log unavailable, outcomes are not recorded", reason=error.reason)


def _about(letter: DeadLetter) -> dict[str, Any]:
    return {
        "letter_id": letter.letter_id,
        "subscription": letter.subscription,
        "reason": letter.reason.value,
        "error": letter.error,
        "attempts": letter.attempts,
    }
