"""The spans of a bus, through the OpenTelemetry API: who sent an event, and who handled it.

Names and attributes are those of the semantic conventions for messaging; see ``CONVENTIONS``.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from aperion._frozen import FrozenDict
from aperion._telemetry import configured
from aperion.errors import ConfigurationError, shown
from aperion.events import with_headers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanContext, TracerProvider

    from aperion.events import Event
    from aperion.outcomes import Attempt, DeadLetter
    from aperion.redaction import Redactor
    from aperion.subscriptions import Subscription

CONVENTIONS: Final = "1.40.0"
"""The version of OpenTelemetry's semantic conventions; those for messaging have the status "development"."""

_SCHEMA = f"https://opentelemetry.io/schemas/{CONVENTIONS}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """How a bus makes spans: ``EventBus(tracing=Tracing(handlers="link"))``.

    Args:
        handlers: "child": the span of a handler is a child of the one that sent its event, so that a
            request and all that it caused are one trace. "link": it begins a trace of its own, linked
            to that of the sender, which suits events that are handled much later.
        tracer_provider: where spans go; the global provider if None.

    Raises:
        ConfigurationError: for another ``handlers``.
    """

    handlers: Literal["child", "link"] = "child"
    tracer_provider: TracerProvider | None = None

    def __post_init__(self) -> None:
        """Check the choice."""
        if self.handlers not in {"child", "link"}:
            raise ConfigurationError(f"handlers={shown(self.handlers)} is not a choice; use 'child' or 'link'")


def check_tracing(tracing: object) -> Tracing | bool | None:
    """Return what was passed as ``tracing`` to a bus.

    Raises:
        ConfigurationError: for something else than ``Tracing``, True, False or None.
    """
    if tracing is not None and not isinstance(tracing, Tracing | bool):
        raise ConfigurationError(f"tracing={shown(tracing)} is not a choice; pass Tracing(...), True, False or None")
    return tracing


def spans_for(tracing: Tracing | bool | None, redactor: Redactor) -> Spans | None:  # noqa: FBT001 - as the bus got it
    """Return what makes the spans of a bus that starts now; None where nobody would see them."""
    if tracing is False:
        return None
    settings = tracing if isinstance(tracing, Tracing) else Tracing()
    provider = settings.tracer_provider or (configured.tracer_provider() if tracing is None else _global_provider())
    return None if provider is None else Spans(settings, provider, redactor)


def _global_provider() -> TracerProvider:
    from opentelemetry import trace

    return trace.get_tracer_provider()


_Which: TypeAlias = tuple[str, str, int]  # event id, subscription, number of the attempt


class Spans:
    """Makes the spans of one bus while it runs, on the thread of its loop unless a method says otherwise."""

    # Mutable: the dicts, of spans that have not ended, and of what was current before one.
    __slots__ = ("_linked", "_open", "_otel", "_redactor", "_sending", "_tokens", "_tracer")

    def __init__(self, tracing: Tracing, provider: TracerProvider, redactor: Redactor) -> None:
        self._otel = _OpenTelemetry()
        self._tracer = provider.get_tracer("aperion", _version(), schema_url=_SCHEMA)
        self._linked = tracing.handlers == "link"
        self._redactor = redactor
        self._sending: dict[str, Span] = {}
        self._open: dict[_Which, Span] = {}
        self._tokens: dict[_Which, Token[Context]] = {}

    # Sending

    def sent(self, event: Event[Any], began: int) -> tuple[Event[Any], Span]:
        """Begin the span of an emit, at ``began`` ns since the epoch; the event returned carries its context."""
        otel = self._otel
        context = otel.sender(event.headers)
        span = self._tracer.start_span(
            f"send {event.event_type}",
            context,
            otel.trace.SpanKind.PRODUCER,
            {**self._about(event, "send"), "aperion.hops": event.hops},
            start_time=began,
        )
        self._sending[event.event_id] = span
        carried = otel.carried(event.headers, otel.trace.set_span_in_context(span, context))
        return with_headers(event, FrozenDict(carried)), span

    def sent_off(self, event: Event[Any], span: Span) -> None:
        """End the span of an emit; of one that the bus or a processor has dropped, too."""
        self._sending.pop(event.event_id, None)
        span.end()

    def refused(self, event: Event[Any] | None, span: Span, error: BaseException) -> None:
        """End the span of an emit that raised. The exception itself belongs to whom it is raised to."""
        if event is not None:
            self._sending.pop(event.event_id, None)
        self._fail(span, error, self._redactor.redact_exception(error)[0])
        span.end()

    def no_event(self, event_type: str | None, began: int, error: BaseException) -> None:
        """Tell of an emit that came to no event, since what was handed in is not valid."""
        about = {"messaging.system": "aperion", "messaging.operation.name": "send", "messaging.operation.type": "send"}
        if event_type is not None:
            about["messaging.destination.name"] = event_type
        name = "send" if event_type is None else f"send {event_type}"
        span = self._tracer.start_span(name, None, self._otel.trace.SpanKind.PRODUCER, about, start_time=began)
        span.add_event("aperion.rejected", {"error.type": _name(error)})
        self.refused(None, span, error)

    def dropped(self, event: Event[Any], policy: str) -> None:
        """Tell of a dropped event: on the span that sends it, or else on that of who made it go."""
        span = self._sending.get(event.event_id) or self._otel.trace.get_current_span()
        span.add_event("aperion.dropped", {"messaging.message.id": event.event_id, "aperion.policy": policy})

    # Handling

    def started(self, event: Event[Any], subscription: Subscription, number: int) -> None:
        """Begin the span of one attempt and make it the current one; ``left`` takes that back."""
        otel = self._otel
        context, links = otel.receiver(event.headers, linked=self._linked)
        attributes = {
            **self._about(event, "process"),
            "messaging.destination.subscription.name": subscription.name,
            "aperion.attempt": number,
        }
        span = self._tracer.start_span(
            f"process {event.event_type}", context, otel.trace.SpanKind.CONSUMER, attributes, links
        )
        which = event.event_id, subscription.name, number
        self._open[which] = span
        self._tokens[which] = otel.context.attach(otel.trace.set_span_in_context(span, context))

    def ended(self, event: Event[Any], subscription: Subscription, attempt: Attempt) -> None:
        """Tell on its span how an attempt ended; that of a failed one stays open for what follows."""
        span = self._open.get((event.event_id, subscription.name, attempt.number))
        if span is None:
            return
        span.set_attribute("aperion.outcome", attempt.state.value)
        if attempt.error is not None:
            text, trace = self._redactor.redact_exception(attempt.error)
            self._fail(span, attempt.error, text)
            details = {"exception.type": _name(attempt.error), "exception.message": text, "exception.stacktrace": trace}
            span.add_event("exception", details)

    def retried(self, event: Event[Any], subscription: Subscription, attempt: Attempt) -> None:
        """Say that another attempt follows."""
        span = self._open.get((event.event_id, subscription.name, attempt.number))
        if span is not None:
            span.add_event("aperion.retry", {"aperion.attempt": attempt.number + 1})

    def dead(self, letter: DeadLetter, attempt: Attempt | None, *, again: bool) -> None:  # noqa: ARG002 - a fact
        """Say that a dead letter is left."""
        if attempt is None or letter.subscription is None:
            return
        span = self._open.get((letter.event.event_id, letter.subscription, attempt.number))
        if span is not None:
            span.add_event("aperion.dead_letter", {"aperion.reason": letter.reason.value})

    def left(self, event: Event[Any], subscription: Subscription, number: int) -> None:
        """End the span of an attempt, and make that one current which was so before."""
        which = event.event_id, subscription.name, number
        span, token = self._open.pop(which, None), self._tokens.pop(which, None)
        if span is not None:
            span.end()
        if token is not None:
            with suppress(ValueError):  # closed from outside: in another context, where a token is worth nothing
                self._otel.context.detach(token)

    def _about(self, event: Event[Any], operation: str) -> dict[str, Any]:
        return {
            "messaging.system": "aperion",
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.destination.name": event.event_type,
            "messaging.message.id": event.event_id,
            "messaging.message.conversation_id": self._redactor.redact_text(event.correlation_id),
        }

    def _fail(self, span: Span, error: BaseException, text: str) -> None:
        span.set_attribute("error.type", _name(error))
        span.set_status(self._otel.trace.Status(self._otel.trace.StatusCode.ERROR, text))


class _OpenTelemetry:
    """What is used of the API, and how a context travels in the headers of an event, in any letter case."""

    __slots__ = ("_empty", "_propagator", "context", "fields", "trace")

    def __init__(self) -> None:
        from opentelemetry import context, propagate, trace

        self.context = context
        self.trace = trace
        self._propagator = propagate.get_global_textmap()
        self._empty = context.Context()
        # Those of W3C in any case, so that none of another sender stays beside new ones.
        self.fields = frozenset({"traceparent", "tracestate", "baggage", *map(str.lower, self._propagator.fields)})

    def sender(self, headers: Mapping[str, str]) -> Context:
        """Return the context of an emit: what the headers say, unless the current span is of the same trace."""
        here = self.context.get_current()
        if not headers:
            return here
        told = self._propagator.extract(_lowered(headers), here)
        span = self.trace.get_current_span(here)
        same = span.get_span_context().trace_id == self.trace.get_current_span(told).get_span_context().trace_id
        return self.trace.set_span_in_context(span, told) if same else told

    def carried(self, headers: Mapping[str, str], context: Context) -> dict[str, str]:
        """Return the headers with the context in them, in place of what they said."""
        carrier = {name: value for name, value in headers.items() if name.lower() not in self.fields}
        self._propagator.inject(carrier, context)
        return carrier

    def receiver(self, headers: Mapping[str, str], *, linked: bool) -> tuple[Context, list[Link]]:
        """Return the context that a handler is to run in, and what its span is linked to."""
        context = self._propagator.extract(_lowered(headers), self._empty)
        sender = self.trace.get_current_span(context).get_span_context()
        if not linked:
            return self.trace.set_span_in_context(self.trace.NonRecordingSpan(self._local(sender)), context), []
        links = [self.trace.Link(sender)] if sender.is_valid else []
        return self.trace.set_span_in_context(self.trace.INVALID_SPAN, context), links

    def _local(self, sender: SpanContext) -> SpanContext:
        """Return the same span as one of this process: a bus sends what it handles."""
        return self.trace.SpanContext(
            sender.trace_id,
            sender.span_id,
            is_remote=False,
            trace_flags=sender.trace_flags,
            trace_state=sender.trace_state,
        )


def _lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _version() -> str:
    try:
        return version("aperion-bus")
    except PackageNotFoundError:  # a checkout on the path, never installed
        return "0"
