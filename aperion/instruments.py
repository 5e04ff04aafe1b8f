"""What a bus measures, by name, and how it tells a back end."""

from __future__ import annotations

import math
import threading
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from aperion._logs import logger as _log
from aperion.errors import ConfigurationError, shown
from aperion.outcomes import OutcomeState
from aperion.protocols import MetricsBackend

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping

    from aperion.outcomes import FailureReason

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
_SECONDS_BETWEEN_LOG_LINES = 60.0


@dataclass(frozen=True, slots=True)
class Instrument:
    """One thing that a bus measures: its name and kind, the labels it always has, and what it tells."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    description: str


_TYPE = ("event_type",)
_WHOSE = ("event_type", "subscription")
_ENDED = (*_WHOSE, "outcome")
INSTRUMENTS = (
    EMITTED := Instrument("aperion_events_emitted_total", "counter", _TYPE, "events accepted"),
    REJECTED := Instrument("aperion_events_rejected_total", "counter", ("reason",), "events refused as invalid"),
    DROPPED := Instrument("aperion_events_dropped_total", "counter", (*_TYPE, "policy"), "events dropped"),
    EMITTING := Instrument("aperion_emit_duration_seconds", "histogram", _TYPE, "how long emit took, waits included"),
    DELIVERIES := Instrument("aperion_deliveries_total", "counter", _ENDED, "attempts, by their end"),
    DURATION := Instrument("aperion_handler_duration_seconds", "histogram", _ENDED, "how long an attempt took"),
    WAIT := Instrument("aperion_event_wait_seconds", "histogram", _TYPE, "acceptance to first handler"),
    RETRIES := Instrument("aperion_retries_total", "counter", _WHOSE, "attempts scheduled after a failed one"),
    DEAD := Instrument("aperion_dead_letters_total", "counter", ("reason", "subscription"), "dead letters left"),
    REDACTIONS := Instrument("aperion_redactions_total", "counter", ("type",), "values hidden, by type"),
    AUDIT_FAILURES := Instrument("aperion_audit_failures_total", "counter", (), "records the audit log could not take"),
    BLOCKED := Instrument(
        "aperion_loop_blocked_total", "counter", ("subscription",), "times a handler held up the loop"
    ),
    LAG := Instrument("aperion_loop_lag_seconds", "histogram", (), "how late the event loop was for a timer"),
    PENDING := Instrument("aperion_pending_events", "gauge", (), "events accepted and unsettled"),
    QUEUED := Instrument("aperion_queue_depth", "gauge", (), "events accepted, no handler of which has begun"),
    IN_FLIGHT := Instrument("aperion_events_in_flight", "gauge", (), "events whose handlers have begun"),
    SUBSCRIPTIONS := Instrument("aperion_subscriptions", "gauge", (), "subscriptions that exist"),
    BUSY := Instrument("aperion_threads_busy", "gauge", (), "worker threads that run a handler"),
    ABANDONED := Instrument("aperion_threads_abandoned", "gauge", (), "those whose delivery has timed out"),
    AUDIT_LAG := Instrument(
        "aperion_audit_buffered_bytes", "gauge", (), "records on their way to the audit log's file"
    ),
)
"""Everything that a bus measures. No label ever holds an id, a source or a value of a payload."""


class BusMetrics:
    """What a bus measures, told to a back end whose failures never hurt: see ``errors``.

    Raises:
        ConfigurationError: for a back end that lacks a method.
    """

    # Mutable: errors and _next_line, under _lock.
    __slots__ = ("__weakref__", "_clock", "_lock", "_next_line", "_tell_by_kind", "backend", "errors")

    def __init__(self, backend: MetricsBackend, *, clock: Callable[[], float] = monotonic) -> None:
        if isinstance(backend, type) or not isinstance(backend, MetricsBackend):
            raise ConfigurationError(
                f"metrics={shown(backend)} is no back end; pass an object with increment, gauge and observe"
            )
        self.backend = backend
        self.errors = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._next_line = -math.inf
        self._tell_by_kind: dict[Kind, Callable[[str, Any, Mapping[str, str]], None]] = {
            "counter": backend.increment,
            "gauge": backend.gauge,
            "histogram": backend.observe,
        }

    def emitted(self, event_type: str, _source: str | None = None) -> None:
        """Count an accepted event; its source is no label, since anybody can invent another."""
        self._tell(EMITTED, 1, event_type)

    def rejected(self, _event_type: str, reason: FailureReason) -> None:
        """Count a refused event; its type is no label, since it may be anything."""
        self._tell(REJECTED, 1, reason.value)

    def dropped(self, event_type: str, policy: str) -> None:
        """Count a dropped event."""
        self._tell(DROPPED, 1, event_type, policy)

    def handled(
        self,
        event_type: str,
        subscription: str,
        state: OutcomeState,
        seconds: float,
    ) -> None:
        """Count and time one attempt at a delivery."""
        self._tell(DELIVERIES, 1, event_type, subscription, state.value)
        if state is not OutcomeState.SKIPPED:  # the handler was not started
            self._tell(DURATION, seconds, event_type, subscription, state.value)

    def emitting(self, event_type: str, seconds: float) -> None:
        """Time how long an emitter was held up."""
        self._tell(EMITTING, seconds, event_type)

    def begun(self, event_type: str, waited: float) -> None:
        """Time how many seconds an accepted event waited for its first handler."""
        self._tell(WAIT, max(0.0, waited), event_type)

    def retried(self, event_type: str, subscription: str) -> None:
        """Count an attempt that is scheduled after a failed one."""
        self._tell(RETRIES, 1, event_type, subscription)

    def dead_lettered(self, _event_type: str, subscription: str | None, reason: FailureReason) -> None:
        """Count a dead letter; one of a whole event has an empty subscription."""
        self._tell(DEAD, 1, reason.value, subscription or "")

    def redacted(self, types: Counter[str]) -> None:
        """Count what the redactor hid, by type; never a value."""
        for kind, count in types.items():
            self._tell(REDACTIONS, count, kind)

    def audit_failed(self) -> None:
        """Count a record that the audit log could not take."""
        self._tell(AUDIT_FAILURES, 1)

    def blocked(self, subscription: str) -> None:
        """Count a handler that held up the loop; an empty name stands for what is no handler."""
        self._tell(BLOCKED, 1, subscription)

    def late(self, seconds: float) -> None:
        """Time how late the loop was."""
        self._tell(LAG, seconds)

    def load(self, gauges: Mapping[Instrument, float]) -> None:
        """Tell how much there is to do at this moment."""
        for instrument, value in gauges.items():
            self._tell(instrument, value)

    def pending(self, count: int) -> None:
        """Tell how many events are accepted and unsettled."""
        self._tell(PENDING, count)

    def subscriptions(self, count: int) -> None:
        """Tell how many subscriptions exist."""
        self._tell(SUBSCRIPTIONS, count)

    def _tell(self, instrument: Instrument, value: float, *labels: str) -> None:
        try:
            tell = self._tell_by_kind[instrument.kind]
            tell(instrument.name, value, dict(zip(instrument.labels, labels, strict=False)))
        except BaseException as error:
            self._note(error)
            if isinstance(error, KeyboardInterrupt):  # no doing of the back end
                raise

    def _note(self, error: BaseException) -> None:
        """Count a failure, and log once a minute at most: its kind, not its words, which may quote values."""
        with self._lock:
            self.errors += 1
            count, now = self.errors, self._clock()
            if now < self._next_line:
                return
            self._next_line = now + _SECONDS_BETWEEN_LOG_LINES
        with suppress(Exception):  # nor may a broken logger
            _log.warning("metrics back end failed", error_type=type(error).__name__, errors=count)
