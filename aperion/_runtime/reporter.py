"""Tells the outside what happened: audit log, metrics, log lines, dead letters, system events."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from aperion._logs import logger as _log
from aperion.audit import AuditLog, Sync
from aperion.deadletters import letter_from
from aperion.delivery import Attempt, DeadLetter, FailureReason, Outcome, OutcomeState
from aperion.errors import AuditUnavailable, NotDeliveredError, SerializationError, ThreadsExhaustedError
from aperion.instruments import AUDIT_LAG
from aperion.naming import RESERVED_DOMAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aperion._telemetry.spans import Spans
    from aperion.deadletters import DeadLetterQueue
    from aperion.delivery import Receipt, Subscription
    from aperion.events import Event
    from aperion.instruments import BusMetrics, Instrument
    from aperion.protocols import AuditSink
    from aperion.redaction import Redactor


class Reporter:
    """The edges of one bus. Only ``accepted`` raises: what has happened cannot be refused any more."""

    # Mutable: the counters, ``system``, which the runtime sets: how a system event is emitted, and what
    # ``watch`` sets.
    __slots__ = (
        *("audit", "audit_failures", "dead_letters", "logs_ends", "metrics", "observes", "paced", "redactor", "spans"),
        *("system", "tells_of_starts", "watches", "when_synced"),
    )

    def __init__(
        self,
        audit: AuditSink | None,
        metrics: BusMetrics | None,
        dead_letters: DeadLetterQueue,
        redactor: Redactor,
    ) -> None:
        self.audit = audit
        self.metrics = metrics
        self.dead_letters = dead_letters
        self.redactor = redactor
        self.audit_failures = 0
        self.watch(metrics, None)
        self.tells_of_starts = isinstance(audit, AuditLog) and audit.wants("handler_started")
        self.paced = audit if isinstance(audit, AuditLog) else None  # whom an emitter waits for
        self.when_synced = audit.when_synced if isinstance(audit, AuditLog) and audit.sync is Sync.DISK else None
        self.system: Callable[[str, Mapping[str, Any], Event[Any] | None], None] = _nobody

    def watch(self, metrics: BusMetrics | None, spans: Spans | None) -> None:
        """Tell these from now on; called when a bus starts, since only then is it known who listens."""
        self.metrics = metrics
        self.spans = spans
        self.logs_ends = logging.getLogger("aperion").isEnabledFor(logging.DEBUG)
        self.observes = self.audit is not None or metrics is not None or self.logs_ends
        self.watches = metrics is not None or spans is not None

    def accepted(self, event: Event[Any], pending: int) -> None:
        """Record an event before it is dispatched.

        Raises:
            AuditUnavailable: when it could not be recorded.
        """
        if self.audit is not None:
            self.audit.accepted(event)
        if self.metrics is not None:
            self.metrics.emitted(event.event_type, event.source)
            self.metrics.pending(pending)

    def pending(self, count: int) -> None:
        """Tell how many events are in flight."""
        if self.metrics is not None:
            self.metrics.pending(count)

    def load(self, late: float, gauges: dict[Instrument, float]) -> None:
        """Tell how late the loop is, and how much there is to do."""
        if self.metrics is None:
            return
        if isinstance(self.audit, AuditLog):
            gauges[AUDIT_LAG] = self.audit.stats().buffered_bytes
        self.metrics.late(late)
        self.metrics.load(gauges)

    def blocked(self, subscription: str) -> None:
        """Tell of a handler that holds up the loop; called in another thread."""
        if self.metrics is not None:
            self.metrics.blocked(subscription)

    def begun(self, event: Event[Any], waited: float) -> None:
        """Tell how many seconds an event waited for its handlers."""
        if self.metrics is not None:
            self.metrics.begun(event.event_type, waited)

    def started(self, event: Event[Any], subscription: Subscription, attempt: int) -> None:
        """Record that a handler starts; called where somebody wants to know."""
        self.noted("handler_started", event, {"subscription": subscription.name, "attempt": attempt})

    def ended(self, event: Event[Any], subscription: Subscription, attempt: Attempt) -> None:
        """Record how one attempt ended; called where somebody observes."""
        if self.audit is not None:
            self._record_end(self.audit, event, Outcome(subscription.name, attempt.state, (attempt,)))
        if self.metrics is not None:
            self.metrics.handled(event.event_type, subscription.name, attempt.state, attempt.duration)
        if self.logs_ends and attempt.error is None:
            _log.debug("event handled", **self._identity(event, subscription.name, attempt))

    def retried(self, event: Event[Any], subscription: Subscription, attempt: Attempt) -> None:
        """Tell of a failure that will be attempted again."""
        if self.metrics is not None:
            self.metrics.retried(event.event_type, subscription.name)
        error_type = type(attempt.error).__name__
        _log.info(
            "delivery will be retried", **self._identity(event, subscription.name, attempt), error_type=error_type
        )

    def failed(self, receipt: Receipt, subscription: Subscription, outcome: Outcome, reason: FailureReason) -> None:
        """Tell of a delivery that failed for good: dead letter, log, system event."""
        event, error, attempt = receipt.event, outcome.error, outcome.attempts[-1]
        if error is None:
            return
        text, _ = self.redactor.redact_exception(error)
        self.dead(event, subscription.name, reason, error, attempt.number)
        failure = {"error_type": type(error).__name__, "error": text}
        _log.error("delivery failed", **self._identity(event, subscription.name, attempt), **failure)
        if event.event_type.partition(".")[0] != RESERVED_DOMAIN:
            details = {
                "original_event_id": event.event_id,
                "original_event_type": event.event_type,
                "subscription": subscription.name,
                "handler_name": subscription.name.rpartition(".")[2],
                "reason": reason.value,
                "error_type": type(error).__name__,
                "error": text,
                "attempts": attempt.number,
            }
            self.system("system.handler_error", details, event)

    def redrive_failed(self, letter: DeadLetter, outcome: Outcome, reason: FailureReason) -> None:
        """Put a dead letter back with what its redrive added; there is still one of it."""
        if outcome.error is None:
            return
        attempts = outcome.attempts[-1].number
        new = letter_from(letter.event, letter.subscription, reason, outcome.error, attempts, self.redactor)
        again = dataclasses.replace(new, letter_id=letter.letter_id, first_failed_at=letter.first_failed_at)
        self.dead_letters.put(again)
        self._noted_letter("dead_lettered", again)

    def redriven(self, letter: DeadLetter) -> None:
        """Take a dead letter out whose redrive went well."""
        self.dead_letters.remove(letter.letter_id)
        self._noted_letter("redriven", letter)

    def _noted_letter(self, kind: str, letter: DeadLetter) -> None:
        details = {
            "letter_id": letter.letter_id,
            "subscription": letter.subscription,
            "reason": letter.reason.value,
            "error": letter.error,
            "attempts": letter.attempts,
        }
        self.noted(kind, letter.event, details)

    def all_failed(self, receipt: Receipt, failures: list[Outcome]) -> None:
        """Leave a dead letter for the event as a whole: no handler could deal with it."""
        error = RuntimeError(f"all {len(failures)} handlers failed: {', '.join(o.subscription for o in failures)}")
        attempts = max(len(outcome.attempts) for outcome in failures)
        self.dead(receipt.event, None, FailureReason.ALL_HANDLERS_FAILED, error, attempts)

    def dead(
        self, event: Event[Any], subscription: str | None, reason: FailureReason, error: BaseException, attempts: int
    ) -> None:
        """Leave a dead letter."""
        letter = letter_from(event, subscription, reason, error, attempts, self.redactor)
        self.dead_letters.put(letter)
        self._noted_letter("dead_lettered", letter)
        if self.metrics is not None:
            self.metrics.dead_lettered(event.event_type, subscription or "", reason)

    def dropped(self, event: Event[Any], policy: str) -> None:
        """Tell of an event that a full bus, a processor or an outbox dropped."""
        self.noted("dropped", event, {"policy": policy})
        if self.spans is not None:
            self.spans.dropped(event, policy)
        if self.metrics is not None:
            self.metrics.dropped(event.event_type, policy)
        _log.warning("event dropped", event_id=event.event_id, event_type=event.event_type, policy=policy)
        if event.event_type.partition(".")[0] != RESERVED_DOMAIN:
            details = {"original_event_id": event.event_id, "original_event_type": event.event_type, "policy": policy}
            self.system("system.event_dropped", details, event)

    def rejected(self, event: Event[Any], error: Exception) -> None:
        """Tell of an event that was refused, and leave a dead letter."""
        is_serialization = isinstance(error, SerializationError)
        reason = FailureReason.SERIALIZATION_ERROR if is_serialization else FailureReason.VALIDATION_ERROR
        text = self.redactor.redact_text(str(error))
        self.noted("rejected", event, {"reason": reason.value, "error": text})
        self.dead(event, None, reason, error, 0)
        if self.metrics is not None:
            self.metrics.rejected(event.event_type, reason)
        _log.warning("event rejected", event_type=event.event_type, reason=reason.value, error=text)

    def noted(self, kind: str, event: Event[Any], details: Mapping[str, Any]) -> None:
        """Record what else happened to an event."""
        if self.audit is None:
            return
        try:
            self.audit.noted(kind, event, details)
        except AuditUnavailable as error:
            self._audit_failed(error)

    def _record_end(self, audit: AuditSink, event: Event[Any], outcome: Outcome) -> None:
        try:
            audit.ended(event, outcome)
        except AuditUnavailable as error:
            self._audit_failed(error)

    def _audit_failed(self, error: AuditUnavailable) -> None:
        self.audit_failures += 1
        if self.metrics is not None:
            self.metrics.audit_failed()
        if self.audit_failures == 1:  # the counter tells the rest; a log line for each would drown the cause
            _log.error("audit log unavailable, outcomes are not recorded", reason=error.reason)

    def _identity(self, event: Event[Any], subscription: str, attempt: Attempt) -> dict[str, Any]:
        return {
            "event_id": event.event_id,
            "event_type": event.event_type,
            "correlation_id": self.redactor.redact_text(event.correlation_id),
            "subscription": subscription,
            "attempt": attempt.number,
            "duration": round(attempt.duration, 6),
        }


def reason_of(outcome: Outcome) -> FailureReason:
    """Return why a delivery failed."""
    if isinstance(outcome.error, NotDeliveredError):
        return FailureReason.NOT_FINISHED
    if outcome.state is OutcomeState.TIMED_OUT:
        return FailureReason.HANDLER_TIMEOUT
    if isinstance(outcome.error, ThreadsExhaustedError):
        return FailureReason.THREADS_EXHAUSTED
    return FailureReason.HANDLER_ERROR


def _nobody(_event_type: str, _payload: Mapping[str, Any], _cause: Event[Any] | None) -> None:
    """Drop a system event of a bus that does not run."""
