"""What a bus counts, and how it shows that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class BusStats:
    """What a bus has counted, at one moment; every field is JSON. System events are counted apart.

    ``accepted == settled + dropped_after + pending``, always.

    Args:
        state: "stopped", "running" or "draining".
        accepted: events that were accepted, by any way of emitting.
        settled: accepted events whose every delivery has an outcome.
        pending: accepted events that are in flight.
        queued: those of them that wait for a worker, or for the event before them with the same key.
        rejected: events that were refused as invalid.
        dropped: events that a full bus or a processor dropped.
        dropped_after: those of them that had been accepted (``DROP_OLDEST``).
        deliveries: outcomes of settled events, skipped ones included.
        failures: deliveries that failed for good.
        retries: attempts that were scheduled after a failed one.
        redriven: dead letters whose redrive went well.
        dead_letters: the size of the queue.
        dead_letters_by_reason: how many there are for each reason.
        dead_letters_evicted: dead letters that a full queue let go.
        dead_letters_lost: dead letters that the store could not take; the log names them.
        subscriptions: subscriptions that exist.
        subscriptions_active: those that are not paused.
        event_types_subscribed: the patterns of those, sorted.
        validation_enabled: whether the names of event types are checked.
        threads_busy: worker threads that run a handler.
        threads_abandoned: those whose delivery has timed out.
        threads_limit: ``max_concurrent_handlers``.
        max_pending_events: the bound on ``pending``.
        overflow_policy: what happens there.
        system_events: events of the bus itself.
        system_dropped: those that were dropped because too many were in flight.
        engine_errors: faults of the engine itself; the log tells of each.
        extension_errors: what observers, stores, callbacks and listeners have raised.
        loop_blocked: how often the watchdog found the event loop held up.
        audit_enabled: whether there is an audit log.
        audit_failures: outcomes that it could not record.
        redactions: how many values the redactor of the bus has hidden, by type.
        redaction_failures: how many it could not read, and hid for that.
        metrics_enabled: whether there is a metrics back end.
        metrics_errors: calls in which it failed.
        metrics: the snapshot of ``InMemoryMetrics``; None with another back end.
        journal: what the journal says of itself: its ``level``, the ``slots`` that it has, the events ``kept`` now
            and ``taken_up`` since the start, whether it is ``taking_up`` more, ``orphans``, events ``set_aside`` as damaged, ``commits``, ``failures``,
            and ``degraded``: why it cannot be written, if so. None without one.
    """

    state: str
    accepted: int
    settled: int
    pending: int
    queued: int
    rejected: int
    dropped: int
    dropped_after: int
    deliveries: int
    failures: int
    retries: int
    redriven: int
    dead_letters: int
    dead_letters_by_reason: dict[str, int]
    dead_letters_evicted: int
    dead_letters_lost: int
    subscriptions: int
    subscriptions_active: int
    event_types_subscribed: list[str]
    validation_enabled: bool
    threads_busy: int
    threads_abandoned: int
    threads_limit: int
    max_pending_events: int
    overflow_policy: str
    system_events: int
    system_dropped: int
    engine_errors: int
    extension_errors: int
    loop_blocked: int
    audit_enabled: bool
    audit_failures: int
    redactions: dict[str, int]
    redaction_failures: int
    metrics_enabled: bool
    metrics_errors: int
    metrics: dict[str, Any] | None
    journal: dict[str, Any] | None
