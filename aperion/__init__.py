"""Aperion: an asyncio-native event bus for services that have to answer for what happened in them."""

from typing import TYPE_CHECKING

from aperion._lazy import loading
from aperion.app import App, run
from aperion.bus import BusState, BusStats, DrainReport, EventBus, OverflowPolicy
from aperion.context import (
    CORRELATION_ID_HEADER,
    CorrelationContext,
    add_correlation_to_log_extra,
    clear_correlation_id,
    current_event,
    extract_correlation_id_from_headers,
    generate_correlation_id,
    get_correlation_id,
    get_headers_with_correlation,
    set_correlation_id,
)
from aperion.deadletters import DeadLetterFilters, DeadLetterQueue, DeadLetterStats
from aperion.engine.threads import check_cancelled
from aperion.errors import (
    AperionError,
    ApplicationError,
    AuditError,
    AuditUnavailable,
    BackpressureError,
    BusNotRunningError,
    CascadeError,
    ConfigurationError,
    DeadLetterNotFoundError,
    DeadlockError,
    DeliveryError,
    EngineError,
    EventTypeError,
    HandlerError,
    HandlerTimeoutError,
    JournalError,
    JournalUnavailable,
    KeyHeldError,
    KilledError,
    NotDeliveredError,
    PatternError,
    PayloadError,
    PayloadTooLargeError,
    RedriveError,
    SerializationError,
    StreamOverflowError,
    ThreadsExhaustedError,
    UnknownEventTypeError,
    ValidationError,
    WrongLoopError,
)
from aperion.events import Event, Payload
from aperion.intake import EventDetails
from aperion.metrics import CallbackMetrics, HistogramSnapshot, InMemoryMetrics, NoopMetrics
from aperion.naming import EVENT_TYPE_PATTERN, Naming, extract_action, extract_domain, is_valid_event_type
from aperion.observers.spans import Tracing
from aperion.outbox import Outbox
from aperion.outcomes import Attempt, DeadLetter, Delivery, FailureReason, Outcome, Outcomes, OutcomeState
from aperion.protocols import AuditSink, CallNext, DeadLetterStore, MetricsBackend, Middleware, Processor
from aperion.receipts import Receipt
from aperion.redaction import Public, Redactor, Sensitive
from aperion.router import Router, SubscriptionOptions
from aperion.streams import EventStream
from aperion.subscriptions import Filter, Handler, HandlerKind, Retry, Subscription

if TYPE_CHECKING:
    from aperion.audit import AuditLog
    from aperion.journal.sqlite import SQLiteJournal

__all__ = [
    "CORRELATION_ID_HEADER",
    "EVENT_TYPE_PATTERN",
    "AperionError",
    "App",
    "ApplicationError",
    "Attempt",
    "AuditError",
    "AuditLog",
    "AuditSink",
    "AuditUnavailable",
    "BackpressureError",
    "BusNotRunningError",
    "BusState",
    "BusStats",
    "CallNext",
    "CallbackMetrics",
    "CascadeError",
    "ConfigurationError",
    "CorrelationContext",
    "DeadLetter",
    "DeadLetterFilters",
    "DeadLetterNotFoundError",
    "DeadLetterQueue",
    "DeadLetterStats",
    "DeadLetterStore",
    "DeadlockError",
    "Delivery",
    "DeliveryError",
    "DrainReport",
    "EngineError",
    "Event",
    "EventBus",
    "EventDetails",
    "EventStream",
    "EventTypeError",
    "FailureReason",
    "Filter",
    "Handler",
    "HandlerError",
    "HandlerKind",
    "HandlerTimeoutError",
    "HistogramSnapshot",
    "InMemoryMetrics",
    "JournalError",
    "JournalUnavailable",
    "KeyHeldError",
    "KilledError",
    "MetricsBackend",
    "Middleware",
    "Naming",
    "NoopMetrics",
    "NotDeliveredError",
    "Outbox",
    "Outcome",
    "OutcomeState",
    "Outcomes",
    "OverflowPolicy",
    "PatternError",
    "Payload",
    "PayloadError",
    "PayloadTooLargeError",
    "Processor",
    "Public",
    "Receipt",
    "Redactor",
    "RedriveError",
    "Retry",
    "Router",
    "SQLiteJournal",
    "Sensitive",
    "SerializationError",
    "StreamOverflowError",
    "Subscription",
    "SubscriptionOptions",
    "ThreadsExhaustedError",
    "Tracing",
    "UnknownEventTypeError",
    "ValidationError",
    "WrongLoopError",
    "add_correlation_to_log_extra",
    "check_cancelled",
    "clear_correlation_id",
    "current_event",
    "extract_action",
    "extract_correlation_id_from_headers",
    "extract_domain",
    "generate_correlation_id",
    "get_correlation_id",
    "get_headers_with_correlation",
    "is_valid_event_type",
    "run",
    "set_correlation_id",
]

__getattr__ = loading(
    __name__,
    {"AuditLog": "aperion.audit.log", "SQLiteJournal": "aperion.journal.sqlite", "audit": "aperion.audit"},
)
