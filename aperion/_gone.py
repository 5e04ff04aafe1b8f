"""Names of aperion-event-bus 1.2.1 that there are not any more, and what to write instead, for those who come from it."""

from __future__ import annotations

from typing import Final, NoReturn, TypeVar

T = TypeVar("T")

_IN_TELEMETRY: Final = (
    *("add_event_to_span", "get_current_span", "get_trace_correlation_id", "get_tracer"),
    *("inject_trace_context_to_headers", "is_otel_available", "set_span_attribute", "traced"),
)

_NAMES: Final = {
    "AuditLogger": "use aperion.AuditLog",
    "EventHandler": "the type of a handler is aperion.Handler",
    "EventValidator": "names are checked by EventBus(naming=aperion.Naming(...)), payloads by models: class Name(aperion.Payload, type=...)",
    "FailedEvent": "it is aperion.DeadLetter now",
    "MetricsCollector": "pass the back end itself: EventBus(metrics=aperion.InMemoryMetrics())",
    "TimingContext": "the bus measures handlers itself; see EventBus(metrics=...)",
    "ValidationResult": "what is not valid raises aperion.ValidationError",
    **{name: f"use aperion.telemetry.{name}" for name in _IN_TELEMETRY},
}

_OF_CLASSES: Final = {
    "EventBus": {
        "clear_log": "use clear() of the aperion.AuditLog, once it is closed",
        "get_events": "use bus.audit.read(kinds=['accepted'], types=..., since=..., limit=..., newest_first=True)",
        "get_pending_count": "use bus.stats().pending",
        "get_stats": "use bus.stats()",
        "get_subscriptions": "use bus.subscriptions",
        "shutdown": "leave 'async with bus:', or use 'await bus.drain(timeout)'",
        "wait_for_pending": "use 'await bus.wait_settled()'",
    },
    "DeadLetterQueue": {
        "add": "the bus puts what fails; put(aperion.DeadLetter(...)) keeps one of your own",
        "clear": "use purge()",
        "clear_older_than": "use purge(older_than=seconds)",
        "get_all": "use list(limit=...)",
        "get_by_event_type": "use list(event_type)",
        "get_by_reason": "use list(reason=...)",
        "get_stats": "use stats()",
        "retry": "use 'await bus.redrive(letter_id)'",
        "retry_all": "use 'await bus.redrive_all(max_attempts=...)'",
    },
}


class _Gone:
    """Stands for a method that there is not any more: whoever asks for it is told what to use.

    One for each, and no ``__getattr__``: with that, Python looks up every attribute of the class the slow way.
    """

    __slots__ = ("_advice", "_name")

    def __init__(self, name: str, advice: str) -> None:
        self._name = name
        self._advice = advice

    def __get__(self, owner: object, kind: type) -> NoReturn:
        raise AttributeError(
            f"{kind.__name__!r} object has no attribute {self._name!r}; {self._advice}", name=self._name, obj=owner
        )


def explains_gone(kind: type[T]) -> type[T]:
    """Have a class say what took the place of methods that the class of this name had in aperion-event-bus."""
    for name, advice in _OF_CLASSES[kind.__name__].items():
        setattr(kind, name, _Gone(name, advice))
    return kind


def missing_from(package: str, name: str) -> AttributeError:
    """Return the error for a name that the package has not."""
    plain = f"module {package!r} has no attribute {name!r}"
    return AttributeError(f"{plain}; {_NAMES[name]}" if name in _NAMES and package == "aperion" else plain, name=name)
