"""OpenTelemetry for services: one call that sets it up, spans around functions of your own, contexts in headers.

What a bus does by itself (spans for what is sent and handled, measurements) needs nothing of this module
but an SDK that is set up, by ``configure`` or in any other way, when the bus starts. Until one is, everything
here does nothing and costs next to nothing.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aperion._telemetry import configured
from aperion._telemetry.meters import OpenTelemetryMetrics
from aperion._telemetry.sdk import Telemetry, configure
from aperion._telemetry.traced import redacted_attribute, traced
from aperion.context import CorrelationContext
from aperion.observers.spans import CONVENTIONS, Tracing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, Tracer

__all__ = [
    "CONVENTIONS",
    "OpenTelemetryMetrics",
    "Telemetry",
    "Tracing",
    "add_event_to_span",
    "configure",
    "correlation_from_trace",
    "extract_trace_context_from_headers",
    "get_current_span",
    "get_trace_correlation_id",
    "get_tracer",
    "inject_trace_context_to_headers",
    "is_otel_available",
    "set_span_attribute",
    "trace_from_correlation",
    "traced",
]

_API = "opentelemetry.trace"


def is_otel_available() -> bool:
    """Tell whether spans go anywhere: whether a tracer provider is set up in this process."""
    return configured.tracer_provider() is not None


def get_tracer(name: str = "aperion") -> Tracer:
    """Return a tracer of the global provider; without one it makes spans that nobody sees."""
    from opentelemetry import trace

    return trace.get_tracer(name)


def get_current_span() -> Span | None:
    """Return the current span, also one that is not sampled; None outside of any."""
    if _API not in sys.modules:
        return None
    from opentelemetry import trace

    span = trace.get_current_span()
    return span if span.get_span_context().is_valid else None


def get_trace_correlation_id() -> str | None:
    """Return the id of the current trace as 32 hex digits; None outside of any span."""
    span = get_current_span()
    return f"{span.get_span_context().trace_id:032x}" if span is not None else None


def add_event_to_span(name: str, attributes: Mapping[str, object] | None = None) -> None:
    """Add an event to the current span, if there is one; texts are redacted, what is no attribute becomes text."""
    span = get_current_span()
    if span is not None and span.is_recording():
        span.add_event(name, {key: redacted_attribute(value, key) for key, value in (attributes or {}).items()})


def set_span_attribute(key: str, value: object) -> None:
    """Set an attribute of the current span, if there is one; a text is redacted, what is no attribute becomes text."""
    span = get_current_span()
    if span is not None and span.is_recording():
        span.set_attribute(key, redacted_attribute(value, key))


def inject_trace_context_to_headers(headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a copy of headers with the current trace context and baggage, in place of any they had.

    Outside of any span, and where OpenTelemetry is not loaded, it is a plain copy.
    """
    given = dict(headers or {})
    if get_current_span() is None:
        return given
    from opentelemetry import propagate

    fields = {name.lower() for name in propagate.get_global_textmap().fields}
    carrier = {name: value for name, value in given.items() if name.lower() not in fields}
    propagate.inject(carrier)
    return carrier


def extract_trace_context_from_headers(
    headers: Mapping[str, str] | Iterable[tuple[bytes | str, bytes | str]],
) -> Context:
    """Return the context that headers tell of: of any mapping or the pairs of ASGI, in any letter case.

    For ``opentelemetry.context.attach``, or ``tracer.start_span(name, context)``. Headers without a valid
    trace context give the current one.
    """
    from opentelemetry import context, propagate

    pairs = headers.items() if hasattr(headers, "items") else headers
    return propagate.extract({_text(name).lower(): _text(value) for name, value in pairs}, context.get_current())


@contextmanager
def correlation_from_trace() -> Iterator[str]:
    """Open a ``CorrelationContext`` whose id is that of the current trace; a new id outside of any.

    Examples:
        >>> with correlation_from_trace() as correlation_id:
        ...     len(correlation_id)
        36
    """
    with CorrelationContext(get_trace_correlation_id()) as correlation_id:
        yield correlation_id


def trace_from_correlation(correlation_id: str) -> Context | None:
    """Return a context in which the next span belongs to the trace whose id is a correlation id.

    That is one of 32 hex digits, or a UUID; None for any other. The span has a parent that nobody has
    recorded: a backend shows it as the root of its trace. The same id always gives the same trace, in
    every service.
    """
    digits = correlation_id.replace("-", "").lower()
    if len(digits) != 32 or set(digits) - set("0123456789abcdef") or not int(digits, 16):
        return None
    from opentelemetry import trace

    return trace.set_span_in_context(trace.NonRecordingSpan(_parent(int(digits, 16))))


def _parent(trace_id: int) -> SpanContext:
    from opentelemetry import trace

    half = (1 << 64) - 1
    span_id = (trace_id & half) or trace_id >> 64  # an id of its own for each trace; zero is none
    sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    return trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=sampled)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
